//! vmnat as doctor finds it: what the instance was asked for, whether it is whole, and which ports have something that
//! their hook would step past.

use std::{collections::BTreeMap, fs, os::fd::AsFd as _};

use super::Subject;
use crate::{
    agent, dataplane,
    dataplane::program,
    facts::{self, Facts},
    link::{self, Point},
    paths::Instance,
    rawbpf,
    state::{self, HookMode, State},
};

/// An instance.
#[derive(Clone, Debug)]
pub struct Vmnat {
    /// How it is named on the command line.
    pub option: String,
    /// What it was asked for; none: it does not run.
    pub state: Option<State>,
    /// Its state exists and cannot be read: why.
    pub unreadable: Option<String>,
    /// Its agent's process.
    pub agent: Option<i32>,
    /// Its maps and programs are there.
    pub is_pinned: bool,
    /// Pins of it that no state speaks of.
    pub stale: Vec<String>,
    /// Why this kernel cannot run it.
    pub refused: Option<String>,
    /// How it would attach.
    pub hook: HookMode,
    /// The kernel describes its types.
    pub has_btf: bool,
    /// What each port has that its hook would step past.
    pub obstructed: BTreeMap<String, String>,
    /// Programs of others that run before this instance's, by interface.
    pub ahead: BTreeMap<String, String>,
    /// Interfaces at which its program stands.
    pub attached: Vec<String>,
}

impl Default for Vmnat {
    fn default() -> Self {
        Self {
            option: String::new(),
            state: None,
            unreadable: None,
            agent: None,
            is_pinned: false,
            stale: Vec::new(),
            refused: None,
            hook: HookMode::Tcx,
            has_btf: true,
            obstructed: BTreeMap::new(),
            ahead: BTreeMap::new(),
            attached: Vec::new(),
        }
    }
}

impl Vmnat {
    /// Looks at an instance.
    pub(super) fn look(instance: &Instance, net: &Facts) -> Self {
        let (state, unreadable) = match state::find_running(instance) {
            Ok(state) => (state, None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let refused = dataplane::check_kernel().err().map(|error| format!("{error:#}"));
        let is_pinned = dataplane::is_pinned(instance);
        let mut vmnat = Self {
            option: instance.option(),
            agent: agent::running(instance).map(nix::unistd::Pid::as_raw),
            is_pinned,
            stale: if state.is_none() { stale(instance) } else { Vec::new() },
            refused,
            hook: link::kernel_mode(),
            has_btf: fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false),
            state,
            unreadable,
            ..Self::default()
        };
        if let Some(state) = &vmnat.state {
            let names = |link: &&facts::LinkFact| is_of(state, net, link);
            for link in net.links.iter().filter(names) {
                let (stands, ahead) = stands(instance, state, link);
                if stands {
                    vmnat.attached.push(link.name.clone());
                }
                if let Some(ahead) = ahead {
                    vmnat.ahead.insert(link.name.clone(), ahead);
                }
            }
        }
        vmnat
    }

    /// The bridges that it was asked to serve.
    pub fn bridges(&self) -> impl Iterator<Item = &str> {
        self.state.iter().flat_map(|state| &state.bridges).map(|bridge| bridge.name.as_str())
    }

    /// True where the guests of a bridge are served: its hook stands, and that of an uplink.
    #[must_use]
    pub fn serves(&self, bridge: &str) -> bool {
        let stands = |name: &str| self.attached.iter().any(|attached| attached == name);
        let has_uplink = self.attached.iter().any(|name| !self.bridges().any(|bridge| bridge == name));
        self.is_pinned && self.bridges().any(|name| name == bridge) && stands(bridge) && has_uplink
    }

    /// True where it could serve them, or does.
    #[must_use]
    pub fn can_run(&self) -> bool {
        self.refused.is_none() && self.has_btf
    }

    /// Notes what stands at the ports of the bridges.
    pub(super) fn look_at_ports(&mut self, net: &Facts, subjects: &[Subject]) {
        let rules = facts::port_rules().unwrap_or_default();
        for subject in subjects {
            for port in net.ports_of(subject.bridge.index) {
                let filters = facts::filters(port.index, Point::Ingress).unwrap_or_default();
                let is_others =
                    |filter: &&facts::Filter| filter.program.as_deref() != Some(program::OUTBOUND_PORT);
                let filter = filters.iter().find(is_others);
                let what = match filter {
                    Some(filter) => Some(format!("its ingress has a {} filter of tc", filter.kind)),
                    None => rules.concerning(&port.name, &subject.bridge.name),
                };
                if let Some(what) = what {
                    self.obstructed.insert(port.name.clone(), what);
                }
            }
        }
    }
}

/// Whether a link is one of the instance's bridges or uplinks.
fn is_of(state: &State, net: &Facts, link: &facts::LinkFact) -> bool {
    let is_bridge = state.bridges.iter().any(|bridge| bridge.name == link.name);
    is_bridge || crate::plan::uplinks(state, net).iter().any(|uplink| uplink.index == link.index)
}

/// Whether the instance's program stands at the ingress of a bridge or uplink, and what runs before it.
fn stands(instance: &Instance, state: &State, link: &facts::LinkFact) -> (bool, Option<String>) {
    let name = if link.is_bridge && state.bridges.iter().any(|bridge| bridge.name == link.name) {
        program::OUTBOUND_BRIDGE
    } else {
        program::INBOUND
    };
    if state.hook == HookMode::Clsact {
        let present = facts::filters(link.index, Point::Ingress).unwrap_or_default();
        let own = |record: &state::FilterRecord| {
            record.ifindex == link.index
                && record.point == Point::Ingress
                && present
                    .iter()
                    .any(|found| found.preference == record.priority && found.handle == record.handle)
        };
        let preference = state.filters.iter().find(|record| own(record)).map(|record| record.priority);
        let first = present.iter().filter(|found| preference.is_some_and(|own| found.preference < own));
        let ahead =
            first.min_by_key(|found| found.preference).map(|found| format!("a {} filter", found.kind));
        return (preference.is_some(), ahead);
    }
    let own = rawbpf::object_get(&instance.program(name))
        .and_then(|fd| rawbpf::program_id(fd.as_fd()))
        .unwrap_or(0);
    let entries = rawbpf::query_tcx(link.index, rawbpf::TcxPoint::Ingress).unwrap_or_default();
    let place = entries.iter().position(|entry| entry.program == own);
    let ahead = entries.first().filter(|_| place.is_some_and(|place| place > 0)).map(|entry| {
        let name =
            rawbpf::program_name(entry.program).unwrap_or_else(|_| format!("program {}", entry.program));
        format!("the BPF program {name}")
    });
    (place.is_some(), ahead)
}

/// Pins of an instance that does not run.
fn stale(instance: &Instance) -> Vec<String> {
    let pins = instance.pins();
    let is_there = fs::read_dir(&pins).is_ok_and(|mut entries| entries.next().is_some());
    if is_there { vec![pins.display().to_string()] } else { Vec::new() }
}
