//! Everything of the VM host that `vmnat down` must leave as it was found.

use std::{fs, path::Path};

use anyhow::{Result, ensure};

use super::namespace::Namespace;

/// The host's state as sorted lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    lines: Vec<String>,
}

impl Snapshot {
    /// Looks at the host.
    ///
    /// # Errors
    ///
    /// When one of the listing programs is missing.
    pub fn take(host: &Namespace) -> Result<Self> {
        let mut lines = Vec::new();
        let listings: [&[&str]; 9] = [
            &["ip", "-oneline", "link"],
            &["ip", "-oneline", "-4", "address"],
            &["ip", "route", "show", "table", "all"],
            &["ip", "rule"],
            &["tc", "qdisc", "show"],
            &["nft", "-s", "list", "ruleset"],
            &["tc", "filter", "show", "dev", "enp3s0", "ingress"],
            &["tc", "filter", "show", "dev", "enp3s0", "egress"],
            &["tc", "filter", "show", "dev", "vnet1", "ingress"],
        ];
        for listing in listings {
            let printed = host.output(listing, "")?;
            let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
            lines.extend(
                printed.lines().map(|line| format!("{}: {}", listing.join(" "), without_carrier(line))),
            );
        }
        host.run(|| {
            for below in ["net/ipv4/conf", "net/ipv4/neigh", "net/bridge", "net/ipv4/ip_forward", "net/core"]
            {
                read_all(&Path::new("/proc/sys").join(below), &mut lines);
            }
            for below in ["net/ipv4/ip_local_port_range", "net/ipv4/ip_local_reserved_ports"] {
                read_all(&Path::new("/proc/sys").join(below), &mut lines);
            }
        });
        names(Path::new("/sys/fs/bpf"), &mut lines);
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
        lines.extend(mounts.lines().filter(|line| line.contains(" nsfs ")).map(str::to_owned));
        lines.sort();
        Ok(Self { lines })
    }

    /// Asserts that nothing differs from an earlier look.
    ///
    /// # Errors
    ///
    /// When something does; the message shows it.
    pub fn assert_same_as(&self, before: &Self) -> Result<()> {
        let gone =
            before.lines.iter().filter(|line| !self.lines.contains(line)).map(|line| format!("- {line}"));
        let came =
            self.lines.iter().filter(|line| !before.lines.contains(line)).map(|line| format!("+ {line}"));
        let difference: Vec<String> = gone.chain(came).collect();
        ensure!(difference.is_empty(), "the host is not as it was found:\n{}", difference.join("\n"));
        Ok(())
    }
}

/// The carrier of a fresh veth is reported up to a second late.
fn without_carrier(line: &str) -> String {
    let line = line.replace("NO-CARRIER,", "").replace(",LOWER_UP", "");
    let states = ["UP", "DOWN", "UNKNOWN", "LOWERLAYERDOWN"].map(|state| format!(" state {state}"));
    states.iter().fold(line.trim().to_owned(), |line, state| line.replace(state, ""))
}

fn read_all(path: &Path, lines: &mut Vec<String>) {
    if let Ok(entries) = fs::read_dir(path) {
        entries.flatten().for_each(|entry| read_all(&entry.path(), lines));
    } else if let Ok(value) = fs::read_to_string(path) {
        lines.push(format!("{}: {}", path.display(), value.trim()));
    }
}

fn names(path: &Path, lines: &mut Vec<String>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        lines.push(entry.path().display().to_string());
        names(&entry.path(), lines);
    }
}
