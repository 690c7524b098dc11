//! What a lab takes from the machine, and gives back: limits, mounts, and processes that would outlive it.

use std::{fs, path::Path, sync::Once};

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::namespace::MARK;

pub(super) fn require_root() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this needs root: it makes network namespaces");
    Ok(())
}

/// A thousand conversations are two thousand sockets of this process.
pub(super) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        setrlimit(Resource::RLIMIT_NOFILE, most.min(1 << 16), most).ok();
    }
}

/// Ends agents and servers that a killed test has left running: they carry its mark, and it is no more.
pub(super) fn end_leftovers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| end_marked(|owner| !Path::new(&format!("/proc/{owner}")).exists()));
}

/// Ends every process that a lab of this test or demo has started, agents too.
pub fn end_own_processes() {
    let own = std::process::id();
    end_marked(|owner| u32::try_from(owner) == Ok(own));
}

fn end_marked(is_due: impl Fn(i32) -> bool) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let mut variables = environment.split(|&byte| byte == 0);
        let owner = variables.find_map(|variable| {
            std::str::from_utf8(variable).ok()?.strip_prefix(MARK)?.strip_prefix('=')?.parse::<i32>().ok()
        });
        if owner.is_some_and(&is_due) {
            kill(Pid::from_raw(process), Signal::SIGKILL).ok();
        }
    }
}

/// A mount namespace of this thread, and of all threads and processes that it starts, with a bpffs, a `/run`, a `/var/lib`
/// (of vmnat's port forwards, and of lease files) and an `/etc` of its own: the machine's, without its vmnat.
#[derive(Debug)]
pub(super) struct Mounts;

impl Mounts {
    pub(super) fn new() -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace (root is needed)")?;
        let none = None::<&str>;
        match mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none) {
            // The root of a chroot need not be a mount; what is mounted below it is made private one by one.
            Err(Errno::EINVAL) => {
                for line in fs::read_to_string("/proc/thread-self/mounts")?.lines() {
                    let point = line.split(' ').nth(1).unwrap_or_default();
                    mount(none, point, none, MsFlags::MS_PRIVATE, none).ok();
                }
            }
            tried => tried.context("private mounts")?,
        }
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
            .context("a bpffs (the kernel needs CONFIG_BPF_SYSCALL)")?;
        for place in ["/run", "/var/lib"] {
            mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none)
                .with_context(|| format!("a tmpfs on {place}"))?;
        }
        own_etc().context("an /etc of the lab's own (the kernel needs CONFIG_OVERLAY_FS)")?;
        Ok(Self)
    }
}

/// Lays a writable layer over `/etc`. It lies on a tmpfs that is out of sight.
fn own_etc() -> Result<()> {
    const ASIDE: &str = "/mnt";
    let none = None::<&str>;
    mount(Some("tmpfs"), ASIDE, Some("tmpfs"), MsFlags::empty(), none)?;
    fs::create_dir(format!("{ASIDE}/upper"))?;
    fs::create_dir(format!("{ASIDE}/work"))?;
    let layers = format!("lowerdir=/etc,upperdir={ASIDE}/upper,workdir={ASIDE}/work");
    mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(layers.as_str()))?;
    umount2(ASIDE, MntFlags::MNT_DETACH)?;
    match fs::remove_dir_all("/etc/vmnat") {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        for target in ["/etc", "/var/lib", "/run", "/sys/fs/bpf"] {
            umount2(target, MntFlags::MNT_DETACH).ok();
        }
    }
}
