//! Debian packages: which, why, and how to tell that one is not needed.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context as _, Result, ensure};

use super::kernel;
use crate::command::{self, program};

/// A package, and how its absence shows.
pub struct Package {
    name: &'static str,
    /// A command, or a file when it starts with a slash; every one must be there.
    probes: &'static [&'static str],
    why: &'static str,
}

impl Package {
    /// A package that is missing where one of its probes is.
    pub const fn new(name: &'static str, probes: &'static [&'static str], why: &'static str) -> Self {
        Self { name, probes, why }
    }
}

/// What every build needs.
pub const BUILD: &[Package] = &[
    Package { name: "gcc", probes: &["cc"], why: "rustc links with it" },
    Package { name: "libc6-dev", probes: &["/usr/include/stdlib.h"], why: "what gcc links programs against" },
];

/// What the tests, the demo and the benchmarks run.
pub const LAB: &[Package] = &[
    Package { name: "iproute2", probes: &["ip", "tc"], why: "makes the lab's namespaces" },
    Package { name: "iperf3", probes: &["iperf3"], why: "bulk traffic through the lab" },
    Package { name: "nftables", probes: &["nft"], why: "the host firewall that vmnat gets past" },
    Package { name: "iptables", probes: &["iptables-legacy"], why: "the other host firewall" },
    Package {
        name: "ethtool",
        probes: &["ethtool"],
        why: "turns offloads off, so that peers verify checksums",
    },
    Package {
        name: "kmod",
        probes: &["modprobe", "depmod"],
        why: "the kernel modules of the lab and of the guest",
    },
    Package { name: "qemu-system-x86", probes: &["qemu-system-x86_64"], why: "runs the real guest" },
    Package { name: "busybox-static", probes: &["busybox"], why: "the real guest's user space" },
    Package { name: "xz-utils", probes: &["xz"], why: "unpacks the real guest's kernel modules" },
    Package { name: "openssh-client", probes: &["ssh", "ssh-keygen"], why: "logs in to the real guest" },
];

/// What builds packages of vmnat, and looks them over.
pub const DIST: &[Package] = &[
    Package { name: "dpkg-dev", probes: &["dpkg-shlibdeps"], why: "finds the libraries that the .deb needs" },
    Package { name: "lintian", probes: &["lintian"], why: "looks the .deb over" },
    Package { name: "rpm", probes: &["rpm"], why: "looks the .rpm over" },
];

/// Installs those that are missing.
pub fn ensure(wanted: &[Package]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|package| package.is_missing()).collect();
    for Package { name, why, .. } in &missing {
        println!("missing: {name} ({why})");
    }
    install(&missing.iter().map(|package| package.name).collect::<Vec<_>>())
}

/// Installs packages by name: nothing recommended, no questions, no service started.
pub fn install(names: &[&str]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let list = names.join(" ");
    ensure!(command::exists("apt-get"), "no apt-get here: install {list}, or what your system calls them");
    ensure!(kernel::is_root()?, "installing {list} needs root: run ./dev setup with sudo once");
    update()?;
    let _quiet = NoServices::begin()?;
    for name in names {
        println!("installing {name} ...");
        let mut apt = apt(&["install", "--yes", "-qq", "--no-install-recommends", name]);
        command::output(&mut apt).with_context(|| format!("cannot install the package {name}"))?;
    }
    Ok(())
}

/// Whether the machine's package sources have one of that name.
pub fn is_available(name: &str) -> Result<bool> {
    if !command::exists("apt-cache") {
        return Ok(false);
    }
    update()?;
    let policy = command::output(&mut program("apt-cache", ["policy", name]))?;
    Ok(policy.lines().any(|line| line.contains("Candidate:") && !line.contains("(none)")))
}

/// Downloads packages, by their exact names, and unpacks their files into a directory; installs nothing.
pub fn unpack(names: &[impl AsRef<OsStr>], into: &Path) -> Result<()> {
    update()?;
    fs::create_dir_all(into).with_context(|| format!("cannot create {}", into.display()))?;
    // The download as `_apt`, apt's default, may not enter directories below a home.
    let mut apt = apt(&["download", "-qq", "-o", "APT::Sandbox::User=root"]);
    command::output(apt.args(names).current_dir(into))?;
    for file in debs(into)? {
        command::run(&mut program("dpkg-deb", ["-x".as_ref(), file.as_os_str(), into.as_os_str()]))?;
        fs::remove_file(file)?;
    }
    Ok(())
}

/// Unpacks packages and the libraries that they need into a directory, the packages last: their presence says that all
/// is there.
pub fn unpack_with_libraries(names: &[&str], into: &Path) -> Result<()> {
    let libraries = libraries_of(names)?;
    println!(
        "fetching {} and {} libraries into {} (not installed) ...",
        names.join(", "),
        libraries.len(),
        into.display()
    );
    unpack(&libraries, into)?;
    unpack(names, into)
}

fn debs(dir: &Path) -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path()));
    let paths = paths.collect::<Result<Vec<_>, _>>()?;
    Ok(paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect())
}

/// The libraries that packages need on a machine where nothing is installed yet.
fn libraries_of(names: &[&str]) -> Result<Vec<String>> {
    update()?;
    // Without the list of what is installed, apt plans for an empty machine.
    let options =
        ["install", "--simulate", "-qq", "--no-install-recommends", "-o", "Dir::State::status=/dev/null"];
    let plan = command::output(apt(&options).args(names))?;
    let planned = plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next());
    let mut show = program("apt-cache", ["show", "--no-all-versions"]);
    Ok(libraries_among(&command::output(show.args(planned))?))
}

/// The packages that stand in the section of libraries, of control files as `apt-cache show` prints them.
fn libraries_among(shown: &str) -> Vec<String> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    let libraries = shown.split("\n\n").filter(|paragraph| {
        field(paragraph, "Section:").is_some_and(|section| section.rsplit('/').next() == Some("libs"))
    });
    libraries.filter_map(|paragraph| field(paragraph, "Package:")).collect()
}

/// Refreshes the package lists, once a run; old lists often serve as well, so a failure is only said.
pub fn update() -> Result<()> {
    static DONE: std::sync::Once = std::sync::Once::new();
    let mut result = Ok(());
    DONE.call_once(|| {
        println!("refreshing the package lists ...");
        if let Err(error) = command::output(&mut apt(&["update", "-qq"])) {
            eprintln!("xtask: going on with the old package lists: {error:#}");
            result = ensure_lists();
        }
    });
    result
}

fn ensure_lists() -> Result<()> {
    let lists = fs::read_dir("/var/lib/apt/lists").map_or(0, Iterator::count);
    ensure!(lists > 2, "there are no package lists: does `apt-get update` work, is the network up?");
    Ok(())
}

fn apt(args: &[&str]) -> process::Command {
    let mut command = program("apt-get", ["-o", "DPkg::Lock::Timeout=300"]);
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive").env("DEBCONF_NOWARNINGS", "yes");
    command
}

impl Package {
    fn is_missing(&self) -> bool {
        let is_there = |probe: &&str| match probe.strip_prefix('/') {
            Some(_) => Path::new(probe).exists(),
            None => command::exists(probe),
        };
        !self.probes.iter().all(is_there)
    }
}

/// Keeps packages from starting services while it lives. An operator's own policy is respected and kept.
struct NoServices {
    is_ours: bool,
}

impl NoServices {
    const PATH: &str = "/usr/sbin/policy-rc.d";
    const MARK: &str = "# by vmnat's ./dev setup";

    fn begin() -> Result<Self> {
        let present = fs::read_to_string(Self::PATH).ok();
        if present.is_some_and(|text| !text.contains(Self::MARK)) {
            return Ok(Self { is_ours: false });
        }
        // It lapses by itself should this process be killed.
        let id = process::id();
        let text = format!(
            "#!/bin/sh\n{}, void once its process is gone\n! kill -0 {id} 2>/dev/null || exit 101\n",
            Self::MARK
        );
        fs::write(Self::PATH, text).with_context(|| format!("cannot write {}", Self::PATH))?;
        command::run(&mut program("chmod", ["755", Self::PATH]))?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = fs::remove_file(Self::PATH)
        {
            eprintln!("xtask: cannot remove {}: {error}; it has no effect from here on", Self::PATH);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::libraries_among;

    #[test]
    fn libraries_are_told_by_their_section() {
        let shown = "Package: zlib1g\nVersion: 1\nSection: libs\n\nPackage: perl-base\nSection: perl\n\n\
                     Package: libssl3\nSection: universe/libs\nDescription: a\n b\n";
        assert_eq!(libraries_among(shown), ["zlib1g", "libssl3"]);
    }
}
