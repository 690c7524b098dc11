//! Doctor on recorded rules of real firewalls, and on rules that make no sense at all.

use proptest::prelude::*;
use vmnat_common::Address;

use super::{
    facts::{Facts, More},
    finding::{Finding, IDS, Passes, Severity},
    judge,
    report::Report,
    sample::host,
};
use crate::facts::RouteFact;

const DOCKER: &[u8] = include_bytes!("fixtures/docker.rules");
const DOCKER_LEGACY: &[u8] = include_bytes!("fixtures/docker-on-iptables-legacy.rules");
const DOCKER_LIBVIRT: &[u8] = include_bytes!("fixtures/docker-beside-libvirt-on-nftables.rules");
const FIREWALLD: &[u8] = include_bytes!("fixtures/firewalld-rejecting-zone.rules");
const LIBVIRT: &[u8] = include_bytes!("fixtures/libvirt-on-iptables.rules");
const NFTABLES: &[u8] = include_bytes!("fixtures/nftables-policy-drop.rules");
const UFW: &[u8] = include_bytes!("fixtures/ufw.rules");
const ALL: [&[u8]; 7] = [DOCKER, DOCKER_LEGACY, DOCKER_LIBVIRT, FIREWALLD, LIBVIRT, NFTABLES, UFW];

fn examined(rules: &[u8]) -> Report {
    judge::report(&host(rules))
}

fn problems(report: &Report) -> Vec<&Finding> {
    report.findings.iter().filter(|finding| finding.severity == Severity::Problem).collect()
}

/// The finding that explains the most.
fn cause(rules: &[u8]) -> Finding {
    let report = examined(rules);
    assert!(report.offline && report.cause == Some(report.findings[0].id), "{report:?}");
    report.findings[0].clone()
}

#[test]
fn docker_is_named_on_both_iptables_and_its_own_chain_is_where_it_is_mended() {
    for (rules, program) in [(DOCKER, "iptables-nft"), (DOCKER_LEGACY, "iptables-legacy")] {
        let cause = cause(rules);
        assert_eq!((cause.id, cause.vmnat), ("forward-policy", Passes::Yes));
        assert!(
            cause.cause.starts_with("Docker set the FORWARD policy to DROP") && cause.cause.contains(program),
            "{cause:?}"
        );
        assert_eq!(cause.mend[0], format!("{program} -I DOCKER-USER -i virbr0 -j ACCEPT"));
        let verdict = examined(rules).verdict;
        assert!(verdict.starts_with("Guests on virbr0 are offline because Docker"), "{verdict}");
        assert!(verdict.contains("run `vmnat up --bridge virbr0`"), "{verdict}");
    }
}

#[test]
fn libvirts_accept_does_not_help_against_dockers_drop() {
    let cause = cause(DOCKER_LIBVIRT);
    assert!(cause.cause.starts_with("Docker set the FORWARD policy"), "{cause:?}");
    let elsewhere =
        cause.evidence.iter().find(|line| line.starts_with("accepted elsewhere, which does not help"));
    assert!(
        elsewhere.is_some_and(|line| line.contains("libvirt_network") && line.contains("accept")),
        "{cause:?}"
    );
}

#[test]
fn a_rejecting_zone_of_firewalld_is_named_with_its_zone() {
    let cause = cause(FIREWALLD);
    assert_eq!(cause.id, "forward-rule");
    assert!(cause.cause.starts_with("firewalld rejects what they send to the world"), "{cause:?}");
    assert!(
        cause.evidence.iter().any(|line| line.contains("chain filter_FWD_closed of table inet firewalld")
            && line.contains("reject"))
    );
    assert!(cause.evidence.iter().any(|line| line == "firewalld has virbr0 in zone closed"), "{cause:?}");
    assert!(cause.mend.iter().any(|line| line.contains("--add-ingress-zone=closed")));
}

#[test]
fn a_hand_written_policy_is_told_with_its_chain_and_the_rule_that_would_mend_it() {
    let cause = cause(NFTABLES);
    assert_eq!(cause.id, "forward-policy");
    assert!(cause.evidence[0].starts_with("chain forward of table inet filter (nftables)"), "{cause:?}");
    assert!(cause.mend.contains(&"nft insert rule inet filter forward iifname virbr0 accept".to_owned()));
    let report = examined(NFTABLES);
    let input = report.findings.iter().find(|finding| finding.id == "input-dhcp").unwrap();
    assert!(input.evidence[0].contains("reject") && input.vmnat == Passes::Partly, "{input:?}");
    assert_eq!(input.severity, Severity::Note, "nothing listens there");
}

#[test]
fn ufw_lets_pings_through_and_nothing_else() {
    let cause = cause(UFW);
    assert!(cause.cause.starts_with("ufw set the FORWARD policy to DROP"), "{cause:?}");
    assert!(cause.sentence.contains("(TCP and UDP only)"), "{}", cause.sentence);
    assert_eq!(cause.mend, ["ufw route allow in on virbr0 out on enp3s0"]);
    let report = examined(UFW);
    let input = report.findings.iter().find(|finding| finding.id == "input-dns").unwrap();
    assert_eq!(input.mend, ["ufw allow in on virbr0 to any port 53"]);
}

#[test]
fn libvirt_alone_keeps_nobody_offline_and_its_reject_of_callers_is_a_note() {
    let report = examined(LIBVIRT);
    assert_eq!(problems(&report).iter().map(|finding| finding.id).collect::<Vec<_>>(), ["no-dhcp-server"]);
    let inbound = report.findings.iter().find(|finding| finding.id == "inbound-drop").unwrap();
    assert!(
        inbound.sentence.contains("libvirt rejects them") && inbound.evidence[0].contains("LIBVIRT_FWI"),
        "{inbound:?}"
    );
}

#[test]
fn a_host_that_forwards_nothing_is_told_so_behind_a_firewall_that_denies() {
    let mut facts = host(&[]);
    facts.settings.insert("net/ipv4/ip_forward".into(), "0".into());
    let ids =
        |facts: &Facts| problems(&judge::report(facts)).iter().map(|finding| finding.id).collect::<Vec<_>>();
    assert_eq!(ids(&facts), ["ip-forward-off", "no-masquerade", "no-dhcp-server"]);
    let mut facts = host(DOCKER);
    facts.settings.insert("net/ipv4/ip_forward".into(), "0".into());
    assert_eq!(ids(&facts)[..2], ["forward-policy", "ip-forward-off"]);
}

#[test]
fn a_dead_uplink_goes_before_all_firewalls() {
    let mut facts = host(DOCKER);
    facts.net.routes.clear();
    facts.subjects[0].uplink = None;
    assert_eq!(problems(&judge::report(&facts))[0].id, "no-default-route");
    let mut facts = host(DOCKER);
    facts.more.insert(2, More { is_dead: true, ..More::default() });
    let report = judge::report(&facts);
    assert_eq!((report.findings[0].id, report.findings[0].vmnat), ("carrier-down", Passes::No));
    assert!(!report.verdict.contains("gets past this: run"), "{}", report.verdict);
}

#[test]
fn a_guest_in_no_bridge_goes_before_all_firewalls() {
    let mut facts = host(DOCKER);
    facts.net.links[1].master = None;
    let report = judge::report(&facts);
    assert_eq!(report.findings[0].id, "tap-without-master");
    assert_eq!(report.findings[0].mend, ["ip link set vnet1 master virbr0 up"]);
}

#[test]
fn networks_that_overlap_are_told() {
    let mut facts = host(LIBVIRT);
    facts.net.addresses[0].address = Address::new([192, 168, 122, 77]);
    assert_eq!(problems(&judge::report(&facts))[0].id, "overlap");
    let mut facts = host(LIBVIRT);
    let route = RouteFact { destination: "192.168.122.128/25".parse().unwrap(), ..facts.net.routes[0] };
    facts.net.routes.push(route);
    assert_eq!(problems(&judge::report(&facts))[0].id, "overlap");
}

#[test]
fn what_could_not_be_seen_is_told_and_never_called_fine_nor_a_problem() {
    let mut facts = host(&[]);
    facts.troubles.push(super::ruleset::Trouble {
        what: "the rules of iptables-legacy",
        why: "no permission".into(),
        is_denied: true,
    });
    let report = judge::report(&facts);
    assert!(
        report
            .findings
            .iter()
            .any(|finding| finding.id == "not-seen" && finding.sentence.contains("iptables-legacy"))
    );
}

#[test]
fn every_id_is_documented_once_and_none_other_is_used() {
    let page = include_str!("../../../docs/doctor.md");
    let (_, table) = page.split_once("## Findings\n").unwrap();
    let rows: Vec<String> = table.lines().filter(|line| line.starts_with("| `")).map(str::to_owned).collect();
    let wanted: Vec<String> = IDS.iter().map(|(id, about)| format!("| `{id}` | {about} |")).collect();
    assert_eq!(rows, wanted);
    for rules in ALL {
        for finding in examined(rules).findings {
            assert!(IDS.iter().any(|(id, _)| *id == finding.id), "{}", finding.id);
        }
    }
}

#[test]
fn the_text_keeps_to_its_width_but_for_commands() {
    for rules in ALL {
        let text = examined(rules).text(80, true);
        let is_command = |line: &str| line.starts_with("  mend: ") || line.starts_with("        ");
        let long: Vec<&str> =
            text.lines().filter(|line| line.chars().count() > 80 && !is_command(line)).collect();
        assert!(long.is_empty(), "{long:#?}");
    }
}

#[test]
fn json_has_the_envelope_of_all_listings() {
    let value: serde_json::Value = serde_json::from_str(&examined(DOCKER).json().unwrap()).unwrap();
    assert_eq!((value["schema"].as_u64(), value["kind"].as_str()), (Some(1), Some("doctor")));
    let finding = &value["rows"][0]["findings"][0];
    assert_eq!((finding["id"].as_str(), finding["vmnat"].as_str()), (Some("forward-policy"), Some("yes")));
    assert_eq!((finding["severity"].as_str(), finding["takes"].as_str()), (Some("problem"), Some("world")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn doctor_never_panics_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = examined(&bytes).text(80, true);
    }

    /// Rules of real firewalls with some bytes changed: messages that nearly make sense.
    #[test]
    fn doctor_never_panics_on_damaged_rules(
        which in 0..ALL.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = ALL[which].to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let _ = examined(&bytes).text(80, true);
    }
}
