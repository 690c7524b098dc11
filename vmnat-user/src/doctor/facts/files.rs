//! Files that say what ought to be: libvirt's networks, ufw's defaults, Docker's settings, systemd-networkd's DHCP
//! servers, the host's resolvers. A file that is absent or cannot be understood says nothing.

use std::{fs, path::Path};

/// Where libvirt defines networks, and where it notes those that run.
const NETWORKS: &str = "/etc/libvirt/qemu/networks";
const RUNNING: [&str; 2] = ["/run/libvirt/network", "/var/run/libvirt/network"];

/// Where systemd-networkd's files are, the first that has a name wins.
const NETWORKD: [&str; 4] =
    ["/etc/systemd/network", "/run/systemd/network", "/usr/lib/systemd/network", "/lib/systemd/network"];

/// A network of libvirt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibvirtNetwork {
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: Option<String>,
    /// `nat`, `route`, `open`, `bridge`; none: isolated.
    pub forward: Option<String>,
    /// It has a `<dhcp>`.
    pub has_dhcp: bool,
    /// It limits its ports' rate.
    pub has_bandwidth: bool,
    /// It runs.
    pub is_active: bool,
    /// Its file.
    pub file: String,
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configured {
    /// The file.
    pub file: String,
    /// The line.
    pub line: String,
}

/// What the files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// libvirt's networks.
    pub libvirt: Vec<LibvirtNetwork>,
    /// ufw is enabled.
    pub ufw_enabled: bool,
    /// ufw's `DEFAULT_FORWARD_POLICY`.
    pub ufw_forward: Option<Configured>,
    /// ufw's `DEFAULT_INPUT_POLICY`.
    pub ufw_input: Option<Configured>,
    /// Docker's settings file, where it says something about iptables.
    pub docker: Option<Configured>,
    /// systemd-networkd's files with a DHCP server, by the pattern of their interface.
    pub dhcp_servers: Vec<(String, Configured)>,
    /// `nameserver` lines.
    pub resolvers: Vec<String>,
    /// The file in which nftables' rules are kept, where it drops something.
    pub nftables: Option<Configured>,
    /// Modules of ebtables-legacy that hold tables.
    pub ebtables: Vec<String>,
    /// libvirt's network filters of running guests, by port.
    pub nwfilters: Vec<(String, String)>,
}

impl Files {
    /// Reads them.
    #[must_use]
    pub fn read() -> Self {
        let ufw = fs::read_to_string("/etc/default/ufw").unwrap_or_default();
        let of_ufw = |name: &str| {
            let line = ufw.lines().find(|line| line.starts_with(name))?;
            Some(Configured { file: "/etc/default/ufw".into(), line: line.to_owned() })
        };
        let enabled = fs::read_to_string("/etc/ufw/ufw.conf").unwrap_or_default();
        Self {
            libvirt: libvirt(),
            ufw_enabled: enabled.lines().any(|line| line.trim() == "ENABLED=yes"),
            ufw_forward: of_ufw("DEFAULT_FORWARD_POLICY="),
            ufw_input: of_ufw("DEFAULT_INPUT_POLICY="),
            docker: docker(),
            dhcp_servers: dhcp_servers(),
            resolvers: resolvers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
            nftables: nftables(),
            nwfilters: nwfilters(),
            ebtables: ebtables(&fs::read_to_string("/proc/modules").unwrap_or_default()),
        }
    }

    /// The file by which systemd-networkd serves DHCP at an interface.
    #[must_use]
    pub fn dhcp_server_of(&self, interface: &str) -> Option<&Configured> {
        let is_of = |pattern: &str| pattern.split_whitespace().any(|word| matches(word, interface));
        self.dhcp_servers.iter().find(|(pattern, _)| is_of(pattern)).map(|(_, file)| file)
    }

    /// libvirt's network on a bridge.
    #[must_use]
    pub fn network_of(&self, bridge: &str) -> Option<&LibvirtNetwork> {
        self.libvirt.iter().find(|network| network.bridge.as_deref() == Some(bridge))
    }
}

/// A shell pattern with at most one `*`, as networkd's files have them.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((head, tail)) => {
            name.len() >= head.len().saturating_add(tail.len())
                && name.starts_with(head)
                && name.ends_with(tail)
        }
        None => pattern == name,
    }
}

fn files_of(directory: &str, extension: &str) -> Vec<(String, String)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let is_wanted = |path: &Path| path.extension().is_some_and(|found| found == extension);
    let read = |path: &Path| Some((path.display().to_string(), fs::read_to_string(path).ok()?));
    paths.iter().filter(|path| is_wanted(path)).filter_map(|path| read(path)).collect()
}

fn libvirt() -> Vec<LibvirtNetwork> {
    let running: Vec<(String, String)> = RUNNING
        .iter()
        .map(|directory| files_of(directory, "xml"))
        .find(|found| !found.is_empty())
        .unwrap_or_default();
    let mut networks: Vec<LibvirtNetwork> =
        files_of(NETWORKS, "xml").iter().filter_map(|(file, text)| network(file, text)).collect();
    for (file, text) in &running {
        let Some(network) = network(file, text) else { continue };
        match networks.iter_mut().find(|known| known.name == network.name) {
            Some(known) => known.is_active = true,
            None => networks.push(LibvirtNetwork { is_active: true, ..network }),
        }
    }
    networks
}

/// A network from its definition, which libvirt keeps below `<networkstatus>` while it runs.
pub(super) fn network(file: &str, text: &str) -> Option<LibvirtNetwork> {
    let document = roxmltree::Document::parse(text).ok()?;
    let root = document.descendants().find(|node| node.has_tag_name("network"))?;
    let child = |name: &'static str| root.children().find(move |node| node.has_tag_name(name));
    let forward = child("forward");
    Some(LibvirtNetwork {
        name: child("name")?.text()?.trim().to_owned(),
        bridge: child("bridge").and_then(|node| node.attribute("name")).map(str::to_owned),
        forward: forward.map(|node| node.attribute("mode").unwrap_or("nat").to_owned()),
        has_dhcp: root.descendants().any(|node| node.has_tag_name("dhcp")),
        has_bandwidth: root.descendants().any(|node| node.has_tag_name("bandwidth")),
        is_active: false,
        file: file.to_owned(),
    })
}

fn nwfilters() -> Vec<(String, String)> {
    let directories = ["/run/libvirt/nwfilter-binding", "/var/run/libvirt/nwfilter-binding"];
    let files =
        directories.iter().map(|directory| files_of(directory, "xml")).find(|found| !found.is_empty());
    let binding = |(_, text): &(String, String)| {
        let document = roxmltree::Document::parse(text).ok()?;
        let attribute = |tag: &str, name: &str| {
            let node = document.descendants().find(|node| node.has_tag_name(tag))?;
            node.attribute(name).map(str::to_owned)
        };
        Some((attribute("portdev", "name")?, attribute("filterref", "filter")?))
    };
    files.unwrap_or_default().iter().filter_map(binding).collect()
}

fn docker() -> Option<Configured> {
    let file = "/etc/docker/daemon.json";
    let settings: serde_json::Value = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
    let name = ["iptables", "ip-forward", "ip-forward-no-drop", "firewall-backend"]
        .into_iter()
        .find(|name| settings.get(*name).is_some())?;
    Some(Configured { file: file.into(), line: format!("\"{name}\": {}", settings.get(name)?) })
}

fn nftables() -> Option<Configured> {
    let file = "/etc/nftables.conf";
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.contains("hook forward") && line.contains("policy drop"))?;
    Some(Configured { file: file.into(), line: line.trim().to_owned() })
}

fn dhcp_servers() -> Vec<(String, Configured)> {
    let mut seen = std::collections::BTreeSet::new();
    let mut found = Vec::new();
    for (file, text) in NETWORKD.iter().flat_map(|directory| files_of(directory, "network")) {
        let name = Path::new(&file).file_name().map(std::ffi::OsStr::to_os_string);
        if name.is_none_or(|name| seen.insert(name)) {
            found.extend(dhcp_server(&file, &text));
        }
    }
    found
}

/// The pattern of the interfaces that a file of networkd serves DHCP at.
pub(super) fn dhcp_server(file: &str, text: &str) -> Option<(String, Configured)> {
    let value = |key: &str| {
        let lines = text.lines().map(str::trim);
        lines
            .filter_map(|line| line.split_once('='))
            .find(|(found, _)| found.trim() == key)
            .map(|(_, value)| value.trim())
    };
    let is_on = matches!(value("DHCPServer")?.to_ascii_lowercase().as_str(), "yes" | "true" | "1" | "on");
    let configured = Configured { file: file.to_owned(), line: "DHCPServer=yes".to_owned() };
    is_on.then_some((value("Name")?.to_owned(), configured))
}

/// The tables of ebtables-legacy that are loaded: the kernel lists them nowhere else.
fn ebtables(modules: &str) -> Vec<String> {
    const TABLES: [&str; 3] = ["ebtable_broute", "ebtable_filter", "ebtable_nat"];
    let names = modules.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| TABLES.contains(name)).map(str::to_owned).collect()
}

fn resolvers(text: &str) -> Vec<String> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|rest| rest.split_whitespace().next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_libvirt_is_read_from_its_definition_and_its_status() {
        let text = "<network><name>default</name><forward mode='nat'/><bridge name='virbr0' stp='on' delay='0'/>
            <ip address='192.168.122.1' netmask='255.255.255.0'><dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp></ip></network>";
        for text in [text.to_owned(), format!("<networkstatus><floor sum='0'/>{text}</networkstatus>")] {
            let network = network("f", &text).unwrap();
            assert_eq!((network.name.as_str(), network.bridge.as_deref()), ("default", Some("virbr0")));
            assert!(network.has_dhcp && !network.has_bandwidth);
            assert_eq!(network.forward.as_deref(), Some("nat"));
        }
        assert_eq!(network("f", "<network>"), None);
    }

    #[test]
    fn networkds_dhcp_server_is_found_by_its_pattern() {
        let text = "[Match]\nName=virbr* br7\n[Network]\nAddress=10.0.0.1/24\nDHCPServer=yes\n[DHCPServer]\nPoolOffset=20\n";
        let files = Files { dhcp_servers: dhcp_server("f", text).into_iter().collect(), ..Files::default() };
        assert!(files.dhcp_server_of("virbr0").is_some() && files.dhcp_server_of("br7").is_some());
        assert!(files.dhcp_server_of("br70").is_none());
        assert_eq!(dhcp_server("f", &text.replace("yes", "no")), None);
    }

    #[test]
    fn tables_of_ebtables_legacy_are_seen_by_their_modules() {
        let modules = "ebtable_filter 16384 1 - Live 0x0\nebtables 40960 1 ebtable_filter, Live 0x0\nveth 1 0 - Live 0x0\n";
        assert_eq!(ebtables(modules), ["ebtable_filter"]);
    }

    #[test]
    fn resolvers_are_read() {
        assert_eq!(resolvers("# c\nsearch x\nnameserver 10.0.0.1\n nameserver ::1 \n"), ["10.0.0.1", "::1"]);
    }
}
