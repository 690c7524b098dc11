//! A throw-away machine: a distribution's tree with processes, mounts, names and control groups of its own, in a namespace of the lab.
//!
//! Its root is an overlay in memory over a tree that is never written to. All that runs in it ends with its process 1, and
//! that one ends when its standard input does: a killed test leaves nothing running.

use std::{
    fs,
    fs::File,
    io::{self, BufRead, BufReader},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{chdir, chroot, fchdir},
};

use super::{
    groups::{self, Group},
    libraries,
};
use crate::lab::{namespace::Namespace, vmnat};

/// Where the lab's own `/run` holds the machine's root while it is being put together.
const PLACE: &str = "/run/machine";

/// The directories that a machine looks for programs in.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What process 1 does: mounts what only it can, says so, and reaps orphans until its input ends.
const INIT: &str = "
set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/init
echo 1 >/sys/fs/cgroup/init/cgroup.procs
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t tmpfs -o mode=755 dev /dev
for node in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
  set -- $node
  mknod -m 666 /dev/$1 c $2 $3
done
mkdir /dev/net /dev/pts /dev/shm /run/dbus /run/lock /run/netns
mknod -m 666 /dev/net/tun c 10 200
mount -t devpts -o newinstance,ptmxmode=666 devpts /dev/pts
ln -s pts/ptmx /dev/ptmx
ln -s /proc/self/fd /dev/fd
mount -t tmpfs tmpfs /dev/shm
hostname vmhost
echo '127.0.0.1 localhost vmhost' >/etc/hosts
rm -f /etc/resolv.conf
echo ready
trap : HUP INT TERM
cat >/dev/null
exit
";

/// How a thread or a command gets into a machine.
#[derive(Debug)]
pub(crate) struct Inside {
    namespaces: Vec<(OwnedFd, CloneFlags)>,
    root: OwnedFd,
    group: OwnedFd,
    /// Its process 1, as this process knows it.
    process: u32,
}

impl Inside {
    fn of(process: u32, group: &Group) -> Result<Self> {
        let open = |name: &str| -> Result<OwnedFd> {
            let path = format!("/proc/{process}/{name}");
            Ok(File::open(&path).with_context(|| path)?.into())
        };
        let kinds = [
            ("uts", CloneFlags::CLONE_NEWUTS),
            ("ipc", CloneFlags::CLONE_NEWIPC),
            ("cgroup", CloneFlags::CLONE_NEWCGROUP),
            ("pid", CloneFlags::CLONE_NEWPID),
            ("mnt", CloneFlags::CLONE_NEWNS),
        ];
        let namespaces = kinds.into_iter().map(|(name, kind)| Ok((open(&format!("ns/{name}"))?, kind)));
        Ok(Self {
            namespaces: namespaces.collect::<Result<_>>()?,
            root: open("root")?,
            group: group.member("init")?,
            process,
        })
    }

    /// Moves this thread into the machine, and what it starts from then on; it cannot come back.
    pub(crate) fn enter(&self) -> io::Result<()> {
        // Threads share root and working directory until one asks not to.
        unshare(CloneFlags::CLONE_FS)?;
        for (descriptor, kind) in &self.namespaces {
            setns(descriptor.as_fd(), *kind)?;
        }
        fchdir(&self.root)?;
        chroot(".")?;
        Ok(())
    }

    /// Gives a command the machine's environment and control group.
    pub(crate) fn prepare(&self, command: &mut Command) {
        let group = self.group.as_raw_fd();
        command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
        // SAFETY: between fork and exec it makes one system call on a descriptor that outlives the command's start.
        unsafe {
            command.pre_exec(move || join(group));
        }
    }

    /// Where this process finds a file of the machine.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.process))
    }
}

/// Puts the calling process into the control group whose `cgroup.procs` is open as `group`.
fn join(group: i32) -> io::Result<()> {
    // SAFETY: the pointer and length describe a constant.
    let written = unsafe { libc::write(group, b"0".as_ptr().cast(), 1) };
    if written == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A running machine; everything in it ends with the value.
#[derive(Debug)]
pub struct Machine {
    init: Child,
    inside: Arc<Inside>,
    group: Group,
    /// Process 1 lives as long as this is open.
    _life: ChildStdin,
}

impl Machine {
    /// Starts a machine in `network` whose files are those of `tree`.
    ///
    /// # Errors
    ///
    /// When the machine that runs the test lacks something: root, overlayfs, control groups of version 2.
    pub fn boot(network: &Namespace, tree: &Path) -> Result<Self> {
        Self::boot_with(network, tree, None)
    }

    /// Like [`Machine::boot`], with the C library of another tree: what machines get that are older than the one that `vmnat`
    /// was built on.
    ///
    /// # Errors
    ///
    /// As [`Machine::boot`].
    pub fn boot_with(network: &Namespace, tree: &Path, lender: Option<&Path>) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let group = Group::new(NUMBER.fetch_add(1, Ordering::Relaxed))?;
        let started = network.run(|| start(tree, lender, &group)).with_context(|| {
            format!("cannot start a machine with the files of {} in {}", tree.display(), network.name())
        })?;
        let (mut init, life, output) = started;
        let mut first = String::new();
        BufReader::new(output).read_line(&mut first)?;
        if first.trim() != "ready" {
            init.kill().ok();
            let said = init.wait_with_output().map(|end| String::from_utf8_lossy(&end.stderr).into_owned());
            bail!("process 1 of the machine failed: {}", said.unwrap_or_default().trim());
        }
        let inside = Arc::new(Inside::of(init.id(), &group)?);
        Ok(Self { init, inside, group, _life: life })
    }

    /// What the machine has of the one that runs the test.
    #[must_use]
    pub fn trace(&self) -> Trace {
        Trace { processes: self.group.processes(), group: self.group.name() }
    }

    /// The machine's network, with commands running in the machine.
    #[must_use]
    pub fn enter(&self, network: &Namespace) -> Namespace {
        network.with_machine(Arc::clone(&self.inside))
    }
}

/// What a machine has of the one that runs the test, to be looked for when it has ended.
#[derive(Debug)]
pub struct Trace {
    /// Its processes, by their numbers outside.
    pub processes: Vec<u32>,
    group: String,
}

impl Trace {
    /// What there still is of it.
    ///
    /// # Errors
    ///
    /// When looking is not possible.
    pub fn left(&self) -> Result<Vec<String>> {
        let processes =
            self.processes.iter().filter(|process| Path::new(&format!("/proc/{process}")).exists());
        let mut left: Vec<String> = processes.map(|process| format!("process {process}")).collect();
        if groups::names()?.contains(&self.group) {
            left.push(format!("control group {}", self.group));
        }
        let mounts = fs::read_to_string("/proc/thread-self/mounts")?;
        left.extend(mounts.lines().filter(|line| line.contains(PLACE)).map(str::to_owned));
        Ok(left)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The kernel kills the rest with it. It is gone when they are, and those that this process has started are gone
        // when it has asked how they ended: whoever holds one must let go of it before.
        self.init.kill().ok();
        let is_gone = |init: &mut Child| !matches!(init.try_wait(), Ok(None));
        for _ in 0..250 {
            if is_gone(&mut self.init) {
                self.group.remove();
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("a machine of the lab has been killed, but not all of its processes have been waited for");
    }
}

/// Puts the root together on a thread of its own and starts process 1 there.
fn start(
    tree: &Path,
    lender: Option<&Path>,
    group: &Group,
) -> Result<(Child, ChildStdin, impl io::Read + use<>)> {
    let member = group.member("")?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
        .context("namespaces for a machine")?;
    let root = lay_out(tree, lender)?;
    chdir(&root)?;
    chroot(".")?;
    unshare(CloneFlags::CLONE_NEWPID).context("a namespace of processes")?;
    let mut command = Command::new("/bin/busybox");
    command.args(["sh", "-c", INIT]).env_clear().env("PATH", PATH);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let procs = member.as_raw_fd();
    // SAFETY: between fork and exec it makes two system calls, the first on a descriptor that is open until then.
    unsafe {
        command.pre_exec(move || {
            join(procs)?;
            // The group that the process is in becomes the root of those that the machine sees.
            Ok(unshare(CloneFlags::CLONE_NEWCGROUP)?)
        });
    }
    let mut init = command.spawn().context("cannot start the tree's /bin/busybox")?;
    let pipes = init.stdin.take().zip(init.stdout.take());
    let (life, output) = pipes.context("process 1 has no pipes")?;
    Ok((init, life, output))
}

/// Lays an overlay in memory over the tree, with `vmnat` in it.
fn lay_out(tree: &Path, lender: Option<&Path>) -> Result<PathBuf> {
    let place = Path::new(PLACE);
    fs::create_dir_all(place).context(PLACE)?;
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("size=2g")).context("a tmpfs")?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| place.join(name));
    for folder in [&upper, &work, &root] {
        fs::create_dir(folder).with_context(|| folder.display().to_string())?;
    }
    let layers =
        format!("lowerdir={},upperdir={},workdir={}", tree.display(), upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
        .with_context(|| format!("an overlay over {}", tree.display()))?;
    bind(&vmnat::program()?, &root.join("usr/local/bin/vmnat"))?;
    match lender {
        Some(other) => libraries::lend(&root, other)?,
        None => libraries::lend_if_needed(&root)?,
    }
    Ok(root)
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    if !target.exists() {
        File::create(target).with_context(|| target.display().to_string())?;
    }
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("binding {} to {}", source.display(), target.display()))
}
