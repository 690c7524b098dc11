//! What two programs that know nothing of vmnat say of it: coturn's discovery (RFC 5780) and Vovida's client (RFC 3489).

use anyhow::{Result, ensure};
use vmnat_tests::lab::{Lab, SERVER_ECHO, client::Asker, guest_address, stun::Stun, vmnat::Hook};

/// From a guest whose port another guest has: endpoint-independent mapping, filtering by address and port, and nobody who reads
/// payloads on the way. On tcx alone: what takes its time here are the clients' own timeouts.
#[test]
fn discovery_finds_independent_mapping_and_strict_filtering() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(Hook::of_the_kernel())?;
    let stun = Stun::serve(&lab)?;
    Asker::new(lab.guest(1)?, 5000)?.ask(SERVER_ECHO)?;
    let guest = lab.guest(2)?;
    let found = stun.discovery(guest, &["-m", "-f", "-L", &guest_address(2), "-l", "5000"])?;
    ensure!(found.contains("UDP reflexive addr: 203.0.113.2:"), "the NAT was not seen: {found}");
    ensure!(
        !found.contains("203.0.113.2:5000"),
        "the port was not changed: half of the test is void: {found}"
    );
    ensure!(found.contains("No ALG") && !found.contains("ALG:  Mapped"), "{found}");
    ensure!(found.contains("NAT with Endpoint Independent Mapping!"), "{found}");
    ensure!(found.contains("NAT with Address and Port Dependent Filtering!"), "{found}");
    let said = stun.classification(guest)?;
    ensure!(said.contains("Independent Mapping, Port Dependent Filter"), "{said}");
    lab.assert_invariants()
}
