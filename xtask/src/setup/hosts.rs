//! The hosts that the hosts tier plays: a distribution's root tree for each of its machines, below the target directory. Nothing of
//! them is installed on this machine, and no service of theirs starts on it.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::packages::{self, Package};
use crate::{
    command::{self, program},
    project,
};

/// Tells the hosts tier where the trees lie, a folder for each.
pub const VARIABLE: &str = "VMNAT_HOSTS_DIR";

/// Tells the hosts tier where to note what it finds, a file a host.
pub const RESULTS: &str = "VMNAT_HOSTS_RESULTS";

/// A distribution whose packages a machine runs, and what of it.
pub struct Tree {
    name: &'static str,
    packages: &'static [(&'static str, &'static str)],
}

/// What every machine needs, and why.
const COMMON: &[(&str, &str)] = &[
    ("docker.io", "dockerd, containerd and runc: the daemon that sets FORWARD to DROP"),
    ("libvirt-daemon-system", "libvirtd and its default network"),
    ("libvirt-clients", "virsh"),
    ("dnsmasq-base", "DHCP and names for guests, libvirt's and on bridges of one's own"),
    ("firewalld", "the firewall with zones"),
    ("ufw", "the firewall that denies by default"),
    ("nftables", "rules written by hand"),
    ("iptables", "both kinds of iptables"),
    ("systemd", "networkd, with its DHCP server"),
    ("dbus", "the bus that firewalld is spoken to by"),
    ("iproute2", "ip, tc and ss"),
    ("procps", "sysctl and ps"),
    ("kmod", "modprobe, which the daemons call"),
    ("conntrack", "shows what the kernel tracks"),
    ("busybox-static", "process 1, and all that is in the container"),
];

/// The distribution before: libvirt 9.0, Docker 20.10, firewalld 1.3.
pub const BOOKWORM: Tree = Tree { name: "bookworm", packages: &[] };

/// The present one: libvirt 11.3 with its nftables backend, Docker 26.1, firewalld 2.3.
pub const TRIXIE: Tree = Tree {
    name: "trixie",
    packages: &[
        ("docker-cli", "docker, which is a package of its own here"),
        ("libvirt-daemon-driver-network", "libvirt's networks, which are a package of their own here"),
    ],
};

/// What makes the trees.
pub const MAKER: &[Package] = &[
    Package::new("mmdebstrap", &["mmdebstrap"], "makes the root trees of the hosts tier's machines"),
    Package::new(
        "debian-archive-keyring",
        &["/usr/share/keyrings/debian-archive-keyring.gpg"],
        "the keys of what those trees are made from",
    ),
];

/// Present in a tree that was made to the end.
const MARK: &str = "etc/vmnat-hosts";

/// The operator's own choice, or the directory that [`fn@ensure`] fills.
pub fn dir() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(|| project::target().join("hosts"), PathBuf::from)
}

/// Makes the trees that are missing, or that were made of other packages.
pub fn ensure(trees: &[Tree]) -> Result<()> {
    for tree in trees {
        let folder = dir().join(tree.name);
        if fs::read_to_string(folder.join(MARK)).is_ok_and(|made_of| made_of == tree.list()) {
            continue;
        }
        if env::var_os(VARIABLE).is_some() && folder.join("usr/sbin/dockerd").exists() {
            continue;
        }
        println!("missing: the files of a {} host, which the hosts tier runs in namespaces:", tree.name);
        for (package, why) in tree.all() {
            println!("  {package} ({why})");
        }
        packages::ensure(MAKER)?;
        tree.make(&folder)?;
    }
    Ok(())
}

impl Tree {
    fn all(&self) -> impl Iterator<Item = &(&'static str, &'static str)> {
        COMMON.iter().chain(self.packages)
    }

    /// What is to be in the tree, as `mmdebstrap` takes it.
    fn list(&self) -> String {
        self.all().map(|(package, _)| *package).collect::<Vec<_>>().join(",")
    }

    /// Makes the tree beside its place, and puts it there when it is whole.
    fn make(&self, folder: &Path) -> Result<()> {
        let mirror = mirror()?;
        println!("making {} from {mirror} (about 600 MB, not installed) ...", folder.display());
        let unfinished = folder.with_extension("unfinished");
        for old in [folder, &unfinished] {
            if old.exists() {
                ensure_unmounted(old)?;
                fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        fs::create_dir_all(dir()).with_context(|| format!("cannot create {}", dir().display()))?;
        let options = [
            "--variant=minbase",
            "--mode=root",
            "--quiet",
            "--aptopt=APT::Install-Recommends \"false\"",
            "--aptopt=Acquire::Languages \"none\"",
            "--dpkgopt=force-unsafe-io",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
        ];
        // It mounts /proc, /sys and /dev in the tree: in a namespace of its own they go with it, also when it is killed, so that
        // removing an unfinished tree never reaches them.
        let mut maker = program("unshare", ["--mount", "--propagation", "private", "mmdebstrap"]);
        maker
            .args(options)
            .arg(format!("--include={}", self.list()))
            .arg(self.name)
            .arg(&unfinished)
            .arg(mirror);
        maker.env("DEBIAN_FRONTEND", "noninteractive");
        command::output(&mut maker).with_context(|| {
            format!("cannot make the {} tree; set {VARIABLE} to a folder that has it", self.name)
        })?;
        fs::write(unfinished.join(MARK), self.list())?;
        fs::rename(&unfinished, folder).with_context(|| format!("cannot put {} in place", folder.display()))
    }
}

/// Refuses where something is mounted below a folder that is to be removed.
fn ensure_unmounted(folder: &Path) -> Result<()> {
    let folder = folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))?;
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let mounted = points.find(|point| Path::new(point).starts_with(&folder));
    ensure!(mounted.is_none(), "{} is mounted: unmount it, then run this again", mounted.unwrap_or_default());
    Ok(())
}

/// The mirror of Debian that this machine's own package sources name, as apt understands them.
pub fn mirror() -> Result<String> {
    packages::update()?;
    let format = ["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages"];
    let targets = command::output(&mut program("apt-get", format))?;
    debian_among(&targets).map(str::to_owned).with_context(|| {
        format!("the package sources of this machine name no mirror of Debian; set {VARIABLE} to a folder with the trees")
    })
}

/// The first repository of Debian itself, of lines of origin, label and address.
fn debian_among(targets: &str) -> Option<&str> {
    targets.lines().find_map(|line| line.strip_prefix("Debian Debian "))
}

#[cfg(test)]
mod tests {
    use super::debian_among;

    #[test]
    fn the_mirror_is_that_of_debian_itself() {
        let targets = "Node Node https://example.org/node/\nDebian Debian-Security http://example.org/security/\n\
                       Debian Debian http://example.org/debian/\n";
        assert_eq!(debian_among(targets), Some("http://example.org/debian/"));
        assert_eq!(debian_among("Ubuntu Ubuntu http://example.org/ubuntu/\n"), None);
    }
}
