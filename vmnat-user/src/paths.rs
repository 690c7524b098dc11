//! Where an instance keeps its pins, its running state, and what outlives it.

use std::{fmt, path::PathBuf, str::FromStr};

use vmnat_common::SCHEMA_VERSION;

use crate::error::Error;

/// Mount point of the BPF file system.
pub const BPF_FS: &str = "/sys/fs/bpf";

/// Parent of every instance's running state.
pub const RUN: &str = "/run/vmnat";

/// Parent of what every instance keeps over a reboot.
pub const LIBRARY: &str = "/var/lib/vmnat";

/// Parent of every instance's configuration, and the default one's own.
pub const CONFIGURATION: &str = "/etc/vmnat";

/// The name that separates this vmnat's pins, state and lock from another's on the same kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    name: String,
    schema: u32,
}

impl Default for Instance {
    fn default() -> Self {
        Self { name: "default".to_owned(), schema: SCHEMA_VERSION }
    }
}

impl FromStr for Instance {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if name.is_empty() || name.len() > 32 || !name.bytes().all(fits) {
            return Err(Error::Usage(format!(
                "\"{name}\" cannot name an instance: use 1 to 32 letters, digits, \"-\" and \"_\""
            )));
        }
        Ok(Self { name: name.to_owned(), schema: SCHEMA_VERSION })
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Instance {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same instance as another version sees it: with its pins where those of that schema are.
    #[must_use]
    pub fn of_schema(&self, schema: u32) -> Self {
        Self { name: self.name.clone(), schema }
    }

    /// The schema of its pins.
    #[must_use]
    pub const fn schema(&self) -> u32 {
        self.schema
    }

    fn is_default(&self) -> bool {
        self.name == "default"
    }

    /// The words that select it on the command line, with a blank in front; empty for the default one.
    #[must_use]
    pub fn option(&self) -> String {
        if self.is_default() { String::new() } else { format!(" --instance {}", self.name) }
    }

    /// Directory of the operator's files: `/etc/vmnat`, or for another instance than the default one that of its name below.
    #[must_use]
    pub fn configuration(&self) -> PathBuf {
        let folder = PathBuf::from(CONFIGURATION);
        if self.is_default() { folder } else { folder.join(&self.name) }
    }

    /// All of the instance's pins, of every schema.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        PathBuf::from(BPF_FS).join("vmnat").join(&self.name)
    }

    /// The pins of its schema.
    #[must_use]
    pub fn schema_pins(&self) -> PathBuf {
        self.pins().join(format!("v{}", self.schema))
    }

    /// The pin of a map.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Directory of the pinned maps.
    #[must_use]
    pub fn maps(&self) -> PathBuf {
        self.schema_pins().join("maps")
    }

    /// The pin of a program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Directory of the pinned programs.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.schema_pins().join("progs")
    }

    /// Directory of the pinned links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.schema_pins().join("links")
    }

    /// The pin of a link. The BPF file system refuses dots in names, which VLAN interfaces have.
    #[must_use]
    pub fn link(&self, interface: &str, hook: &str) -> PathBuf {
        let interface = interface.replace('%', "%25").replace('.', "%2e");
        self.links().join(format!("{interface}-{hook}"))
    }

    /// Directory of the pinned links of the host's own sockets.
    #[must_use]
    pub fn host_links(&self) -> PathBuf {
        self.schema_pins().join("host")
    }

    /// Directory of the running state.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        PathBuf::from(RUN).join(&self.name)
    }

    /// The running state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.run().join("state.json")
    }

    /// Directory of what outlives `down` and a reboot.
    #[must_use]
    pub fn library(&self) -> PathBuf {
        PathBuf::from(LIBRARY).join(&self.name)
    }

    /// The port forwards that outlive `down` and a reboot.
    #[must_use]
    pub fn forwards(&self) -> PathBuf {
        self.library().join("forwards.json")
    }

    /// What the instance was asked to be, until `down`.
    #[must_use]
    pub fn wish(&self) -> PathBuf {
        self.library().join("wish.json")
    }

    /// The mappings, for ports to rest when the maps are lost.
    #[must_use]
    pub fn mappings(&self) -> PathBuf {
        self.library().join("mappings")
    }

    /// The leases that the agent gave.
    #[must_use]
    pub fn dhcp_leases(&self) -> PathBuf {
        self.library().join("dhcp.leases")
    }

    /// What the agent's DHCP servers do.
    #[must_use]
    pub fn dhcp(&self) -> PathBuf {
        self.run().join("dhcp.json")
    }

    /// Held while the instance is changed.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.run().join("lock")
    }

    /// The agent's process number; locked as long as it lives.
    #[must_use]
    pub fn agent_pid(&self) -> PathBuf {
        self.run().join("agent.pid")
    }

    /// Where the quiet room's network namespace is kept.
    #[must_use]
    pub fn room(&self) -> PathBuf {
        self.run().join("room")
    }

    /// What happened in the last minute.
    #[must_use]
    pub fn events(&self) -> PathBuf {
        self.run().join("events.json")
    }

    /// The agent's log.
    #[must_use]
    pub fn agent_log(&self) -> PathBuf {
        self.run().join("agent.log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for name in ["", "..", "a/b", "a.b", "with blank"] {
            assert!(name.parse::<Instance>().is_err(), "{name:?}");
        }
        assert!("host-1_a".parse::<Instance>().is_ok());
    }

    #[test]
    fn pins_have_no_dots_after_the_mount_point() {
        let pin = Instance::default().link("eth0.5", "ingress");
        assert_eq!(pin.file_name().unwrap(), "eth0%2e5-ingress");
    }
}
