//! What is written is read back, and the sample has every key.

use std::net::SocketAddrV4;

use proptest::prelude::*;

use super::*;
use crate::{
    config::{Config, SourceText, layer::made_of, parse},
    services::{ServiceList, dns as dns53},
    state::{Bridge, Filtering, HookMode, PoolRange},
};

fn read(text: &str) -> Config {
    parse(vec![SourceText::new("vmnat.toml", text)]).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

/// The state that a text makes of nothing.
fn made(text: &str) -> State {
    made_of(&read(text))
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_.@é\"'\\\\-]{1,7}".prop_filter("dots alone", |name| name != "." && name != "..")
}

fn network() -> impl Strategy<Value = ipnet::Ipv4Net> {
    (any::<[u8; 4]>(), 0_u8..=32)
        .prop_map(|(octets, prefix)| ipnet::Ipv4Net::new(octets.into(), prefix).unwrap().trunc())
}

fn set<T: std::fmt::Debug + Ord>(element: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    proptest::collection::btree_set(element, 0..4).prop_map(|set| set.into_iter().collect())
}

fn bridge() -> impl Strategy<Value = Bridge> {
    let services = proptest::option::of("[1-9][0-9]{0,3}(/udp|/tcp)?(,[1-9][0-9]{0,2}/tcp)?|none|dns");
    let resolvers =
        set((1_u8..200, 1_u16..).prop_map(|(last, port)| SocketAddrV4::new([9, 9, 9, last].into(), port)));
    (name(), set(network()), any::<bool>(), services, resolvers).prop_map(
        |(name, networks, open, list, dns)| {
            let filtering = if open { Filtering::EndpointIndependent } else { Filtering::default() };
            let mut bridge = Bridge { networks, filtering, dns, ..Bridge::new(name) };
            if let Some(ServiceList(list)) = list.map(|list| list.parse().unwrap()) {
                bridge.services = if list.len() == 2 && list.iter().all(|service| service.port == 53) {
                    dns53()
                } else {
                    list
                };
            }
            bridge
        },
    )
}

prop_compose! {
    fn wish(port: u16)(target in "[a-z][a-z0-9]{0,5}", from in set(network()), at in proptest::option::of(name()),
                       comment in proptest::option::of("[^\\x00]{1,20}"), expires in proptest::option::of(0_u32..)) -> Wish {
        let spec = format!("{port}:{target}:80/udp").parse().unwrap();
        Wish { from, uplink: at, comment, expires: expires.map(u64::from), ..Wish::plain(spec) }
    }
}

prop_compose! {
    fn state()(bridges in proptest::collection::vec(bridge(), 0..4), uplinks in set(name()), untranslated in set(network()),
               quotas in any::<[u16; 4]>(), first in 1024_u16..60_000, flows in 1024_u32..100_000, log in any::<bool>(),
               seconds in 1_u32.., tcx in any::<bool>(), files in set("/[ -~]{1,20}"),
               wishes in (wish(80), wish(81), wish(82))) -> State {
        let mut state = State::new(if tcx { HookMode::Tcx } else { HookMode::Clsact });
        for bridge in bridges {
            if !state.bridges.iter().any(|known| known.name == bridge.name) {
                state.bridges.push(bridge);
            }
        }
        let [guest, half_open, rate, burst] = quotas.map(u32::from);
        state.quotas = crate::state::GuestQuotas { flows: guest, half_open, rate, burst: burst.max(1) };
        state.pool = PoolRange { first, last: 65_000 };
        (state.uplinks, state.untranslated, state.flows, state.kernel_log) = (uplinks, untranslated, flows, log);
        state.lease_files = files.into_iter().map(Into::into).collect();
        if seconds != 60 {
            state.timeouts.insert("icmp".into(), seconds);
        }
        let wishes: [Wish; 3] = wishes.into();
        state.forwards = (1..).zip(wishes).map(|(id, wish)| PortForward { id, wish }).collect();
        state
    }
}

proptest! {
    #[test]
    fn whatever_is_asked_for_can_be_said_by_a_file(state in state()) {
        let text = effective(&state);
        prop_assert_eq!(made(&text), state, "{}", text);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[ -~\\n]{0,200}") {
        if let Err(faults) = parse(vec![SourceText::new("x", text)]) {
            prop_assert!(faults.count() > 0 && !faults.to_string().is_empty());
        }
    }
}

#[test]
fn what_is_default_need_not_be_said() {
    assert_eq!(effective(&State::blank()), "");
    assert_eq!(made(&sample()), State::blank(), "the sample changes nothing");
}

/// The sample with its examples made real.
fn whole_sample() -> String {
    let is_example = |line: &&str| {
        let rest = line.strip_prefix("# ").unwrap_or_default();
        let key = rest.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        key || rest.starts_with('[')
    };
    let real = |line: &str| if is_example(&line) { line.replacen("# ", "", 1) } else { line.to_owned() };
    sample().lines().map(real).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_sample_has_every_key_with_its_default() {
    let text = whole_sample();
    let config = read(&text);
    for key in STATE_KEYS {
        let said = config.statements.iter().filter(|(said, _)| said.bridge.is_none() && said.key == key.name);
        let said: Vec<Scalar> = said.map(|(said, _)| said.value.clone()).collect();
        assert!(!said.is_empty(), "{} is missing", key.name);
        assert!(key.default().is_empty() || said == key.default(), "{}: {said:?}", key.name);
    }
    for key in BRIDGE_KEYS {
        assert!(
            config.statements.iter().any(|(said, _)| said.bridge.is_some() && said.key == key.name),
            "{}",
            key.name
        );
    }
    let last = text.rsplit("[[forward]]").next().unwrap();
    for key in DRAFT_KEYS {
        assert!(last.contains(&format!("\n{} = ", key.name)), "{}", key.name);
    }
    assert_eq!(config.rules.len(), 1);
}

#[test]
fn the_sample_configuration_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/config.sample.toml");
    let sample = sample();
    if std::env::var_os("VMNAT_WRITE_DOCS").is_some() {
        std::fs::write(path, &sample).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap();
    assert_eq!(written, sample, "run `cargo xtask docs`, which writes docs/config.sample.toml anew");
}
