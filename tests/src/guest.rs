//! A real guest: QEMU without KVM, a distribution's kernel, and an initramfs of busybox made here.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Lab, SERVER, namespace::Process, service};

/// The guest's address.
pub const ADDRESS: &str = "192.168.122.20";
/// The name that the guest asks the resolver for.
pub const QUESTION: &str = "whoami.lab";

const MAC: &str = "52:54:00:00:00:20";
const TAP: &str = "vnet9";
const FOLDER: &str = "/run/vm";
const MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];
const DOWNLOAD: usize = 4_000_000;
/// Size of the file that the guest serves as `/bytes`.
pub const SERVED: usize = 1_000_000;

/// A running guest; it is switched off when the value goes.
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

impl VirtualMachine {
    /// Starts the guest on a tap in the lab's bridge.
    ///
    /// # Errors
    ///
    /// When QEMU, busybox or a kernel is missing; the message says which and how to get it.
    pub fn start(lab: &Lab) -> Result<Self> {
        let kernel = Kernel::find()?;
        fs::create_dir_all(FOLDER)?;
        let initramfs = format!("{FOLDER}/initramfs");
        fs::write(&initramfs, make_initramfs(&kernel)?)?;
        lab.host
            .exec(&["ip", "tuntap", "add", TAP, "mode", "tap", "vnet_hdr"])
            .context("a tap needs /dev/net/tun")?;
        lab.host.exec(&["ip", "link", "set", TAP, "master", "virbr0", "up"])?;
        let image = kernel.image.to_str().context("a path that is no text")?;
        let arguments = kernel_arguments();
        let network = format!("tap,id=n,ifname={TAP},script=no,downscript=no");
        let device = format!("virtio-net-pci,netdev=n,mac={MAC},romfile=");
        let serial = format!("file:{}", serial().display());
        let machine =
            ["-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-reboot", "-display", "none"];
        let boot = ["-serial", &serial, "-kernel", image, "-initrd", &initramfs, "-append", &arguments];
        let wire = ["-netdev", &network, "-device", &device];
        let command = [&["qemu-system-x86_64"], &machine[..], &boot[..], &wire[..]].concat();
        let qemu = lab.host.start(&command).context("install it with `apt-get install qemu-system-x86`")?;
        Ok(Self { qemu })
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

/// A kernel to boot, and the modules that a virtio guest needs, in the order of loading.
#[derive(Debug)]
struct Kernel {
    image: PathBuf,
    modules: Vec<PathBuf>,
}

impl Kernel {
    /// The newest kernel below `VMNAT_GUEST_KERNEL_DIR`, or of the machine.
    fn find() -> Result<Self> {
        let root = env::var_os("VMNAT_GUEST_KERNEL_DIR").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        let mut found = Vec::new();
        for entry in fs::read_dir(root.join("boot")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(version) = name.strip_prefix("vmlinuz-") else { continue };
            let modules = root.join("lib/modules").join(version);
            if modules.join("modules.dep").is_file() {
                found.push((numbers(version), entry.path(), modules));
            }
        }
        let Some((_, image, folder)) = found.into_iter().max() else {
            bail!(
                "no kernel to boot a guest: {0}/boot/vmlinuz-* with {0}/lib/modules/*/modules.dep; \
                 install linux-image-cloud-amd64, or name a folder in VMNAT_GUEST_KERNEL_DIR",
                root.display()
            );
        };
        Ok(Self { image, modules: modules_of(&folder)? })
    }
}

fn numbers(version: &str) -> Vec<u32> {
    version.split(|byte: char| !byte.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn modules_of(folder: &Path) -> Result<Vec<PathBuf>> {
    let dependencies = fs::read_to_string(folder.join("modules.dep"))?;
    let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let named = |path: &str, module: &str| {
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split('.').next().is_some_and(|stem| stem.replace('-', "_") == module)
    };
    let mut modules = Vec::new();
    for module in MODULES {
        if builtin.lines().any(|path| named(path, module)) {
            continue;
        }
        let mut rows = dependencies.lines().filter_map(|row| row.split_once(':'));
        let Some((path, needs)) = rows.find(|(path, _)| named(path, module)) else {
            bail!("the kernel of {} has no {module}", folder.display());
        };
        // modules.dep(5): what a module needs stands right of it, to be loaded from right to left.
        for needed in needs.split_whitespace().rev().chain([path]) {
            let needed = folder.join(needed);
            if !modules.contains(&needed) {
                modules.push(needed);
            }
        }
    }
    Ok(modules)
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let decompress = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return Ok(fs::read(path)?),
    };
    let output = Command::new(decompress).args(["-dc"]).arg(path).output();
    let output = output.with_context(|| format!("{} needs {decompress}", path.display()))?;
    ensure!(output.status.success(), "{decompress} cannot read {}", path.display());
    Ok(output.stdout)
}

fn make_initramfs(kernel: &Kernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["bin", "mod", "www", "proc", "sys", "dev", "tmp"] {
        archive.folder(folder);
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
    let busybox = busybox.context("no busybox for the guest: `apt-get install busybox-static`")?;
    archive.file("bin/busybox", 0o755, &fs::read(busybox)?);
    for library in libraries_of(busybox)? {
        archive.file(library.trim_start_matches('/'), 0o755, &fs::read(&library)?);
    }
    for (number, module) in kernel.modules.iter().enumerate() {
        archive.file(&format!("mod/{number:02}.ko"), 0o644, &read_module(module)?);
    }
    archive.file("www/index.html", 0o644, b"served by the guest\n");
    archive.file("www/bytes", 0o644, &service::content(SERVED));
    archive.file("init", 0o755, INIT.as_bytes());
    Ok(archive.finish())
}

/// The shared libraries of a program; none when it is static.
fn libraries_of(program: &str) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(printed
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(Into::into)
        .collect())
}

/// A cpio archive in the "newc" form that the kernel unpacks (Documentation/driver-api/early-userspace).
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    folders: Vec<String>,
    entries: u32,
}

impl Archive {
    fn folder(&mut self, path: &str) {
        if !path.is_empty() && !self.folders.iter().any(|folder| folder == path) {
            if let Some((parent, _)) = path.rsplit_once('/') {
                self.folder(parent);
            }
            self.folders.push(path.to_owned());
            self.entry(path, 0o040_755, &[]);
        }
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.entry(path, 0o100_000 | mode, content);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let name_size = path.len() + 1;
        let (number, size) = (self.entries, content.len());
        // Magic, inode, mode, owner, group, links, time, size, four device numbers, name's size, checksum.
        let head = format!(
            "070701{number:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend(head.as_bytes());
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
