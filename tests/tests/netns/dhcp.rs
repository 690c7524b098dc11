//! Guests get their addresses whatever INPUT says, from one server and never from two.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use vmnat_tests::lab::{
    EXTERNAL, GATEWAY, Lab, SERVER, SERVER_ECHO,
    client::{self, must_fail},
    dhcp::{self, Client},
    dnsmasq::Dnsmasq,
    firewall::{self, NFT_DROPS},
    frame::{Ends, Packet, Tap},
    vmnat::Hook,
    wait_until,
};

on_both_hooks!(
    guests_get_renew_and_release_addresses_with_input_on_drop,
    nothing_is_given_beside_a_server_that_answers,
    a_bridge_without_a_server_gives_from_the_range_that_was_named,
    a_guest_that_invents_clients_leaves_addresses_for_others,
    a_server_in_a_guest_is_left_alone,
    the_server_follows_a_bridge_that_is_made_again,
);

const LEASES: &str = "/var/lib/vmnat/default/dhcp.leases";

/// dnsmasq as libvirt runs it for the network of [`dhcp::define_network`].
const AS_LIBVIRT: &str = "dhcp-range=192.168.122.100,192.168.122.199,255.255.255.0,20m\n\
                          dhcp-authoritative\ndhcp-no-override\ndhcp-leasefile=/var/lib/misc/dnsmasq.leases\n\
                          dhcp-host=52:54:00:00:00:11,192.168.122.77,web\ndomain=lab.test";

fn last(address: &str) -> u8 {
    address.rsplit('.').next().and_then(|last| last.parse().ok()).unwrap_or(0)
}

fn says(lab: &Lab, what: &str) -> Result<()> {
    let status = lab.vmnat_ok(&["status"])?;
    let line = status.lines().find(|line| line.starts_with("DHCP")).unwrap_or("no line about DHCP");
    ensure!(line.contains(what), "{line}");
    Ok(())
}

/// 1. INPUT is on drop, so the host's own server hears nobody; 2. after `up` guest 1 gets an address of the range, guest 2 the one
///    that is its own; 3. both are online and known by name; 4. guest 1 renews by unicast, and gives its address back; 5. it gets the
///    same again, also after the agent's death.
fn guests_get_renew_and_release_addresses_with_input_on_drop(hook: Hook) -> Result<()> {
    for legacy in [false, true] {
        let mut lab = Lab::new()?;
        dhcp::define_network(&lab)?;
        let _server = Dnsmasq::start(&lab, AS_LIBVIRT)?;
        if legacy {
            firewall::legacy_drops(&lab.host)?;
        } else {
            lab.host.nft(NFT_DROPS)?;
        }
        let (first, second) = (lab.guest(1)?.clone(), lab.guest(2)?.clone());
        dhcp::forget_address(&first)?;
        dhcp::forget_address(&second)?;
        must_fail("an address through a closed INPUT", dhcp::ask(&first, &["-t", "2"]))?;

        lab.up(hook)?;
        says(&lab, "given by the agent where no other server answers")?;
        let told = dhcp::ask(&first, &["-x", "hostname:mail"])?;
        ensure!((100..200).contains(&last(told.get("ip"))), "{told:?}");
        let options =
            ["router", "dns", "serverid", "mask", "domain", "lease"].map(|name| told.get(name).to_owned());
        ensure!(options == [GATEWAY, GATEWAY, GATEWAY, "24", "lab.test", "1200"], "{options:?}");
        says(&lab, "given by the agent, because no other server answers")?;
        let own = dhcp::ask(&second, &[])?;
        ensure!(own.get("ip") == "192.168.122.77", "{own:?}");
        client::ping(&first, SERVER)?;
        client::converse(&second, SERVER_ECHO)?;
        lab.vmnat_ok(&["dnat", "add", "8080:mail:80", "8081:web:80"])?;
        client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
        client::get(&lab.world, &format!("{EXTERNAL}:8081"), "/")?;
        let leases = lab.vmnat_ok(&["leases"])?;
        ensure!(leases.contains("mail") && leases.contains("web"), "{leases}");

        renews_and_releases(&lab, &first, told.get("ip"))?;
        lab.kill_agent()?;
        lab.vmnat_ok(&["up"])?;
        let again = dhcp::ask(&first, &[])?;
        ensure!(again.get("ip") == told.get("ip"), "{again:?}");
        lab.assert_sound_but_for_invalid_packets()?;
    }
    Ok(())
}

fn renews_and_releases(
    lab: &Lab,
    guest: &vmnat_tests::lab::namespace::Namespace,
    address: &str,
) -> Result<()> {
    let held = || -> Result<bool> {
        let text = fs::read_to_string(LEASES)?;
        let line = text.lines().find(|line| line.contains(address)).context("no lease is kept")?;
        let expires: u64 = line.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        Ok(expires > now)
    };
    let client = Client::start(guest, &["-x", "hostname:mail"])?;
    let patience = Duration::from_secs(8);
    wait_until("the client has its address", patience, || Ok(client.told("bound").is_some()))?;
    ensure!(client.told("bound").is_some_and(|told| told.get("ip") == address), "another address");
    client.signal(Signal::SIGUSR1)?;
    wait_until("the client has renewed", patience, || Ok(client.told("renew").is_some()))?;
    ensure!(client.told("renew").is_some_and(|told| told.get("ip") == address), "another address");
    ensure!(held()?, "the lease has ended");
    client.signal(Signal::SIGTERM)?;
    wait_until("the lease has ended", patience, || Ok(!held()?))?;
    lab.assert_host_reaches_the_world()
}

/// 1. INPUT is open, so the host's own server answers, and the agent leaves the network to it; 2. INPUT closes: within the agent's
///    silence nobody gets an address, rather than from two.
fn nothing_is_given_beside_a_server_that_answers(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    dhcp::define_network(&lab)?;
    let _server = Dnsmasq::start(&lab, AS_LIBVIRT)?;
    lab.up(hook)?;
    for number in [1, 2] {
        let guest = lab.guest(number)?;
        dhcp::forget_address(guest)?;
        let told = dhcp::ask(guest, &[])?;
        ensure!(told.get("serverid") == GATEWAY, "{told:?}");
    }
    says(&lab, "left to 192.168.122.1, which answers")?;
    ensure!(!fs::exists(LEASES)?, "the agent has given a lease: {}", fs::read_to_string(LEASES)?);
    let known = fs::read_to_string(vmnat_tests::lab::dnsmasq::LEASES)?;
    ensure!(known.lines().count() == 2, "{known}");
    lab.host.nft(NFT_DROPS)?;
    dhcp::forget_address(lab.guest(1)?)?;
    must_fail("an address while the agent is silent", dhcp::ask(lab.guest(1)?, &["-t", "3"]))?;
    ensure!(!fs::exists(LEASES)?, "the agent was not silent");
    lab.assert_sound_but_for_invalid_packets()
}

/// As on a bridge of systemd-networkd's without its DHCP: two addresses, one of which is in use by a guest that asked nobody.
fn a_bridge_without_a_server_gives_from_the_range_that_was_named(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up(hook)?;
    let status = lab.vmnat_ok(&["status"])?;
    ensure!(!status.contains("DHCP"), "nobody has asked for DHCP: {status}");
    dhcp::forget_address(lab.guest(2)?)?;
    must_fail("an address that nobody gives", dhcp::ask(lab.guest(2)?, &["-t", "3"]))?;
    // Guest 1 has 192.168.122.10.
    lab.vmnat_ok(&["up", "--dhcp", "192.168.122.10-192.168.122.11,lease=10m"])?;
    for wish in ["192.168.122.10", "192.168.122.11"] {
        let told = dhcp::ask(lab.guest(2)?, &["-r", wish])?;
        ensure!(told.get("ip") == "192.168.122.11" && told.get("lease") == "600", "{told:?}");
    }
    client::ping(lab.guest(2)?, SERVER)?;
    let third = lab.add_guest()?;
    dhcp::forget_address(lab.guest(third)?)?;
    must_fail("an address of a range that is all given", dhcp::ask(lab.guest(third)?, &["-t", "4"]))?;
    lab.vmnat_ok(&["up", "--dhcp", "none"])?;
    let status = lab.vmnat_ok(&["status"])?;
    ensure!(!status.contains("DHCP"), "{status}");
    lab.assert_sound_but_for_invalid_packets()
}

/// `virsh net-destroy` and `net-start`.
fn the_server_follows_a_bridge_that_is_made_again(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up_with(hook, &["--dhcp", "virbr0=192.168.122.100-192.168.122.199"])?;
    dhcp::forget_address(lab.guest(1)?)?;
    let told = dhcp::ask(lab.guest(1)?, &[])?;
    lab.host.ip("link delete virbr0\n")?;
    lab.host.ip("link add virbr0 type bridge stp_state 0 forward_delay 0\n\
                 address add 192.168.122.1/24 dev virbr0\n\
                 link set virbr0 up\n\
                 link set vnet1 master virbr0\n")?;
    dhcp::forget_address(lab.guest(1)?)?;
    let again = dhcp::ask(lab.guest(1)?, &[])?;
    ensure!(again.get("ip") == told.get("ip"), "{again:?}");
    client::ping(lab.guest(1)?, SERVER)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// A DISCOVER of a client with that MAC.
fn discover(mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, mac[5]];
    message.resize(28, 0);
    message.extend(mac);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    let ends = Ends { from_mac: mac, to_mac: [0xff; 6], source: [0; 4], destination: [0xff; 4] };
    Packet::udp(ends, 68, 67, &message).bytes()
}

/// 1. Guest 1 asks under 160 MACs, of a range of 70 addresses; 2. guest 2 gets one all the same.
fn a_guest_that_invents_clients_leaves_addresses_for_others(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up_with(hook, &["--dhcp", "192.168.122.100-192.168.122.169"])?;
    let wire = Tap::open(lab.guest(1)?, "eth0")?;
    for batch in 0..12_u8 {
        for one in 0..16 {
            wire.send(&discover([2, 0, 0, 0, 9, batch << 4 | one]))?;
        }
        std::thread::sleep(Duration::from_millis(if batch == 0 { 4500 } else { 300 }));
    }
    let offers = wire.drain().iter().filter(|frame| frame.get(36..38) == Some(&[0, 68])).count();
    ensure!((30..=64).contains(&offers), "{offers} offers");
    dhcp::forget_address(lab.guest(2)?)?;
    dhcp::ask(lab.guest(2)?, &[])?;
    lab.assert_sound_but_for_invalid_packets()
}

/// Its offers go from port to port, and no frame of them comes to the host; but its clients say to all whom they have chosen.
fn a_server_in_a_guest_is_left_alone(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.host.nft(NFT_DROPS)?;
    lab.up_with(hook, &["--dhcp", "192.168.122.100-192.168.122.169"])?;
    let server = lab.guest(1)?;
    fs::write("/run/udhcpd.leases", "")?;
    fs::write(
        "/run/udhcpd.conf",
        "start 192.168.122.200\nend 192.168.122.210\ninterface eth0\nlease_file /run/udhcpd.leases\n\
         option subnet 255.255.255.0\noption router 192.168.122.1\n",
    )?;
    let _server = server.start(&["busybox", "udhcpd", "-f", "/run/udhcpd.conf"])?;
    std::thread::sleep(Duration::from_millis(300));
    dhcp::forget_address(lab.guest(2)?)?;
    let told = dhcp::ask(lab.guest(2)?, &[])?;
    ensure!(told.get("serverid") == "192.168.122.10", "{told:?}");
    says(&lab, "left to 192.168.122.10, which answers")?;
    ensure!(!fs::exists(LEASES)?, "the agent has given a lease too");
    lab.assert_sound_but_for_invalid_packets()
}
