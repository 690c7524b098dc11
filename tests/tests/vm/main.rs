//! A real guest boots behind vmnat, uses the world and serves it; a real kernel of a distribution carries vmnat.

mod servers;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vmnat_tests::{
    guest::{self, VirtualMachine},
    lab::{EXTERNAL, Lab, client, firewall::NFT_DROPS, service, vmnat::Hook},
};

/// A busy machine of two cores boots the guest in well under this.
const BOOT: Duration = Duration::from_secs(150);

#[test]
fn a_real_guest_is_online_and_reached_on_tcx() -> Result<()> {
    a_real_guest_is_online_and_reached(Hook::Tcx)
}

#[test]
fn a_real_guest_is_online_and_reached_on_clsact() -> Result<()> {
    a_real_guest_is_online_and_reached(Hook::Clsact)
}

/// 1. FORWARD and INPUT are dropped, vmnat is up with port 8080 forwarded to the guest.
/// 2. The guest boots on a tap; it pings the world, downloads 4 MB and checks their SHA-256, and asks a
///    name server over UDP, which sees the external address.
/// 3. The world downloads 4 MB from the guest's own server through the port forward, and checks their SHA-256.
fn a_real_guest_is_online_and_reached(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up(hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80/tcp", guest::ADDRESS)])?;

    let mut machine = VirtualMachine::start(&lab)?;
    let reports = machine.reports(BOOT)?;
    for name in ["ping", "download", "query"] {
        let passed = format!("vm:{name} ok");
        ensure!(reports.iter().any(|line| line.starts_with(&passed)), "no {passed:?} among {reports:?}");
    }

    let there = format!("{EXTERNAL}:8080");
    let page = client::get(&lab.world, &there, "/index.html")
        .context("the guest's page through the port forward")?;
    ensure!(page == b"served by the guest\n", "{}", String::from_utf8_lossy(&page));
    let file =
        client::get(&lab.world, &there, "/bytes").context("the guest's file through the port forward")?;
    let (got, wanted) = (service::sha256(&file), service::sha256(&service::content(guest::SERVED)));
    ensure!(got == wanted, "{} bytes with hash {got} instead of {wanted}", file.len());
    lab.assert_invariants()
}

/// 1. A machine boots on the distribution's kernel (6.1 on Debian 12, where clsact must serve; 6.12 on Debian 13).
/// 2. Its guest is cut off, since nothing is forwarded. 3. `vmnat up` brings it online: ping, and 4 MB with their SHA-256 each way,
///    the way in by a port forward. 4. `down` leaves the machine as it was.
#[test]
fn the_kernel_of_the_distribution_carries_vmnat() -> Result<()> {
    let mut lab = Lab::new()?;
    let mut machine = VirtualMachine::start_host(&lab)?;
    let reports = machine.reports(BOOT)?;
    println!("{}", reports.join("\n"));
    for name in [
        "kernel", "gateway", "control", "up", "dnat", "ping", "download", "forward", "status", "down", "left",
    ] {
        let passed = format!("vm:{name} ok");
        ensure!(reports.iter().any(|line| line.starts_with(&passed)), "no {passed:?} among {reports:?}");
    }
    lab.assert_invariants()
}
