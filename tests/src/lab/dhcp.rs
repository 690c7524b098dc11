//! A guest that asks for its address: busybox's client, and what it was given.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context, Result};

use super::{
    Lab,
    namespace::{Namespace, Process},
};

/// What the client runs when something has happened: it writes down what it was told, and takes the address.
const SCRIPT: &str = r#"#!/bin/sh
case "$1" in bound|renew) ;; *) exit 0 ;; esac
env | sed "s/^/$1 /" > "$OUT.next"
mv "$OUT.next" "$OUT.$1"
busybox ip address flush dev "$interface"
busybox ip address add "$ip/$mask" dev "$interface"
busybox ip route add default via "$router"
"#;

const PROGRAM: &str = "/run/udhcpc.script";

/// What a client was told, by the names of udhcpc's script: `ip`, `router`, `dns`, `domain`, `lease`, `serverid`.
#[derive(Clone, Debug)]
pub struct Told(BTreeMap<String, String>);

impl Told {
    /// A value; empty where there is none.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn read(text: &str) -> Self {
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ')?.1.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        Self(text.lines().filter_map(pair).collect())
    }
}

/// Takes a guest's address, so that it has none until it is given one.
///
/// # Errors
///
/// When a command fails.
pub fn forget_address(guest: &Namespace) -> Result<()> {
    guest.ip("address flush dev eth0\n")
}

/// Asks for an address once, and takes it; `further` are options of udhcpc.
///
/// # Errors
///
/// When none is given within eight seconds.
pub fn ask(guest: &Namespace, further: &[&str]) -> Result<Told> {
    let (command, out) = prepare(guest, &[further, &["-n", "-q"]].concat())?;
    guest.exec(&command.iter().map(String::as_str).collect::<Vec<_>>())?;
    told(&out, "bound")
}

/// A client that keeps its address.
#[derive(Debug)]
pub struct Client {
    process: Process,
    out: String,
}

impl Client {
    /// Starts it, with options of udhcpc; it releases its address when it is told to end.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(guest: &Namespace, further: &[&str]) -> Result<Self> {
        let (mut command, out) = prepare(guest, further)?;
        command.push("-R".to_owned());
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        Ok(Self { process: guest.start(&command)?, out })
    }

    /// What it was told last, at its beginning (`bound`) or since (`renew`).
    #[must_use]
    pub fn told(&self, event: &str) -> Option<Told> {
        told(&self.out, event).ok()
    }

    /// Sends it a signal: SIGUSR1 renews, SIGTERM releases.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        let process = nix::unistd::Pid::from_raw(i32::try_from(self.process.id())?);
        nix::sys::signal::kill(process, signal).context("the client has ended")
    }
}

fn prepare(guest: &Namespace, further: &[&str]) -> Result<(Vec<String>, String)> {
    fs::write(PROGRAM, SCRIPT)?;
    fs::set_permissions(PROGRAM, fs::Permissions::from_mode(0o755))?;
    let out = format!("/run/udhcpc.{}", guest.name());
    for event in ["bound", "renew"] {
        fs::remove_file(format!("{out}.{event}")).ok();
    }
    let own = format!("OUT={out}");
    let words = ["env", &own, "busybox", "udhcpc", "-f", "-i", "eth0", "-t", "8", "-T", "1", "-s", PROGRAM];
    Ok((words.iter().chain(further).map(|&word| word.to_owned()).collect(), out))
}

fn told(out: &str, event: &str) -> Result<Told> {
    let path = format!("{out}.{event}");
    Ok(Told::read(&fs::read_to_string(&path).with_context(|| format!("nothing in {path}"))?))
}

/// Says that libvirt runs a network with DHCP on the lab's bridge; guest 2 always gets `.77` and the name `web`.
///
/// # Errors
///
/// When the file cannot be written.
pub fn define_network(_lab: &Lab) -> Result<()> {
    let folder = Path::new("/run/libvirt/network");
    fs::create_dir_all(folder)?;
    let text = "<networkstatus><network><name>default</name><forward mode='nat'/>\
                <bridge name='virbr0' stp='on' delay='0'/><domain name='lab.test'/>\
                <ip address='192.168.122.1' netmask='255.255.255.0'><dhcp>\
                <range start='192.168.122.100' end='192.168.122.199'><lease expiry='20' unit='minutes'/></range>\
                <host mac='52:54:00:00:00:11' name='web' ip='192.168.122.77'/>\
                </dhcp></ip></network></networkstatus>";
    Ok(fs::write(folder.join("default.xml"), text)?)
}
