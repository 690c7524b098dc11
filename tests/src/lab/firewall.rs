//! Firewalls of the VM host: those that forbid what vmnat allows, and counters that show what they get to see.

use std::fmt::Write as _;

use anyhow::Result;

use super::{namespace::Namespace, watch};

/// nftables with FORWARD and INPUT on drop, as a careful administrator writes it.
pub const NFT_DROPS: &str = "
table inet filter {
  chain input {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    iifname lo accept
  }
  chain forward {
    type filter hook forward priority 0; policy drop;
  }
}
";

/// nftables with FORWARD alone on drop.
pub const NFT_FORWARD_DROP: &str = "
table ip filter {
  chain forward {
    type filter hook forward priority 0; policy drop;
  }
}
";

/// What a host without vmnat does: masquerade, with FORWARD open.
pub const NFT_MASQUERADE: &str = "
table ip nat {
  chain postrouting {
    type nat hook postrouting priority 100;
    ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 masquerade
  }
}
";

const TRANSLATED: [&str; 4] = [
    "ip saddr 192.168.122.0/24 ip daddr 198.51.100.0/24",
    "ip saddr 198.51.100.0/24 ip daddr 192.168.122.0/24",
    "ip saddr 203.0.113.2 ip daddr 198.51.100.0/24",
    "ip saddr 198.51.100.0/24 ip daddr 203.0.113.2",
];

/// Counts, in every netfilter hook of IPv4, packets between guests or the external address and the world.
///
/// None of the bridge family: where a rule of that family concerns a port, vmnat leaves the port to the bridge.
///
/// # Errors
///
/// When nftables refuses.
pub fn count_everywhere(host: &Namespace) -> Result<()> {
    let rules = TRANSLATED.map(|rule| format!("    {rule} counter name seen\n")).concat();
    // Ahead of all others, so that no earlier verdict hides a packet from it.
    let chain =
        |hook| format!("  chain {hook} {{\n    type filter hook {hook} priority -500;\n{rules}  }}\n");
    let chains = ["prerouting", "input", "forward", "output", "postrouting"].map(chain).concat();
    host.nft(&format!("table ip audit {{\n  counter seen {{ }}\n{chains}}}\n"))
}

/// Packets that [`count_everywhere`] has counted.
///
/// # Errors
///
/// When nothing counts.
pub fn counted(host: &Namespace) -> Result<u64> {
    watch::counter(host, "ip", "audit", "seen")
}

/// Takes the counting rules away, which slow netfilter down.
///
/// # Errors
///
/// When nothing counts.
pub fn stop_counting(host: &Namespace) -> Result<()> {
    host.nft("delete table ip audit\n")
}

/// iptables-legacy with FORWARD and INPUT on drop, and a counting rule in every chain of every table.
///
/// # Errors
///
/// When the kernel or the program lacks something.
pub fn legacy_drops(host: &Namespace) -> Result<()> {
    let tables = [
        ("raw", &["PREROUTING", "OUTPUT"][..]),
        ("mangle", &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
        ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
        ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
    ];
    let pairs = [
        ("192.168.122.0/24", "198.51.100.0/24"),
        ("198.51.100.0/24", "192.168.122.0/24"),
        ("203.0.113.2", "198.51.100.0/24"),
        ("198.51.100.0/24", "203.0.113.2"),
    ];
    let mut script = String::new();
    for (table, chains) in tables {
        writeln!(script, "*{table}")?;
        for chain in chains {
            let drops = table == "filter" && *chain != "OUTPUT";
            writeln!(script, ":{chain} {}", if drops { "DROP" } else { "ACCEPT" })?;
        }
        for chain in chains {
            for (source, destination) in pairs {
                writeln!(script, "-A {chain} -s {source} -d {destination}")?;
            }
        }
        if table == "filter" {
            writeln!(
                script,
                "-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n-A INPUT -i lo -j ACCEPT"
            )?;
        }
        writeln!(script, "COMMIT")?;
    }
    host.exec_with(&["iptables-legacy-restore"], &script).map(drop)
}

/// Packets that the counting rules of [`legacy_drops`] have seen.
///
/// # Errors
///
/// When iptables-legacy is missing.
pub fn legacy_counted(host: &Namespace) -> Result<u64> {
    let saved = host.exec(&["iptables-legacy-save", "-c"])?;
    let counting = saved.lines().filter(|line| line.starts_with('[') && !line.contains(" -j "));
    let packets = counting.filter_map(|line| line.get(1..)?.split(':').next()?.parse::<u64>().ok());
    Ok(packets.sum())
}
