//! Machines in QEMU without KVM, on a distribution's kernel: a real guest, and a host of its own.

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

/// The guest's address.
pub const ADDRESS: &str = "192.168.122.20";
/// The name that the guest asks the resolver for.
pub const QUESTION: &str = "whoami.lab";

const MAC: &str = "52:54:00:00:00:20";
const TAP: &str = "vnet9";
const FOLDER: &str = "/run/vm";
const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];
/// What a VM host of the tests needs of its kernel.
const HOST_MODULES: [&str; 4] = ["bridge", "veth", "sch_ingress", "cls_bpf"];
const DOWNLOAD: usize = 4_000_000;
/// Size of the file that the guest serves as `/bytes`.
pub const SERVED: usize = 1_000_000;

/// A running machine; it is switched off when the value goes.
#[derive(Debug)]
pub struct VirtualMachine {
    qemu: Process,
}

/// The guest's init. Each line it reports is `vm:NAME ok|FAIL DETAIL`.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
for module in /mod/*.ko; do insmod "$module"; done
ip link set lo up; ip link set eth0 up
ip addr add $LAB_ADDRESS/24 dev eth0; ip route add default via $LAB_GATEWAY
httpd -p 80 -h /www
report() { name=$1; shift; if out=$("$@" 2>&1); then echo "vm:$name ok $out"; else echo "vm:$name FAIL $out"; fi; }
quiet() { "$@" >/dev/null; }
hash() { sum=$(wget -q -O - "http://$LAB_SERVER/bytes/$LAB_SIZE" | sha256sum); echo "$sum"; [ "${sum%% *}" = "$LAB_HASH" ]; }
query() { answer=$(nslookup -type=a "$LAB_QUESTION" "$LAB_RESOLVER" | awk '/^Address/{a=$NF} END{print a}'); echo "$answer"; [ "$answer" = "$LAB_EXTERNAL" ]; }
report ping quiet ping -q -c 3 -w 10 $LAB_SERVER
report download hash
report query query
echo "vm:done ok"
while :; do sleep 60; done
"#;

/// The host's init: bridge, guest and world in namespaces, nothing forwarded, then vmnat.
const HOST_INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/sbin:/bin
# This shell prefers its own applets to what PATH names.
ip() { /sbin/ip "$@"; }
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null; mount -t tmpfs run /run
mkdir /var; ln -s /run /var/run
for module in /mod/*.ko; do insmod "$module"; done
report() { name=$1; shift; if out=$("$@" 2>&1); then say=ok; else say=FAIL; fi; echo "vm:$name $say $(echo $out)"; }
guest() { nsenter --net=/run/netns/guest "$@"; }
world() { nsenter --net=/run/netns/world "$@"; }
ip link set lo up; ip netns add guest; ip netns add world
ip link add virbr0 type bridge; ip addr add 192.168.122.1/24 dev virbr0; ip link set virbr0 up
ip link add vnet1 type veth peer name eth0 netns guest; ip link set vnet1 master virbr0 up
ip link add enp3s0 type veth peer name eth0 netns world
ip addr add 203.0.113.2/24 dev enp3s0; ip link set enp3s0 up; ip route add default via 203.0.113.1
guest /sbin/ip addr add 192.168.122.10/24 dev eth0; guest /sbin/ip link set eth0 up; guest /sbin/ip route add default via 192.168.122.1
world /sbin/ip addr add 203.0.113.1/24 dev eth0; world /sbin/ip link set eth0 up
world httpd -p 80 -h /www; guest httpd -p 80 -h /www
cut_off() { ! guest ping -q -c 1 -w 1 203.0.113.1; }
hash() { sum=$("$1" wget -q -O - "$2" | sha256sum); echo "$sum"; [ "${sum%% *}" = "$LAB_HASH" ]; }
left_as_found() { [ ! -e /sys/fs/bpf/vmnat ] && [ "$(cat /proc/sys/net/ipv4/conf/virbr0/forwarding)" = 0 ]; }
report kernel uname -r
report gateway guest ping -q -c 1 -w 5 192.168.122.1
report control cut_off
report up vmnat up --bridge virbr0 --uplink enp3s0
report dnat vmnat dnat add 8080:192.168.122.10:80
report ping guest ping -q -c 3 -w 10 203.0.113.1
report download hash guest http://203.0.113.1/bytes
report forward hash world http://203.0.113.2:8080/bytes
report status vmnat status
report down vmnat down
report left left_as_found
echo "vm:done ok"
while :; do sleep 60; done
"#;

impl VirtualMachine {
    /// Starts the guest on a tap in the lab's bridge.
    ///
    /// # Errors
    ///
    /// When QEMU, busybox or a kernel is missing; the message says which and how to get it.
    pub fn start(lab: &Lab) -> Result<Self> {
        let kernel = Kernel::find(&MODULES)?;
        let mut archive = boot::initramfs(&kernel, INIT)?;
        archive.file("www/index.html", 0o644, b"served by the guest\n");
        archive.file("www/bytes", 0o644, &service::content(SERVED));
        lab.host
            .exec(&["ip", "tuntap", "add", TAP, "mode", "tap", "vnet_hdr"])
            .context("a tap needs /dev/net/tun")?;
        lab.host.exec(&["ip", "link", "set", TAP, "master", "virbr0", "up"])?;
        let arguments = kernel_arguments();
        let network = format!("tap,id=n,ifname={TAP},script=no,downscript=no");
        let device = format!("virtio-net-pci,netdev=n,mac={MAC},romfile=");
        boot_machine(
            lab,
            &kernel,
            archive,
            &arguments,
            &["-m", "256", "-netdev", &network, "-device", &device],
        )
    }

    /// Starts a machine that is a VM host of its own: bridge, guest and world in its namespaces, on the distribution's
    /// kernel.
    ///
    /// # Errors
    ///
    /// As [`VirtualMachine::start`].
    pub fn start_host(lab: &Lab) -> Result<Self> {
        let kernel = Kernel::find(&HOST_MODULES)?;
        let mut archive = boot::initramfs(&kernel, HOST_INIT)?;
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
        let deadline = Instant::now() + patience;
        loop {
            let said = fs::read(serial()).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).replace('\r', "");
            if said.contains("vm:done") {
                let lines: Vec<String> =
                    said.lines().filter(|line| line.starts_with("vm:")).map(Into::into).collect();
                let failed: Vec<_> = lines.iter().filter(|line| line.contains(" FAIL")).collect();
                ensure!(failed.is_empty(), "the guest reports {failed:?}; all it said:\n{said}");
                return Ok(lines);
            }
            let why = if self.qemu.is_running() { "is not done yet" } else { "has ended early" };
            ensure!(
                self.qemu.is_running() && Instant::now() < deadline,
                "the guest {why}; all it said:\n{said}"
            );
            thread::sleep(Duration::from_millis(200));
        }
    }
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
    let image = kernel.image.to_str().context("a path that is no text")?;
    let serial = format!("file:{}", serial().display());
    let machine = ["-accel", "tcg", "-cpu", "max", "-nodefaults", "-no-reboot", "-display", "none"];
    let boot = ["-serial", &serial, "-kernel", image, "-initrd", &initramfs, "-append", arguments];
    let command = [&["qemu-system-x86_64"], &machine[..], &boot[..], further].concat();
    let qemu = lab.host.start(&command).context("install it with `apt-get install qemu-system-x86`")?;
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
        ("QUESTION", QUESTION),
        ("SIZE", &DOWNLOAD.to_string()),
        ("HASH", &hash),
    ];
    let facts = facts.map(|(name, value)| format!("LAB_{name}={value}")).join(" ");
    format!("console=ttyS0 quiet panic=-1 mitigations=off {facts}")
}
