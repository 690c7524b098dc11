//! A lab whose VM host is a machine of its own, with guests' networks that its software makes.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use anyhow::{Context, Result};

use super::{
    Tree,
    machine::{Machine, Trace},
};
use crate::lab::{
    Lab, RESOLVER, Setup, client, guest_mac,
    namespace::{Namespace, Process},
    wait_until, written,
};

/// What a DHCP client runs with what it was given: it prints it. In the lab's own `/run`, which is in memory.
pub(super) const PRINT_LEASE: &str = "/run/print-lease";

/// A network of guests.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Its bridge.
    pub bridge: &'static str,
    /// The first three numbers of its addresses.
    pub prefix: &'static str,
    /// The last numbers of its two guests' addresses.
    pub guests: [u8; 2],
}

impl Network {
    /// What libvirt calls `default`.
    pub const DEFAULT: Self = Self { bridge: "virbr0", prefix: "192.168.122", guests: [10, 11] };
    /// A second one beside it.
    pub const SECOND: Self = Self { bridge: "virbr1", prefix: "192.168.100", guests: [10, 11] };
    /// That of a well-known guide to nftables and systemd-networkd, with its web server at .200.
    pub const GUIDE: Self = Self { bridge: "virbr0", prefix: "10.10.0", guests: [29, 200] };

    /// The guests' gateway.
    #[must_use]
    pub fn gateway(&self) -> String {
        format!("{}.1", self.prefix)
    }

    /// The network in CIDR notation.
    #[must_use]
    pub fn cidr(&self) -> String {
        format!("{}.0/24", self.prefix)
    }

    /// The address of its first guest, or of its second, which serves the world.
    #[must_use]
    pub fn address(&self, second: bool) -> String {
        let [first, other] = self.guests;
        format!("{}.{}", self.prefix, if second { other } else { first })
    }
}

/// The guests of a network: two with addresses of their own, and one that is yet to get one.
#[derive(Debug)]
pub struct Guests {
    /// Where they are.
    pub network: Network,
    /// The number of its first guest among those of the lab, counted from 1.
    pub first: usize,
    /// A guest without an address.
    pub newcomer: Namespace,
    ports: Vec<String>,
}

/// A program of the machine that keeps running.
#[derive(Debug)]
struct Daemon {
    name: &'static str,
    process: Process,
    log: String,
}

/// A VM host with its software, between its guests and the world.
#[derive(Debug)]
pub struct Stage {
    // Fields go in this order: a machine ends when its daemons have been waited for.
    daemons: Vec<Daemon>,
    machine: Machine,
    /// The namespaces around it; `lab.host` runs its commands in the machine.
    pub lab: Lab,
    /// Its networks.
    pub networks: Vec<Guests>,
    /// Whether Docker runs a container with a published port.
    pub has_container: bool,
    is_sound: bool,
}

impl Stage {
    /// A machine with the files of `tree`, an uplink, and guests' ports that are in no bridge yet.
    ///
    /// # Errors
    ///
    /// When the tree is missing, or the machine that runs the test lacks something.
    pub fn new(tree: Tree, networks: &[Network]) -> Result<Self> {
        Self::with_library(tree, None, networks)
    }

    /// Like [`Stage::new`], with all programs using the C library of a newer tree.
    ///
    /// # Errors
    ///
    /// As [`Stage::new`].
    pub fn with_library(tree: Tree, lender: Option<Tree>, networks: &[Network]) -> Result<Self> {
        let mut lab = Lab::with(Setup { guests: 0, bridge: false, ..Setup::default() })?;
        let lender = lender.map(Tree::folder).transpose()?;
        let machine = Machine::boot_with(&lab.host, &tree.folder()?, lender.as_deref())?;
        lab.host = machine.enter(&lab.host);
        fs::write(lab.host.file("/etc/resolv.conf"), format!("nameserver {RESOLVER}\n"))?;
        fs::write(PRINT_LEASE, "#!/bin/sh\nexec env\n")?;
        fs::set_permissions(PRINT_LEASE, fs::Permissions::from_mode(0o755))?;
        // Without one, networkd has no identity to ask for leases with.
        fs::write(lab.host.file("/etc/machine-id"), "5266bd4d0b8a4c7f9d0f6e3f3c7e2a10\n")?;
        let mut stage = Self {
            machine,
            daemons: Vec::new(),
            lab,
            networks: Vec::new(),
            has_container: false,
            is_sound: false,
        };
        for network in networks {
            stage.add_guests(*network)?;
        }
        Ok(stage)
    }

    fn add_guests(&mut self, network: Network) -> Result<()> {
        let first = self.lab.guests.len() + 1;
        let mut ports = Vec::new();
        for (number, second) in [(first, false), (first + 1, true)] {
            let guest = Namespace::new(&format!("guest{number}"))?;
            let port = format!("vnet{}", ports.len() + self.networks.len() * 3 + 1);
            self.connect(&guest, &port, number)?;
            let address = network.address(second);
            guest.ip(&format!(
                "address add {address}/24 dev eth0\n\
                 route add default via {}\n",
                network.gateway()
            ))?;
            self.lab.take_in(guest, &address)?;
            ports.push(port);
        }
        let newcomer = Namespace::new("newcomer")?;
        let port = format!("vnet{}", self.networks.len() * 3 + 3);
        self.connect(&newcomer, &port, 100 + first)?;
        ports.push(port);
        self.networks.push(Guests { network, first, newcomer, ports });
        Ok(())
    }

    fn connect(&self, guest: &Namespace, port: &str, number: usize) -> Result<()> {
        self.lab.host.outside().ip(&format!(
            "link add {port} type veth peer name eth0 address {} netns {}\n\
             link set {port} up\n",
            written(guest_mac(number)),
            guest.path(),
        ))?;
        guest.ip("link set lo up\nlink set eth0 up\n")
    }

    /// What its machine has of the one that runs the test.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.machine.trace()
    }

    /// Puts the guests' ports into their bridges, as whoever starts them would.
    ///
    /// # Errors
    ///
    /// When a bridge does not exist.
    pub fn plug(&self) -> Result<()> {
        for Guests { network, ports, .. } in &self.networks {
            let batch = ports.iter().map(|port| format!("link set {port} master {}\n", network.bridge));
            self.lab.host.outside().ip(&batch.collect::<String>())?;
        }
        Ok(())
    }

    /// Waits until the guests reach their gateways over the bridges, or `patience` is over: some firewalls let no ping in.
    pub fn settle(&self, patience: Duration) {
        for Guests { network, first, .. } in &self.networks {
            let reached = || {
                let guest = self.lab.guest(*first)?;
                let attempt = client::ping_as(guest, 7, &network.gateway(), Duration::from_millis(300));
                Ok(attempt.is_ok())
            };
            wait_until("the gateway answers", patience, reached).ok();
        }
    }

    /// The network of the first bridge.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn network(&self) -> Result<Network> {
        Ok(self.networks.first().context("a stage without a network")?.network)
    }

    /// Runs a command in the machine and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it fails; the message holds what it wrote to standard error.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        self.lab.host.exec(command)
    }

    /// Writes a file of the machine, and the folders above it.
    ///
    /// # Errors
    ///
    /// When that is not possible.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let file = self.lab.host.file(path);
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("the folder of {path} in the machine"))?;
        }
        fs::write(&file, text).with_context(|| format!("{path} in the machine"))
    }

    /// Adds lines to a file of the machine.
    ///
    /// # Errors
    ///
    /// When that is not possible.
    pub fn append(&self, path: &str, text: &str) -> Result<()> {
        let file = File::options().append(true).create(true).open(self.lab.host.file(path));
        let mut file = file.with_context(|| format!("{path} in the machine"))?;
        Ok(file.write_all(text.as_bytes())?)
    }

    /// Starts a program that keeps running, and waits until `ready` succeeds in the machine.
    ///
    /// # Errors
    ///
    /// When it ends, or is not ready in time; the message holds the end of what it printed.
    pub fn daemon(&mut self, name: &'static str, command: &[&str], ready: &[&str]) -> Result<()> {
        let log = format!("/var/log/{name}.log");
        let file = File::create(self.lab.host.file(&log)).context("a log in the machine")?;
        let mut process = self.lab.host.start_logged(command, file)?;
        let is_ready = || {
            anyhow::ensure!(process.is_running(), "{name} has ended");
            Ok(self.lab.host.output(ready, "")?.status.success())
        };
        let waited = wait_until(&format!("{name} is ready"), Duration::from_secs(40), is_ready);
        self.daemons.push(Daemon { name, process, log });
        waited.with_context(|| self.log_of(name))
    }

    /// Ends a daemon as a service manager does, and waits for it.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        let at = self.daemons.iter().position(|daemon| daemon.name == name);
        let mut daemon = self.daemons.remove(at.with_context(|| format!("no daemon {name} runs"))?);
        let process = nix::unistd::Pid::from_raw(daemon.process.id().cast_signed());
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM)?;
        wait_until(&format!("{name} has ended"), Duration::from_secs(20), || Ok(!daemon.process.is_running()))
    }

    /// The end of what a daemon has printed.
    #[must_use]
    pub fn log_of(&self, name: &str) -> String {
        let log = self.daemons.iter().find(|daemon| daemon.name == name).map(|daemon| &daemon.log);
        let text = log.and_then(|log| fs::read(self.lab.host.file(log)).ok()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let end = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default();
        format!("the end of {name}'s log:\n{}", end.join("\n"))
    }

    /// Brings vmnat up on all bridges and forwards port 80, as its operator would.
    ///
    /// # Errors
    ///
    /// When vmnat fails.
    pub fn bring_up(&self) -> Result<()> {
        self.bring_up_with(&[])
    }

    /// Like [`Stage::bring_up`], with further options.
    ///
    /// # Errors
    ///
    /// When vmnat fails.
    pub fn bring_up_with(&self, options: &[&str]) -> Result<()> {
        let bridges = self.networks.iter().flat_map(|guests| ["--bridge", guests.network.bridge]);
        let arguments: Vec<&str> = ["up"].into_iter().chain(bridges).chain(["--uplink", "enp3s0"]).collect();
        self.lab.vmnat_ok(&[&arguments, options].concat())?;
        let server = self.network()?.address(true);
        self.lab.vmnat_ok(&["dnat", "add", &format!("80:{server}:80")])?;
        Ok(())
    }

    /// Says that the stage has done its work, so that its end is no occasion for a dump.
    pub fn keep_quiet(&mut self) {
        self.is_sound = true;
        self.lab.keep_quiet();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.is_sound {
            return;
        }
        for name in self.daemons.iter().map(|daemon| daemon.name) {
            eprintln!("--- {}", self.log_of(name));
        }
        for command in [&["nft", "list", "ruleset"][..], &["ip", "-br", "address"], &["ps", "-e"]] {
            let printed = self.run(command).unwrap_or_else(|error| format!("{error:#}"));
            eprintln!("--- {}\n{printed}", command.join(" "));
        }
        // The lab's own end says what vmnat knows; the machine must live until then.
        eprintln!("{}", self.lab.describe());
        self.lab.keep_quiet();
    }
}
