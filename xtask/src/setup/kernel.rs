//! What the running kernel must allow for the lab: found out by trying, in throw-away namespaces.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};

use crate::command::{self, program};

/// The oldest kernel with what the programs use.
const OLDEST: (u32, u32) = (6, 1);

/// Something to try, and what to do when it fails.
struct Feature {
    what: &'static str,
    script: &'static str,
    how: &'static str,
}

/// What shows with a bare system's own programs.
const BARE: &[Feature] = &[
    Feature {
        what: "new network and mount namespaces",
        script: "true",
        how: "needs CAP_SYS_ADMIN: in a container, run it privileged",
    },
    Feature {
        what: "BPF and its file system",
        script: "mount -t bpf bpf /mnt",
        how: "needs CAP_BPF and a kernel with CONFIG_BPF_SYSCALL=y",
    },
];

/// What shows only with the lab's programs.
const LAB: &[Feature] = &[
    Feature {
        what: "bridges and veth pairs",
        script: "ip link add vmnat-try0 type veth peer name vmnat-try1 && ip link add vmnat-try2 type bridge",
        how: "needs CAP_NET_ADMIN and the modules veth and bridge: modprobe veth bridge; or CONFIG_VETH, CONFIG_BRIDGE",
    },
    Feature {
        what: "the clsact queueing discipline",
        script: "ip link add vmnat-try0 type veth peer name vmnat-try1 && tc qdisc add dev vmnat-try0 clsact",
        how: "needs the modules sch_ingress and cls_bpf: modprobe sch_ingress cls_bpf; or CONFIG_NET_SCH_INGRESS",
    },
    Feature {
        what: "nftables' masquerade, which vmnat is compared with",
        script: "nft 'add table ip t; add chain ip t c { type nat hook postrouting priority 100; }; \
                 add rule ip t c masquerade'",
        how: "needs the modules nf_tables, nft_masq and nf_nat: modprobe nft_masq; or CONFIG_NFT_MASQ",
    },
];

/// Whether this process runs as root.
pub fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")
        .context("cannot read /proc/self/status: is /proc mounted?")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    Ok(effective == Some("0"))
}

/// Fails, before anything is installed, on a kernel that cannot do it anyway.
pub fn ensure_bare() -> Result<()> {
    let release = release()?;
    ensure!(
        version(&release).is_some_and(|version| version >= OLDEST),
        "kernel {release} is too old: vmnat needs {}.{} or later",
        OLDEST.0,
        OLDEST.1
    );
    ensure!(
        fs::metadata("/sys/kernel/btf/vmlinux").is_ok(),
        "kernel {release} shows no /sys/kernel/btf/vmlinux: it needs CONFIG_DEBUG_INFO_BTF=y, as Debian's kernels \
         have, and /sys mounted"
    );
    ensure_all(BARE)
}

/// Fails on a kernel without what the lab is made of; needs the lab's packages.
pub fn ensure_lab() -> Result<()> {
    ensure_all(LAB)?;
    load_br_netfilter()
}

/// Loads what no kernel loads by itself, and turns it off for the machine's own bridges at once: it starts out
/// sending what they carry through iptables (`br_netfilter_sysctl_default` in `net/bridge/br_netfilter_hooks.c`).
fn load_br_netfilter() -> Result<()> {
    let settings = Path::new("/proc/sys/net/bridge");
    if settings.exists() {
        return Ok(());
    }
    println!(
        "loading br_netfilter (the lab tests bridges with it), turned off for this machine's own bridges"
    );
    command::output(&mut program("modprobe", ["br_netfilter"]))
        .context("the lab needs the module br_netfilter (CONFIG_BRIDGE_NETFILTER)")?;
    for protocol in ["arptables", "ip6tables", "iptables"] {
        fs::write(settings.join(format!("bridge-nf-call-{protocol}")), "0")?;
    }
    Ok(())
}

/// Reports all that is lacking at once.
fn ensure_all(features: &[Feature]) -> Result<()> {
    let lacking: Vec<_> = features.iter().filter_map(Feature::lacks).collect();
    ensure!(lacking.is_empty(), "kernel {} cannot run the lab:\n  {}", release()?, lacking.join("\n  "));
    Ok(())
}

fn release() -> Result<String> {
    let path = "/proc/sys/kernel/osrelease";
    Ok(fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?.trim().to_owned())
}

/// Major and minor number of a release like `6.1.0-44-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

impl Feature {
    fn lacks(&self) -> Option<String> {
        let Self { what, script, how } = self;
        let mut shell = program("unshare", ["--mount", "--net", "sh", "-c", script]);
        let said = command::output(&mut shell).err()?;
        let reason = said.to_string().rsplit(": ").next().map(str::to_owned).unwrap_or_default();
        Some(format!("no {what} ({reason}); {how}"))
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn a_release_is_read_up_to_its_minor_number() {
        assert_eq!(version("6.1.0-44-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("6.18.33"), Some((6, 18)));
        assert_eq!(version("linux"), None);
    }
}
