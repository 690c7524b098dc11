//! The kernel's settings: forwarding, the reverse path filter, `br_netfilter`; and whether this kernel can run vmnat.

use super::{
    super::{
        facts::{Facts, Subject},
        finding::{Finding, Passes, Takes},
        ruleset::Source,
    },
    offers, rank,
};
use crate::state::HookMode;

/// Judges the settings that concern a bridge.
pub(super) fn judge(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    forwarding(facts, subject, findings);
    path_filter(facts, subject, findings);
    if facts.setting("net/bridge/bridge-nf-call-iptables") == Some("1") {
        findings.push(
            Finding::note(
                "br-netfilter",
                "br_netfilter is on: what guests send each other meets the rules of IP as if it were routed.",
            )
            .shown_by(["net.bridge.bridge-nf-call-iptables = 1"])
            .past(Passes::Yes, "its programs at the ports run before br_netfilter")
            .mended_by(["sysctl -w net.bridge.bridge-nf-call-iptables=0"]),
        );
    }
}

fn forwarding(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let (passes, why) = offers::forwarding(facts, subject);
    let bridge = &subject.bridge.name;
    if facts.setting("net/ipv4/ip_forward") == Some("0") {
        // vmnat sets the bridge's own setting, which forwards as well.
        let cause = "the host forwards no IPv4 (net.ipv4.ip_forward is 0)";
        findings.push(
            Finding::problem(
                "ip-forward-off",
                rank::FORWARDING,
                Takes::World,
                format!("Guests on {bridge} get no further than the host, because {cause}."),
            )
            .because(cause)
            .shown_by(["net.ipv4.ip_forward = 0"])
            .past(passes, why)
            .mended_by(["sysctl -w net.ipv4.ip_forward=1"]),
        );
        return;
    }
    let uplink = subject.uplink.as_ref().map(|uplink| uplink.name.as_str());
    for interface in [Some(bridge.as_str()), uplink].into_iter().flatten() {
        let path = format!("net/ipv4/conf/{interface}/forwarding");
        if facts.setting(&path) == Some("0") {
            let cause = format!("forwarding is off for {interface} alone");
            findings.push(
                Finding::problem(
                    "conf-forwarding-off",
                    rank::FORWARDING,
                    Takes::World,
                    format!("What comes in by {interface} is not forwarded, because {cause}."),
                )
                .because(cause)
                .shown_by([format!(
                    "net.ipv4.conf.{interface}.forwarding = 0, while net.ipv4.ip_forward = 1"
                )])
                .past(passes, why.clone())
                .mended_by([format!("sysctl -w net/ipv4/conf/{interface}/forwarding=1")]),
            );
        }
    }
}

/// The higher of `all` and the interface's own counts; 1 is strict.
fn path_filter(facts: &Facts, subject: &Subject, findings: &mut Vec<Finding>) {
    let value = |name: &str| {
        facts.setting(&format!("net/ipv4/conf/{name}/rp_filter")).and_then(|value| value.parse::<u8>().ok())
    };
    let all = value("all").unwrap_or(0);
    let uplink = subject.uplink.as_ref();
    let defaults = facts.net.routes.iter().filter(|route| route.is_default() && route.oif.is_some());
    let ways: std::collections::BTreeSet<u32> = defaults.filter_map(|route| route.oif).collect();
    let Some(uplink) = uplink else { return };
    let at = |name: &str| value(name).unwrap_or(0).max(all);
    let show = |name: &str| {
        vec![format!(
            "net.ipv4.conf.all.rp_filter = {all}, net.ipv4.conf.{name}.rp_filter = {}",
            value(name).unwrap_or(0)
        )]
    };
    // The route to the guests must leave by their bridge: a more specific one elsewhere makes all of them martians.
    for (network, _) in &subject.networks {
        let elsewhere = facts.net.routes.iter().find(|route| {
            route.oif.is_some_and(|oif| oif != subject.bridge.index)
                && route.destination.prefix_len() > network.prefix_len()
                && network.contains(&route.destination)
        });
        if let Some(route) = elsewhere.filter(|_| at(&subject.bridge.name) == 1) {
            let name = facts.net.name_of(route.oif.unwrap_or(0));
            let cause = format!(
                "the reverse path filter drops what comes from {} by {}: the route to it leaves by {name}",
                route.destination, subject.bridge.name
            );
            findings.push(
                Finding::problem(
                    "rp-filter-drop",
                    rank::PATH_FILTER,
                    Takes::World,
                    format!("Some guests are cut off: {cause}."),
                )
                .because(cause)
                .shown_by(show(&subject.bridge.name))
                .past(
                    Passes::Partly,
                    "its programs do not ask the filter, but the route for answers is the other one",
                )
                .mended_by([format!("ip route del {} dev {name}", route.destination)]),
            );
        }
    }
    if at(&uplink.name) == 1 && ways.len() > 1 {
        findings.push(
            Finding::note("rp-filter", format!("The reverse path filter of {} is strict while there are {} ways out: answers that come in by the other way are dropped.", uplink.name, ways.len()))
                .shown_by(show(&uplink.name))
                .past(Passes::Yes, "what it translates does not meet the filter")
                .mended_by([format!("sysctl -w net/ipv4/conf/{}/rp_filter=2 net.ipv4.conf.all.rp_filter=2", uplink.name)]),
        );
    } else {
        findings.push(
            Finding::fine("rp-filter", "The reverse path filter drops nothing of the guests.")
                .shown_by(show(&uplink.name)),
        );
    }
}

/// Judges the host.
pub(super) fn judge_host(facts: &Facts, findings: &mut Vec<Finding>) {
    let vmnat = &facts.vmnat;
    let release = facts.setting("kernel/osrelease").unwrap_or("unknown");
    if let Some(why) = &vmnat.refused {
        findings.push(
            Finding::note("kernel", why.clone())
                .shown_by([format!("kernel {release}")])
                .past(Passes::No, "it needs Linux 6.1 or later"),
        );
    } else if !vmnat.has_btf {
        findings.push(
            Finding::note("kernel", "The kernel does not describe its types (BTF), which vmnat needs.")
                .shown_by([format!("kernel {release}: no /sys/kernel/btf/vmlinux")])
                .past(Passes::No, "it needs a kernel with CONFIG_DEBUG_INFO_BTF"),
        );
    } else if vmnat.hook == HookMode::Clsact {
        findings.push(
            Finding::note(
                "kernel",
                "The kernel has no tcx, so vmnat attaches by clsact, or this user may not look.",
            )
            .shown_by([format!("kernel {release}")]),
        );
    } else {
        findings.push(Finding::fine("kernel", format!("Linux {release} can run vmnat, with tcx and BTF.")));
    }
    let has = |source: Source| {
        let mut chains = facts.rules.chains.iter().filter(|chain| chain.place.source == source);
        chains.any(|chain| !chain.rules.is_empty() || chain.base.as_ref().is_some_and(|base| base.drops))
    };
    if has(Source::Legacy) && has(Source::Nft) {
        let of = |source: Source| {
            let mut tables: Vec<&str> = facts
                .rules
                .chains
                .iter()
                .filter(|chain| chain.place.source == source && !chain.rules.is_empty())
                .map(|chain| chain.place.table.as_str())
                .collect();
            tables.sort_unstable();
            tables.dedup();
            tables.join(", ")
        };
        findings.push(
            Finding::note("firewalls-disagree", "iptables-legacy and nf_tables both hold rules: a packet must pass both, and each tool shows its own only.")
                .shown_by([format!("iptables-legacy: tables {}", of(Source::Legacy)), format!("nf_tables: tables {}", of(Source::Nft))])
                .past(Passes::Yes, "its programs forward guests' packets before either")
                .mended_by(["update-alternatives --config iptables", "iptables-legacy-save"]),
        );
    }
    if !facts.files.ebtables.is_empty() {
        findings.push(
            Finding::note("ebtables-legacy", "Tables of the old ebtables are loaded, whose rules cannot be seen from here.")
                .shown_by([format!("/proc/modules: {}", facts.files.ebtables.join(", "))])
                .past(Passes::Yes, "the hook of a port runs before them, which also means that they no longer hold for what it forwards")
                .mended_by(["ebtables-legacy -t filter -L"]),
        );
    }
    for trouble in &facts.troubles {
        findings.push(
            Finding::note("not-seen", format!("Not looked at: {} ({}).", trouble.what, trouble.why))
                .past(Passes::Nothing, "run `vmnat doctor` as root to see all of it"),
        );
    }
    findings.push(Finding::fine(
        "ipv6",
        "IPv6 passes vmnat untouched: the host's own rules and routes decide about it.",
    ));
}
