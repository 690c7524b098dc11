//! What the fuzz targets of `fuzz/` run: each takes any bytes and ends where a rule does not hold. The unit tests run the corpus
//! through the same functions.
#![expect(clippy::missing_panics_doc, reason = "to panic is how they report")]

use std::{fmt::Debug, net::Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Serialize, de::DeserializeOwned};
use vmnat_common::Protocol;

use crate::{
    cli,
    config::{self, SourceText},
    conntrack::{self, Translation},
    dhcp, docker, doctor, facts,
    forwards::{ForwardSpec, store},
    host_sockets, leases,
    netlink::{Attributes, Messages},
    paths::Instance,
    state::State,
};

/// A target: its name, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this crate.
pub const TARGETS: [Target; 20] = [
    ("config_file", config_file),
    ("forward_spec", forward_spec),
    ("forward_file", forward_file),
    ("forward_store", forward_store),
    ("state_file", state_file),
    ("instance_name", instance_name),
    ("libvirt_leases", libvirt_leases),
    ("dnsmasq_leases", dnsmasq_leases),
    ("dnsmasq_hosts", dnsmasq_hosts),
    ("networkd_leases", networkd_leases),
    ("docker_answer", docker_answer),
    ("socket_table", socket_table),
    ("netlink_messages", netlink_messages),
    ("conntrack_entry", conntrack_entry),
    ("port_rules", port_rules),
    ("tc_filters", tc_filters),
    ("doctor_rules", doctor_rules),
    ("dhcp_frame", dhcp_frame),
    ("dhcp_leases", dhcp_leases),
    ("libvirt_network", libvirt_network),
];

/// A frame at a bridge: what is read of it lies inside it, and a client's message has what an answer needs.
pub fn dhcp_frame(bytes: &[u8]) {
    let payload = match dhcp::read_frame(bytes) {
        Some(dhcp::Carried::Dhcp(datagram)) => {
            assert!(datagram.payload.len().saturating_add(42) <= bytes.len());
            datagram.payload
        }
        _ => bytes,
    };
    if let Some(dhcp::Heard::Question(question)) = dhcp::read_message(payload) {
        assert!(!question.client.mac.is_group());
        assert!(question.client.id.is_none_or(|id| !id.is_empty() && id.len() <= 64));
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        assert!(question.name.is_none_or(|name| !name.is_empty() && name.bytes().all(is_sound)));
    }
}

/// The file of the leases that the agent gave.
pub fn dhcp_leases(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let written = dhcp::Book::read(text).written();
    assert_eq!(dhcp::Book::read(&written).written(), written);
    assert_eq!(leases::read_dnsmasq(&written).len(), written.lines().count());
}

/// A network as libvirt defines it.
pub fn libvirt_network(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(network) = dhcp::read_libvirt(text) {
        assert_eq!(network.has_dhcp, !network.ranges.is_empty() || !network.hosts.is_empty());
    }
}

/// A port forward as people write it: what is understood has one form, which is understood as the same.
pub fn forward_spec(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(spec) = text.parse::<ForwardSpec>() {
        reads_back(&spec);
        assert!(spec.target_port > 0 && spec.target_ports().span() == spec.ports.span());
        assert!(
            !format!("{:?}", spec.target).contains(char::is_whitespace) || spec.target.address().is_some()
        );
    }
}

/// A file of port forwards with their options.
pub fn forward_file(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(requests) = cli::dnat::file::any(text) {
        assert!(requests.len() <= text.lines().count());
        for request in requests {
            reads_back(&request.wish.spec);
            survives_json(&request.wish);
        }
    }
}

/// A file of the configuration: what is understood can be written, and is then understood as the same.
pub fn config_file(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let read = |text: &str| config::parse(vec![SourceText::new("vmnat.toml", text)]);
    let config = match read(text) {
        Ok(config) => config,
        Err(faults) => {
            assert!(
                faults.count() > 0 && faults.to_string().contains("vmnat.toml") && !faults.brief().is_empty()
            );
            return;
        }
    };
    let made = config::made_of(&config);
    let written = config::effective(&made);
    let again = read(&written).map(|config| config::made_of(&config)).map_err(|faults| faults.to_string());
    assert_eq!(again.as_ref(), Ok(&made), "{written}");
}

/// The file that holds port forwards.
pub fn forward_store(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(store) = store::parse(text) {
        let written = written(&store);
        assert_eq!(store::parse(&written), Ok(store), "{written}");
    }
}

/// The file that holds an instance's state.
pub fn state_file(bytes: &[u8]) {
    if let Ok(state) = serde_json::from_slice::<State>(bytes) {
        survives_json(&state);
    }
}

/// An instance's name: none leaves the directory that it names.
pub fn instance_name(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Ok(instance) = text.parse::<Instance>() {
        assert_eq!(instance.name(), text);
        let parent = Instance::default().run();
        assert_eq!(instance.run().parent(), parent.parent());
        assert_eq!(instance.run().file_name().and_then(|name| name.to_str()), Some(text));
    }
}

/// The status file of libvirt's lease helper.
pub fn libvirt_leases(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    for lease in leases::read_libvirt(text).into_iter().flatten() {
        assert!(lease.expires > 0 && lease.name.is_none_or(|name| !name.is_empty()));
    }
}

/// The leases of a plain dnsmasq.
pub fn dnsmasq_leases(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let leases = leases::read_dnsmasq(text);
    assert!(leases.len() <= text.lines().count());
    for lease in leases {
        assert!(lease.expires > 0 && lease.name.is_none_or(|name| !name.contains(char::is_whitespace)));
    }
}

/// Static hosts of a dnsmasq.
pub fn dnsmasq_hosts(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    for lease in leases::read_hosts(text) {
        assert!(lease.name.is_none_or(|name| !name.is_empty() && !name.contains(char::is_whitespace)));
    }
}

/// What systemd-networkd keeps and answers.
pub fn networkd_leases(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let answered = leases::read_networkd_answer(text, 15_000, 1_700_000_000).into_iter().flatten();
    for lease in leases::read_networkd(text).into_iter().flatten().chain(answered) {
        assert!(lease.expires > 0 && lease.name.is_none_or(|name| !name.is_empty()));
    }
}

/// What a container engine answers.
pub fn docker_answer(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    for published in docker::read(text).into_iter().flatten() {
        assert!(published.at.is_none_or(|address| !address.is_unspecified()));
    }
}

/// The kernel's tables of sockets.
pub fn socket_table(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    for line in text.lines() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let _ = host_sockets::row(protocol, line);
        }
    }
}

/// A datagram of netlink: messages and attributes lie in it, one behind the other.
pub fn netlink_messages(bytes: &[u8]) {
    let mut length = 0_usize;
    for message in Messages(bytes) {
        length = length.saturating_add(message.body.len());
        let attributes = Attributes(message.body).map(|(_, value)| value.len());
        assert!(attributes.fold(0, usize::saturating_add) <= message.body.len());
    }
    assert!(length <= bytes.len());
}

/// An entry of the kernel's connection tracking: what is taken over is a guest's.
pub fn conntrack_entry(bytes: &[u8]) {
    let networks: [Ipv4Net; 1] = [Ipv4Net::new_assert([192, 168, 77, 0].into(), 24)];
    if let Some(Translation { internal, remote, external, .. }) = conntrack::decode(bytes, &networks) {
        let is_guests = |address| networks.iter().any(|net| net.contains(&Ipv4Addr::from(address)));
        assert!(is_guests(internal.address) && !is_guests(remote.address));
        assert_ne!(internal, external);
    }
}

/// Chains, rules and set elements of nftables.
pub fn port_rules(bytes: &[u8]) {
    facts::decode_port_rules(bytes);
}

/// Filters and queueing disciplines of tc.
pub fn tc_filters(bytes: &[u8]) {
    facts::decode_filters(bytes);
}

/// Rules of both iptables and nftables as doctor records them: whatever they are, it says something about them.
pub fn doctor_rules(bytes: &[u8]) {
    let report = doctor::examine_any(bytes);
    assert!(!report.verdict.is_empty());
    assert_eq!(report.offline, report.cause.is_some());
    assert!(report.text(80, true).starts_with(report.verdict.get(..1).unwrap_or_default()));
}

fn reads_back(spec: &ForwardSpec) {
    let form = spec.to_string();
    let read = form.parse::<ForwardSpec>().map_err(|error| error.to_string());
    assert_eq!(read.as_ref(), Ok(spec), "{form}");
    assert_eq!(read.map(|read| read.to_string()), Ok(form), "one form");
}

fn survives_json<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &T) {
    let written = written(value);
    let read = serde_json::from_str::<T>(&written).map_err(|error| error.to_string());
    assert_eq!(read.as_ref(), Ok(value), "{written}");
}

fn written(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_every_target_holds() {
        for (name, target) in TARGETS {
            let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
            let files: Vec<_> =
                std::fs::read_dir(&corpus).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(!files.is_empty(), "{} is empty", corpus.display());
            for file in files {
                target(&std::fs::read(file).unwrap());
            }
        }
    }
}
