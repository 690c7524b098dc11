//! Machines in QEMU without KVM, on a distribution's kernel: a real guest, one with real servers, and a host of its own.

pub mod fresh;
mod init;
mod login;
mod server;
pub mod software;
pub mod worker;

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    boot::{self, Archive, Kernel},
    lab::{Lab, SERVER, namespace::Process, service, vmnat},
};
pub use login::Login;

/// The guest's address.
pub const ADDRESS: &str = "192.168.122.20";
/// The name that the guest asks the resolver for.
pub const QUESTION: &str = "whoami.lab";

const MAC: &str = "52:54:00:00:00:20";
/// Its tap, which stays when the guest ends.
pub const TAP: &str = "vnet9";
const FOLDER: &str = "/run/vm";
const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];
/// What a VM host of the tests needs of its kernel.
const HOST_MODULES: [&str; 4] = ["bridge", "veth", "sch_ingress", "cls_bpf"];
const DOWNLOAD: usize = 4_000_000;
/// Size of the file that the guest serves as `/bytes`.
pub const SERVED: usize = 4_000_000;

/// A running machine; it is switched off when the value goes.
#[derive(Debug)]
pub struct VirtualMachine {
    qemu: Process,
}

impl VirtualMachine {
    /// Starts the guest on a tap in the lab's bridge.
    ///
    /// # Errors
    ///
    /// When QEMU, busybox or a kernel is missing; the message says which and how to get it.
    pub fn start(lab: &Lab) -> Result<Self> {
        let kernel = Kernel::find(&MODULES)?;
        let archive = boot::initramfs(&kernel, &init::caller())?;
        boot_guest(lab, &kernel, archive)
    }

    /// Starts the guest with nginx on port 80 and sshd on port 22, which lets `login` in.
    ///
    /// # Errors
    ///
    /// As [`VirtualMachine::start`], and when the servers are missing.
    pub fn start_server(lab: &Lab, login: &Login) -> Result<Self> {
        let kernel = Kernel::find(&MODULES)?;
        let mut archive = boot::initramfs(&kernel, &init::server())?;
        server::install(&mut archive, login)?;
        boot_guest(lab, &kernel, archive)
    }

    /// Starts a machine that is a VM host of its own: bridge, guest and world in its namespaces, on the distribution's
    /// kernel.
    ///
    /// # Errors
    ///
    /// As [`VirtualMachine::start`].
    pub fn start_host(lab: &Lab) -> Result<Self> {
        let kernel = Kernel::find(&HOST_MODULES)?;
        let mut archive = boot::initramfs(&kernel, init::HOST)?;
        archive.program("sbin/vmnat", &vmnat::program()?)?;
        let ip = ["/sbin/ip", "/usr/sbin/ip", "/bin/ip", "/usr/bin/ip"].into_iter().map(Path::new);
        let ip = ip.into_iter().find(|path| path.is_file()).context("no ip: `apt-get install iproute2`")?;
        archive.program("sbin/ip", ip)?;
        archive.file("www/bytes", 0o644, &service::content(DOWNLOAD));
        // Preallocated maps take a hundred megabytes and a few.
        boot_machine(lab, &kernel, archive, &kernel_arguments(), &["-m", "1024"])
    }

    /// Waits until the guest has reported everything, and returns its lines.
    ///
    /// # Errors
    ///
    /// When it does not finish within `patience`, or reports a failure.
    pub fn reports(&mut self, patience: Duration) -> Result<Vec<String>> {
        let lines = self.lines(patience)?;
        let failed: Vec<_> = lines.iter().filter(|line| line.contains(" FAIL")).collect();
        ensure!(failed.is_empty(), "the guest reports {failed:?}; all it said:\n{}", self.said());
        Ok(lines)
    }

    /// Waits until the guest has reported everything, whatever it reports.
    fn lines(&mut self, patience: Duration) -> Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        loop {
            let said = self.said();
            if said.contains("vm:done") {
                return Ok(said.lines().filter(|line| line.starts_with("vm:")).map(Into::into).collect());
            }
            let why = if self.qemu.is_running() { "is not done yet" } else { "has ended early" };
            ensure!(
                self.qemu.is_running() && Instant::now() < deadline,
                "the guest {why}; all it said:\n{said}"
            );
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// All that the machine has written to its console.
    #[must_use]
    pub fn said(&self) -> String {
        let said = fs::read(serial()).unwrap_or_default();
        String::from_utf8_lossy(&said).replace('\r', "")
    }
}

/// Boots a guest on a tap in the lab's bridge, with the files that it serves.
fn boot_guest(lab: &Lab, kernel: &Kernel, archive: Archive) -> Result<VirtualMachine> {
    boot_guest_with(lab, kernel, archive, &[])
}

/// The same with further devices.
fn boot_guest_with(
    lab: &Lab,
    kernel: &Kernel,
    mut archive: Archive,
    devices: &[&str],
) -> Result<VirtualMachine> {
    archive.file("www/index.html", 0o644, b"served by the guest\n");
    archive.file("www/bytes", 0o644, &service::content(SERVED));
    // A host that is a machine of its own has no QEMU.
    let host = lab.host.outside();
    host.exec(&["ip", "tuntap", "add", TAP, "mode", "tap", "vnet_hdr"])
        .context("a tap needs /dev/net/tun")?;
    host.exec(&["ip", "link", "set", TAP, "master", "virbr0", "up"])?;
    let arguments = kernel_arguments();
    let network = format!("tap,id=n,ifname={TAP},script=no,downscript=no");
    let device = format!("virtio-net-pci,netdev=n,mac={MAC},romfile=");
    let usual = ["-m", "256", "-netdev", &network, "-device", &device];
    boot_machine(lab, kernel, archive, &arguments, &[&usual, devices].concat())
}

fn boot_machine(
    lab: &Lab,
    kernel: &Kernel,
    archive: Archive,
    arguments: &str,
    further: &[&str],
) -> Result<VirtualMachine> {
    fs::create_dir_all(FOLDER)?;
    let initramfs = format!("{FOLDER}/initramfs");
    fs::write(&initramfs, archive.finish())?;
    // What the guest before has said is not this one's.
    fs::remove_file(serial()).ok();
    let image = kernel.image.to_str().context("a path that is no text")?;
    let serial = format!("file:{}", serial().display());
    let machine = ["-accel", "tcg", "-cpu", "max", "-nodefaults", "-no-reboot", "-display", "none"];
    let boot = ["-serial", &serial, "-kernel", image, "-initrd", &initramfs, "-append", arguments];
    let command = [&["qemu-system-x86_64"], &machine[..], &boot[..], further].concat();
    let qemu =
        lab.host.outside().start(&command).context("install it with `apt-get install qemu-system-x86`")?;
    Ok(VirtualMachine { qemu })
}

fn serial() -> PathBuf {
    Path::new(FOLDER).join("serial")
}

fn kernel_arguments() -> String {
    let hash = service::sha256(&service::content(DOWNLOAD));
    // What the kernel does not know it hands to init as environment variables.
    let facts = [
        ("ADDRESS", ADDRESS),
        ("GATEWAY", crate::lab::GATEWAY),
        ("SERVER", SERVER),
        ("RESOLVER", crate::lab::RESOLVER),
        ("EXTERNAL", crate::lab::EXTERNAL),
        ("SIBLING", &crate::lab::guest_address(1)),
        ("QUESTION", QUESTION),
        ("SIZE", &DOWNLOAD.to_string()),
        ("HASH", &hash),
    ];
    let facts = facts.map(|(name, value)| format!("LAB_{name}={value}")).join(" ");
    format!("console=ttyS0 quiet panic=-1 mitigations=off {facts}")
}
