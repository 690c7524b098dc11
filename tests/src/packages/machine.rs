//! The machine: booted, spoken to, rebooted; gone with its value.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

pub use super::console::Output;
use super::{
    console::{self, Console},
    image,
};
use crate::boot::{self, Kernel};

/// Where the trees of distributions lie, by suite.
const TREES: &str = "VMNAT_HOSTS_DIR";
/// Where their kernels lie, by suite.
const KERNELS: &str = "VMNAT_HOST_KERNELS_DIR";

/// Drivers of the machine's disks and of its shell; the root brings all others.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_console", "ext4"];

/// Booting takes a minute of two quiet cores, and a share of busy ones can be a tenth.
const BOOT: Duration = Duration::from_mins(15);
/// No command takes longer.
const PATIENCE: Duration = Duration::from_mins(10);
/// How many times slower than a quiet machine one may be.
const SLOWNESS: u32 = 5;

/// What the machine does not need, and an emulated one would wait for. Those that a test wants it unmasks.
const MASKED: [&str; 16] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "containerd.service",
    "docker.service",
    "docker.socket",
    "firewalld.service",
    "fstrim.timer",
    "getty@tty1.service",
    "libvirt-guests.service",
    "libvirtd.service",
    "libvirtd.socket",
    "libvirtd-ro.socket",
    "libvirtd-admin.socket",
    "serial-getty@ttyS0.service",
    "systemd-networkd-wait-online.service",
    "ufw.service",
];

/// Mounts the disks, makes the shell a service, and becomes systemd.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev
for module in /mod/*.ko; do $b insmod "$module"; done
$b mkdir -p /root; $b mount -t ext4 /dev/vda /root
$b mkdir -p /root/lib/modules /root/stage
$b mount -t ext4 -o ro /dev/vdb /root/lib/modules; $b mount -t ext4 -o ro /dev/vdc /root/stage
if ! [ -e /root/etc/shell.sh ]; then
  $b cp /shell.sh /root/etc/shell.sh; $b cp /shell.service /root/etc/systemd/system/shell.service
  $b mkdir -p /root/etc/systemd/system/sysinit.target.wants
  $b ln -s ../shell.service /root/etc/systemd/system/sysinit.target.wants/shell.service
  for unit in $MASKED; do $b ln -sf /dev/null "/root/etc/systemd/system/$unit"; done
  echo vmhost >/root/etc/hostname; echo '127.0.0.1 localhost vmhost' >/root/etc/hosts
  : >/root/etc/fstab
fi
$b umount /sys; $b umount /proc; $b mount --move /dev /root/dev
exec $b switch_root /root /lib/systemd/systemd
"#;

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    console: Console,
    folder: PathBuf,
}

impl Machine {
    /// Boots a distribution with its own kernel; `stage` is at `/stage` in it, to be read.
    ///
    /// # Errors
    ///
    /// When something to boot is missing; the message says which and how to get it.
    pub fn boot(suite: &str, stage: &Path) -> Result<Self> {
        let folder = env::temp_dir().join(format!("vmnat-{suite}-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let place = |variable: &str| {
            let folder = env::var_os(variable).map(|all| PathBuf::from(all).join(suite));
            let hint =
                || format!("no {suite} to boot: {variable} is unset or lacks it; see `./dev test packages`");
            folder.filter(|folder| folder.is_dir()).with_context(hint)
        };
        let (tree, kernels) = (place(TREES)?, place(KERNELS)?);
        let kernel = Kernel::below(&kernels, &MODULES)?;
        let root = image::kept(&tree, 2_048)?;
        let modules = image::kept(&kernels.join("lib/modules"), 512)?;
        let staged = folder.join("stage.ext4");
        image::make(&staged, stage, 128)?;
        let mut archive = boot::initramfs(&kernel, &INIT.replace("$MASKED", &MASKED.join(" ")))?;
        archive.folder("root");
        archive.file("shell.sh", 0o755, console::SHELL.as_bytes());
        archive.file("shell.service", 0o644, console::UNIT.as_bytes());
        fs::write(folder.join("initramfs"), archive.finish())?;
        let qemu = start(&folder, &kernel.image, [&root, &modules, &staged])?;
        let console = Console::connect(&folder.join("shell"), Duration::from_secs(20));
        let mut machine = Self { qemu, console: console?, folder };
        machine.await_boot()?;
        Ok(machine)
    }

    fn await_boot(&mut self) -> Result<()> {
        let booted = self.console.await_boot(BOOT);
        booted.with_context(|| format!("all it said:\n{}", self.said()))
    }

    /// Runs a command by bash, and returns what it came to.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn try_run(&mut self, command: &str) -> Result<Output> {
        self.try_run_within(PATIENCE, command)
    }

    fn try_run_within(&mut self, patience: Duration, command: &str) -> Result<Output> {
        let since = Instant::now();
        let output = self.console.run(command, patience).with_context(|| self.said())?;
        println!("# {command}\n{}[{}, {} ms]", output.text, output.code, since.elapsed().as_millis());
        Ok(output)
    }

    /// Runs a command that must succeed, and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it fails; the message has what it printed.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.try_run(command)?.well(command)
    }

    /// Boots again, with the disks as they are.
    ///
    /// # Errors
    ///
    /// When it does not come up.
    pub fn reboot(&mut self) -> Result<()> {
        self.run("systemctl reboot --no-block")?;
        self.await_boot()
    }

    /// Waits until a command succeeds, which takes less than `seconds` on a quiet machine.
    ///
    /// # Errors
    ///
    /// When it does not; the message has what it printed last.
    pub fn wait_for(&mut self, seconds: u32, command: &str) -> Result<String> {
        let seconds = seconds.saturating_mul(SLOWNESS);
        let patience = PATIENCE.saturating_add(Duration::from_secs(seconds.into()));
        let patiently = format!(
            "end=$((SECONDS + {seconds})); until said=$({command}); do \
             [ $SECONDS -lt $end ] || {{ echo \"$said\"; exit 1; }}; sleep 0.2; done; echo \"$said\""
        );
        self.try_run_within(patience, &patiently)?.well(command)
    }

    /// All that it has written to its serial console.
    #[must_use]
    pub fn said(&self) -> String {
        let said = fs::read(self.folder.join("serial")).unwrap_or_default();
        String::from_utf8_lossy(&said).replace('\r', "")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn start(folder: &Path, kernel: &Path, disks: [&Path; 3]) -> Result<Child> {
    let at = |name: &str| folder.join(name).display().to_string();
    // A test that is killed takes its machine along.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    // QEMU 7.2 computes the flags after `cmpxchg16b` from what is not there yet, and an interrupt there faults twice.
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-smp", "2", "-m", "1536"]);
    qemu.args(["-nodefaults", "-display", "none", "-serial", &format!("file:{}", at("serial"))]);
    qemu.arg("-kernel").arg(kernel).args(["-initrd", &at("initramfs")]);
    // A busy machine emulates the timer too late for the kernel's check of it.
    let arguments = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check net.ifnames=0";
    qemu.args(["-append", arguments]);
    for disk in disks {
        // Writes go to a file without a name: they outlive a reboot of the machine, and not the machine.
        qemu.args(["-drive", &format!("file={},format=raw,snapshot=on,if=virtio", disk.display())]);
    }
    qemu.args(["-chardev", &format!("socket,id=shell,path={},server=on,wait=off", at("shell"))]);
    qemu.args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=shell"]);
    qemu.env("TMPDIR", folder).stdin(Stdio::null()).stdout(Stdio::null());
    qemu.spawn().context("qemu-system-x86_64: `apt-get install qemu-system-x86`")
}
