//! Port forwards to guests by name and MAC follow the lease.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    EXTERNAL, Lab,
    client::{self, PATIENCE},
    guest_address, guest_mac,
    vmnat::Hook,
    wait_until,
};

on_both_hooks!(
    a_forward_to_a_name_follows_the_lease,
    a_forward_to_a_mac_follows_the_lease,
    a_mac_is_known_from_traffic,
    a_lost_lease_keeps_its_last_address,
    libvirts_status_file_is_read_and_followed,
);

/// How long the agent has to follow a lease.
const MOMENTS: Duration = Duration::from_millis(2500);

const LEASES: &str = "/run/dnsmasq.leases";

fn mac(number: usize) -> String {
    guest_mac(number).map(|byte| format!("{byte:02x}")).join(":")
}

/// A line of dnsmasq's file: guest `number`'s address for a MAC and a name, for ever.
fn lease(mac: &str, number: usize, name: &str) -> String {
    format!("0 {mac} {} {name} *\n", guest_address(number))
}

fn up(lab: &Lab, hook: Hook) -> Result<()> {
    lab.up_with(hook, &["--lease-file", LEASES]).map(drop)
}

/// Waits until forward 1 leads to guest `number`.
fn wait_for(lab: &Lab, number: usize) -> Result<()> {
    wait_until("the forward leads to the guest", MOMENTS, || {
        Ok(lab.listing(&["dnat", "list"])?.at(0)["guest"] == guest_address(number))
    })
}

/// Both guests answer alike; the flow of a call through forward 1 tells which one did.
fn leads_to(lab: &Lab, number: usize) -> Result<()> {
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    let rows = lab.rows(&["flows"])?;
    let led = rows.iter().any(|row| {
        row["forwarded"] == true && row.pointer("/guest/address") == Some(&guest_address(number).into())
    });
    ensure!(led, "no flow to guest {number}: {rows:?}");
    lab.vmnat_ok(&["flows", "rm", "--all"]).map(drop)
}

/// 1. "web" is guest 1; 2. the file is written anew: it is guest 2; 3. the file is replaced: guest 1 again.
fn a_forward_to_a_name_follows_the_lease(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    fs::write(LEASES, lease(&mac(1), 1, "Web.example.org"))?;
    up(&lab, hook)?;
    let error = lab.vmnat_refused(&["dnat", "add", "8080:wbe:80"])?;
    ensure!(error.contains("no lease of \"wbe\" is known: did you mean \"web\"?"), "{error}");
    lab.vmnat_ok(&["dnat", "add", "8080:web:80"])?;
    leads_to(&lab, 1)?;
    ensure!(
        lab.vmnat_ok(&["dnat", "list"])?.contains("web:80 (192.168.122.10)"),
        "the address is not listed"
    );
    fs::write(LEASES, lease(&mac(1), 2, "web"))?;
    wait_for(&lab, 2)?;
    leads_to(&lab, 2)?;
    fs::write("/run/dnsmasq.next", lease(&mac(1), 1, "web"))?;
    fs::rename("/run/dnsmasq.next", LEASES)?;
    wait_for(&lab, 1)?;
    leads_to(&lab, 1)?;
    let leases = lab.rows(&["leases"])?;
    ensure!(leases.iter().any(|row| row["name"] == "web"), "no name in {leases:?}");
    lab.assert_sound_but_for_invalid_packets()
}

fn a_forward_to_a_mac_follows_the_lease(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    // Of a MAC that no guest has: only the file knows it.
    let mac = "52:54:00:aa:bb:cc";
    fs::write(LEASES, lease(mac, 1, "*"))?;
    up(&lab, hook)?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:[{mac}]:80")])?;
    leads_to(&lab, 1)?;
    fs::write(LEASES, lease(mac, 2, "*"))?;
    wait_for(&lab, 2)?;
    leads_to(&lab, 2)?;
    lab.assert_sound_but_for_invalid_packets()
}

fn a_mac_is_known_from_traffic(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(hook)?;
    client::ask(lab.guest(2)?, vmnat_tests::lab::SERVER_ECHO)?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:[{}]:80", mac(2))])?;
    leads_to(&lab, 2)?;
    lab.assert_invariants()
}

/// 1. the lease goes: the forward stays, with a warning; 2. it is back.
fn a_lost_lease_keeps_its_last_address(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    fs::write(LEASES, lease(&mac(1), 1, "web"))?;
    up(&lab, hook)?;
    lab.vmnat_ok(&["dnat", "add", "8080:web:80"])?;
    fs::write(LEASES, "")?;
    let warning = "port forward 1 (8080:web:80/tcp): the lease of its target is gone";
    wait_until("the lease is missed", PATIENCE, || Ok(lab.vmnat_ok(&["status"])?.contains(warning)))?;
    leads_to(&lab, 1)?;
    ensure!(lab.listing(&["dnat", "list"])?.at(0)["lease_missing"] == true, "the list does not say so");
    fs::write(LEASES, lease(&mac(1), 1, "web"))?;
    wait_until("the lease is back", PATIENCE, || Ok(!lab.vmnat_ok(&["status"])?.contains(warning)))?;
    lab.assert_invariants()
}

/// The folder comes with the first lease, as libvirt makes it; an expired row does not count.
fn libvirts_status_file_is_read_and_followed(hook: Hook) -> Result<()> {
    let row = |number: usize, expires: u64| {
        let (address, mac) = (guest_address(number), mac(number));
        format!(
            "[{{\"ip-address\":\"{address}\",\"mac-address\":\"{mac}\",\"hostname\":\"db\",\"expiry-time\":{expires}}}]"
        )
    };
    let status = "/var/lib/libvirt/dnsmasq/virbr0.status";
    let mut lab = Lab::new()?;
    fs::create_dir_all("/var/lib/libvirt/dnsmasq")?;
    fs::write(status, row(2, 1_000_000_000))?;
    lab.up(hook)?;
    lab.vmnat_refused(&["dnat", "add", "8080:db:80"])?;
    fs::write(status, row(1, 9_000_000_000))?;
    lab.vmnat_ok(&["dnat", "add", "8080:db:80"])?;
    leads_to(&lab, 1)?;
    fs::write(status, row(2, 9_000_000_000))?;
    wait_for(&lab, 2)?;
    leads_to(&lab, 2)?;
    lab.assert_sound_but_for_invalid_packets()
}
