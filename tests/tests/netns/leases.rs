//! Who was given which address: told from every source, watched, and kept from siblings that claim it.

use std::{cell::Cell, fs, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use vmnat_tests::lab::{
    EXTERNAL, GATEWAY, Lab, SERVER, SERVER_ECHO,
    client::{self, Asker, PATIENCE},
    frame::{Ends, Mac, Packet, Tap},
    guest_address, guest_mac, octets,
    vmnat::{Hook, program},
    wait_until,
};

on_both_hooks!(
    leases_come_from_every_source_and_say_so,
    a_watch_tells_what_comes_and_goes_and_ends_when_it_is_told,
    a_sibling_takes_no_address_that_was_given_to_a_guest,
    a_strict_network_holds_guests_to_what_they_were_given,
    a_guest_without_dhcp_is_bound_by_hand,
);

const LEASES: &str = "/run/dnsmasq.leases";
const A_WHILE: Duration = Duration::from_millis(400);
const MARK: &[u8] = b"marked by the test";

fn mac(number: usize) -> String {
    guest_mac(number).map(|byte| format!("{byte:02x}")).join(":")
}

/// A line of dnsmasq's file: guest `number`'s own address.
fn lease(number: usize, name: &str) -> String {
    format!("0 {} {} {name} *\n", mac(number), guest_address(number))
}

fn row(lab: &Lab, address: &str) -> Result<Value> {
    let rows = lab.rows(&["leases"])?;
    Ok(rows.into_iter().find(|row| row["address"] == address).unwrap_or_default())
}

/// One thing that is known of a lease.
fn fact(lab: &Lab, address: &str, what: &str) -> Result<Value> {
    let row = &row(lab, address)?;
    Ok(row[what].clone())
}

/// An ARP request from a station, in which `mac` has `address`.
fn claim(station: Mac, mac: Mac, address: &str) -> Result<Vec<u8>> {
    let mut frame = [[0xff; 6], station].as_flattened().to_vec();
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(octets(address)?);
    frame.extend([0; 6]);
    frame.extend(octets(address)?);
    Ok(frame)
}

fn hears_claim(at: &Tap, address: &str) -> Result<bool> {
    let address = octets(address)?;
    thread::sleep(A_WHILE);
    Ok(at
        .drain()
        .iter()
        .any(|frame| frame.get(12..14) == Some(&[8, 6]) && frame.get(28..32) == Some(&address)))
}

fn at_port(lab: &Lab, number: usize) -> Result<bool> {
    let row = &row(lab, &guest_address(number))?;
    Ok(row["mac"] == mac(number) && row["port"] == format!("vnet{number}"))
}

/// libvirt's status file (with an expired row) and static hosts, networkd's file, traffic; then a status file that is cut off,
/// which takes back nothing that was bound.
fn leases_come_from_every_source_and_say_so(hook: Hook) -> Result<()> {
    let libvirt = "/var/lib/libvirt/dnsmasq";
    let networkd = "/var/lib/systemd/network/dhcp-server-lease";
    let mut lab = Lab::new()?;
    for folder in [libvirt, networkd] {
        fs::create_dir_all(folder)?;
    }
    let status = |address: &str, mac: &str, name: &str, expires: u64| {
        format!(
            r#"{{"ip-address":"{address}","mac-address":"{mac}","hostname":"{name}","expiry-time":{expires}}}"#
        )
    };
    let expired = "52:54:00:00:00:77";
    let rows = [
        status(&guest_address(1), &mac(1), "web", 9_000_000_000),
        status("192.168.122.77", expired, "old", 1_000_000_000),
    ];
    fs::write(format!("{libvirt}/virbr0.status"), format!("[{}]", rows.join(",")))?;
    fs::write(format!("{libvirt}/default.hostsfile"), "52:54:00:00:00:78,192.168.122.78,reserved\n")?;
    let bytes = guest_mac(2).map(|byte| byte.to_string()).join(",");
    let kept = format!(
        r#"{{"BootID":"0","Leases":[{{"ClientId":[1],"Address":[192,168,122,11],"Hostname":"db","HardwareAddress":[{bytes},0,0],"ExpirationRealtimeUSec":9000000000000000}}]}}"#
    );
    fs::write(format!("{networkd}/virbr0"), kept)?;
    lab.up(hook)?;
    for number in [1, 2] {
        client::ask(lab.guest(number)?, SERVER_ECHO)?;
    }
    let first = &row(&lab, &guest_address(1))?;
    ensure!(first["source"] == "libvirt" && first["name"] == "web" && first["port"] == "vnet1", "{first}");
    ensure!(first["port_source"] == "traffic" && first["bound"] == true, "{first}");
    ensure!(first["expires"] == 9_000_000_000_u64 && first["age_seconds"].is_u64(), "{first}");
    let second = &row(&lab, &guest_address(2))?;
    ensure!(second["source"] == "networkd" && second["name"] == "db" && second["bound"] == true, "{second}");
    let reserved = &row(&lab, "192.168.122.78")?;
    ensure!(reserved["source"] == "libvirt-hosts" && reserved["age_seconds"].is_null(), "{reserved}");
    ensure!(row(&lab, "192.168.122.77")?.is_null(), "a lease that has expired is listed");

    fs::write(format!("{libvirt}/virbr0.status"), "[{\"ip-addr")?;
    thread::sleep(Duration::from_millis(500));
    ensure!(fact(&lab, &guest_address(1), "bound")? == true, "half a file has taken a binding back");
    fs::write(format!("{libvirt}/virbr0.status"), "")?;
    wait_until("the binding ends with its lease", PATIENCE, || {
        Ok(fact(&lab, &guest_address(1), "bound")? == false)
    })?;
    ensure!(fact(&lab, &guest_address(1), "source")? == "traffic");
    lab.assert_invariants()
}

/// 1. a watch tells what is there, a change and the end of a lease, and ends well at SIGINT; 2. another ends when nobody reads it.
fn a_watch_tells_what_comes_and_goes_and_ends_when_it_is_told(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    fs::write(LEASES, lease(1, "web"))?;
    lab.up_with(hook, &["--lease-file", LEASES])?;
    let program = program()?;
    let program = program.to_str().context("a path that is no text")?;
    let watch = lab.host.start(&[program, "leases", "--watch", "--json"])?;
    thread::sleep(Duration::from_secs(1));
    fs::write(LEASES, format!("{}0 52:54:00:00:00:79 192.168.122.79 new *\n", lease(1, "www")))?;
    thread::sleep(Duration::from_secs(2));
    fs::write(LEASES, lease(1, "www"))?;
    thread::sleep(Duration::from_secs(2));
    let process = nix::unistd::Pid::from_raw(i32::try_from(watch.id())?);
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGINT)?;
    let told = watch.finish()?;
    let told: Vec<Value> = told.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of = |address: &str| -> Vec<(Value, Value)> {
        let rows = told.iter().filter(|row| row["address"] == address);
        rows.map(|row| (row["event"].clone(), row["name"].clone())).collect()
    };
    let first = of(&guest_address(1));
    ensure!(first.first() == Some(&("present".into(), "web".into())), "{told:?}");
    ensure!(first.iter().any(|(event, name)| event == "changed" && name == "www"), "{told:?}");
    let new: Vec<Value> = of("192.168.122.79").into_iter().map(|(event, _)| event).collect();
    ensure!(new.first() == Some(&"added".into()) && new.last() == Some(&"gone".into()), "{told:?}");

    let line = format!("timeout 8 {program} leases --watch | head -n 1");
    let heard = lab.host.exec(&["sh", "-c", &format!("{line}; echo ended")])?;
    ensure!(heard.contains("present") && heard.contains("ended"), "{heard}");
    lab.assert_invariants()
}

/// A7. Guest 2 claims guest 1's address by ARP, again and again: 1. without a lease it gets it; 2. a lease alone does not take it back, as it
/// may be wrong; 3. guest 1 speaks, and nobody takes its address any more: calls from the world reach it.
fn a_sibling_takes_no_address_that_was_given_to_a_guest(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    fs::write(LEASES, "")?;
    lab.up_with(hook, &["--lease-file", LEASES])?;
    lab.vmnat_ok(&["dnat", "add", &format!("8080:{}:80", guest_address(1))])?;
    client::ask(lab.guest(1)?, SERVER_ECHO)?;
    client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    let sibling = Tap::open(lab.guest(2)?, "eth0")?;
    let forged = claim(guest_mac(2), guest_mac(2), &guest_address(1))?;
    sibling.send(&forged)?;
    wait_until("the claim is believed", PATIENCE, || Ok(fact(&lab, &guest_address(1), "mac")? == mac(2)))?;

    fs::write(LEASES, lease(1, "web"))?;
    thread::sleep(A_WHILE);
    ensure!(fact(&lab, &guest_address(1), "mac")? == mac(2));
    Tap::open(lab.guest(1)?, "eth0")?.send(&claim(guest_mac(1), guest_mac(1), &guest_address(1))?)?;
    fs::write(LEASES, lease(1, "www"))?;
    wait_until("guest 1 has its address back", PATIENCE, || {
        Ok(at_port(&lab, 1)? && fact(&lab, &guest_address(1), "bound")? == true)
    })?;
    for _ in 0..5 {
        sibling.send(&forged)?;
        ensure!(at_port(&lab, 1)?, "the claim has taken the lease: {}", row(&lab, &guest_address(1))?);
        client::get(&lab.world, &format!("{EXTERNAL}:8080"), "/")?;
    }
    lab.assert_sound_but_for_invalid_packets()
}

/// A7. Both guests were given their addresses, and the network is strict: 1. they talk to the world, the host and each other; 2. what
/// guest 2 sends from guest 1's address, or an address of nobody, reaches neither the world nor guest 1 nor the host, and its
/// claim reaches nobody; 3. without its lease guest 2 is silent, its live conversation too, while it may ask for a lease; 4. with
/// it, it is back; 5. where the network is strict no more, too.
fn a_strict_network_holds_guests_to_what_they_were_given(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let both = lease(1, "web") + &lease(2, "db");
    fs::write(LEASES, &both)?;
    lab.up_with(hook, &["--lease-file", LEASES, "--strict-leases"])?;
    ensure!(lab.listing(&["network", "list"])?.at(0)["strict_leases"] == true);
    let talk = |lab: &Lab| -> Result<()> {
        for number in [1, 2] {
            client::ask(lab.guest(number)?, SERVER_ECHO)?;
            client::ping(lab.guest(number)?, GATEWAY)?;
        }
        client::ping(lab.guest(1)?, &guest_address(2)).map(drop)
    };
    talk(&lab)?;
    spoof(&lab)?;
    talk(&lab)?;

    let asker = Asker::new(lab.guest(2)?, 31_000)?;
    asker.ask(SERVER_ECHO)?;
    fs::write(LEASES, lease(1, "web"))?;
    wait_until("guest 2 is not bound", PATIENCE, || Ok(fact(&lab, &guest_address(2), "bound")? == false))?;
    client::must_fail("a live conversation without a lease", asker.ask_within(SERVER_ECHO, 8, A_WHILE))?;
    let attempt = client::ping_as(lab.guest(2)?, 7, &guest_address(1), A_WHILE);
    client::must_fail("a ping to a sibling without a lease", attempt)?;
    let (guest, host) = (Tap::open(lab.guest(2)?, "eth0")?, Tap::open(&lab.host, "virbr0")?);
    let asking =
        Ends { to_mac: [0xff; 6], source: [0; 4], destination: [255; 4], ..lab.outbound_ends(2, SERVER)? };
    guest.send(&Packet::udp(asking, 68, 67, MARK).bytes())?;
    host.expect("the question for a lease", PATIENCE, |packet| packet.ports() == Some((68, 67)))?;

    fs::write(LEASES, &both)?;
    wait_until("guest 2 is back", PATIENCE, || Ok(asker.ask_within(SERVER_ECHO, 8, A_WHILE).is_ok()))?;
    talk(&lab)?;
    fs::write(LEASES, lease(1, "web"))?;
    lab.vmnat_ok(&["up", "--strict-leases=off"])?;
    asker.ask(SERVER_ECHO)?;
    talk(&lab)?;
    lab.assert_sound_but_for_invalid_packets()
}

/// What guest 2 forges arrives nowhere, and is counted.
fn spoof(lab: &Lab) -> Result<()> {
    let sibling = Tap::open(lab.guest(2)?, "eth0")?;
    let (victim, router) = (Tap::open(lab.guest(1)?, "eth0")?, Tap::open(&lab.router, "wan0")?);
    let host = Tap::open(&lab.host, "virbr0")?;
    let before = lab.counter("unbound_source").unwrap_or(0);
    let own = lab.outbound_ends(2, SERVER)?;
    for source in [guest_address(1), "192.168.122.99".to_owned(), "10.1.2.3".to_owned()] {
        let forged = Ends { source: octets(&source)?, ..own };
        let to_host = Ends { destination: octets(GATEWAY)?, ..forged };
        let to_victim = Ends { to_mac: guest_mac(1), destination: octets(&guest_address(1))?, ..forged };
        let with_its_mac = Ends { from_mac: guest_mac(1), ..forged };
        for ends in [forged, to_host, to_victim, with_its_mac] {
            sibling.send(&Packet::udp(ends, 31_000, 9, MARK).bytes())?;
        }
    }
    sibling.send(&claim(guest_mac(2), guest_mac(2), &guest_address(1))?)?;
    ensure!(!hears_claim(&victim, &guest_address(1))?, "guest 1 hears the claim of its address");
    let is_marked = |body: &[u8]| body.windows(MARK.len()).any(|bytes| bytes == MARK);
    for (at, who) in [(&victim, "guest 1"), (&router, "the router"), (&host, "the host")] {
        let heard = at.collect(A_WHILE, |packet| is_marked(&packet.body));
        ensure!(heard.is_empty(), "{who} hears {:?}", heard.first());
    }
    let dropped = lab.counter("unbound_source")?.saturating_sub(before);
    ensure!(dropped >= 13, "only {dropped} frames were dropped for their source");
    ensure!(at_port(lab, 1)?, "{}", row(lab, &guest_address(1))?);
    Ok(())
}

/// A strict network, and nobody gives leases: 1. what cannot be bound is refused; 2. a guest is silent until it is bound; 3. bound to the
/// sibling's port it is silent again; 4. bound to its own it is not; 5. unbound it is.
fn a_guest_without_dhcp_is_bound_by_hand(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up_with(hook, &["--strict-leases"])?;
    let (address, mac) = (guest_address(1), mac(1));
    for (wrong, why) in [
        (&["10.1.2.3", mac.as_str()][..], "it is in no network of this instance"),
        (&[GATEWAY, mac.as_str()], "it is the host's own"),
        (&[address.as_str(), mac.as_str(), "--port", "vnet9"], "virbr0 has no port vnet9"),
        (&[address.as_str(), "ff:ff:ff:ff:ff:ff"], "is no MAC of a guest"),
    ] {
        let error = lab.vmnat_refused(&[&["leases", "bind"], wrong].concat())?;
        ensure!(error.contains(why), "{error}");
    }
    let ports = Cell::new(31_000_u16);
    // From a port of its own each time: an answer may come late.
    let answered = || {
        ports.set(ports.get().saturating_add(1));
        Asker::new(lab.guest(1)?, ports.get())?.ask_within(SERVER_ECHO, 8, A_WHILE)
    };
    // Its own kernel has given up on the gateway, and takes a moment to ask again.
    let is_back = |what| wait_until(what, PATIENCE, || Ok(answered().is_ok()));
    client::must_fail("a guest that nobody knows", answered())?;
    lab.vmnat_ok(&["leases", "bind", &address, &mac])?;
    is_back("a guest that was bound")?;
    ensure!(fact(&lab, &address, "source")? == "bound");
    lab.vmnat_ok(&["leases", "bind", &address, &mac, "--port", "vnet2"])?;
    client::must_fail("a guest at another port than its own", answered())?;
    lab.vmnat_ok(&["leases", "bind", &address, &mac, "--port", "vnet1"])?;
    is_back("a guest at its port")?;
    ensure!(fact(&lab, &address, "port_source")? == "bound");
    lab.vmnat_ok(&["leases", "unbind", &address])?;
    client::must_fail("a guest that is bound no more", answered())?;
    lab.vmnat_refused(&["leases", "unbind", &address])?;
    lab.assert_sound_but_for_invalid_packets()
}
