//! What is in the packages, without a machine.

use std::{collections::BTreeSet, env, fs, path::PathBuf, process::Command};

use anyhow::{Result, ensure};
use vmnat_tests::packages::{Packages, made::run};

/// Present in each, whatever else comes to be.
const EXPECTED: [&str; 17] = [
    "/usr/bin/vmnat",
    "/usr/lib/systemd/system/vmnat.service",
    "/usr/lib/systemd/system/vmnat@.service",
    "/usr/lib/tmpfiles.d/vmnat.conf",
    "/usr/lib/sysctl.d/50-vmnat.conf",
    "/etc/libvirt/hooks/network.d/vmnat",
    "/etc/libvirt/hooks/qemu.d/vmnat",
    "/usr/share/man/man8/vmnat.8.gz",
    "/usr/share/man/man8/vmnat-up.8.gz",
    "/usr/share/man/man8/vmnat-dnat-add.8.gz",
    "/usr/share/man/man8/vmnat-run.8.gz",
    "/usr/share/man/man8/vmnat-apply.8.gz",
    "/usr/share/man/man5/vmnat.toml.5.gz",
    "/usr/share/bash-completion/completions/vmnat",
    "/usr/share/fish/vendor_completions.d/vmnat.fish",
    "/usr/share/doc/vmnat/README.md",
    "/usr/share/doc/vmnat/examples/vmnat.toml",
];

#[test]
fn both_packages_hold_the_same_files() -> Result<()> {
    let packages = Packages::find()?;
    let (deb, rpm) = (files_of_deb(&packages)?, files_of_rpm(&packages)?);
    for file in EXPECTED {
        ensure!(deb.contains(file), "the .deb has no {file}: {deb:?}");
    }
    // Each distribution has a place of its own for these.
    let own = |file: &&String| {
        ["/zsh/", "/licenses/", "/lintian/", "changelog.Debian", "copyright"]
            .iter()
            .any(|own| file.contains(own))
    };
    let only = |one: &BTreeSet<String>, other: &BTreeSet<String>| -> Vec<String> {
        one.difference(other).filter(|file| !own(file)).cloned().collect()
    };
    let (more, less) = (only(&deb, &rpm), only(&rpm, &deb));
    ensure!(more.is_empty() && less.is_empty(), "only the .deb has {more:?}, only the .rpm {less:?}");
    ensure!(
        deb.iter().chain(&rpm).filter(|file| file.ends_with("/_vmnat")).count() == 2,
        "zsh: {deb:?} {rpm:?}"
    );
    ensure!(!deb.iter().any(|file| file.contains("-help")), "`help` has no page: {deb:?}");
    Ok(())
}

#[test]
fn lintian_has_nothing_to_say() -> Result<()> {
    let packages = Packages::find()?;
    let said =
        run(Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).arg(&packages.deb))?;
    ensure!(said.trim().is_empty(), "{said}");
    Ok(())
}

#[test]
fn what_an_operator_may_change_is_kept_over_upgrades() -> Result<()> {
    let packages = Packages::find()?;
    let kept = run(Command::new("dpkg-deb").arg("--info").arg(&packages.deb).arg("conffiles"))?;
    let configured = run(Command::new("rpm").args(["-qp", "--configfiles"]).arg(&packages.rpm))?;
    for list in [&kept, &configured] {
        let etc = files_of_deb(&packages)?.into_iter().filter(|file| file.starts_with("/etc/"));
        for file in etc {
            ensure!(list.lines().any(|line| line == file), "{file} is not kept: {list}");
        }
    }
    Ok(())
}

/// What the packages have run by a shell when they come and go is whole: sh takes it for a script.
#[test]
fn scripts_are_shell() -> Result<()> {
    let packages = Packages::find()?;
    let folder = Scratch::new("scripts")?;
    run(Command::new("dpkg-deb").arg("--control").arg(&packages.deb).arg(&folder.0))?;
    for name in ["postinst", "prerm", "postrm"] {
        run(Command::new("sh").arg("-n").arg(folder.0.join(name)))?;
    }
    for name in ["POSTIN", "PREUN", "POSTUN"] {
        let mut query = Command::new("rpm");
        let script = run(query.args(["-qp", "--queryformat", &format!("%{{{name}}}")]).arg(&packages.rpm))?;
        ensure!(script.contains("systemctl") || script.contains("rmdir"), "{name}: {script}");
        let path = folder.0.join(name);
        fs::write(&path, script)?;
        run(Command::new("sh").arg("-n").arg(path))?;
    }
    Ok(())
}

#[test]
fn the_rpm_installs_and_erases() -> Result<()> {
    let packages = Packages::find()?;
    let folder = Scratch::new("rpm")?;
    let rpm = |args: &[&str]| {
        let mut rpm = Command::new("rpm");
        // Only files: the root has no shell for scripts, and no libraries.
        rpm.arg("--root").arg(&folder.0).args(["--dbpath", "/db", "--noscripts", "--nodeps"]).args(args);
        rpm
    };
    run(rpm(&["--install"]).arg(&packages.rpm))?;
    // Digests, sizes and modes of what was installed.
    run(rpm(&["--verify", "vmnat"]).env("LC_ALL", "C"))?;
    for file in EXPECTED {
        ensure!(folder.0.join(file.trim_start_matches('/')).is_file(), "{file} is not installed");
    }
    run(&mut rpm(&["--erase", "vmnat"]))?;
    let left = run(Command::new("find").arg(&folder.0).args(["-name", "*vmnat*", "-type", "f"]))?;
    ensure!(left.is_empty(), "left behind: {left}");
    Ok(())
}

/// A folder that goes with its value.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let folder = env::temp_dir().join(format!("vmnat-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn files_of_deb(packages: &Packages) -> Result<BTreeSet<String>> {
    let listed = run(Command::new("dpkg-deb").arg("--contents").arg(&packages.deb))?;
    let paths =
        listed.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|path| !path.ends_with('/'));
    Ok(paths.map(|path| path.trim_start_matches('.').to_owned()).collect())
}

fn files_of_rpm(packages: &Packages) -> Result<BTreeSet<String>> {
    let listed = run(Command::new("rpm").args(["-qp", "--list"]).arg(&packages.rpm))?;
    Ok(listed.lines().map(str::to_owned).collect())
}
