//! Settings and port pool.

use std::{fs::File, io::Read as _, ops::RangeInclusive, time::Duration};

use anyhow::{Context as _, Result, bail};
use tracing::info;
use vmnat_common::{Protocol, SCHEMA_VERSION, settings::Settings, timeout::Timeouts};

use crate::{
    forwards::ForwardSpec, host_ports, netns, paths::Instance, rest::Snapshot, state::State, tables::Tables,
};

/// Writes what differs. Secret, clock rate and generation stay once they are chosen. Where the maps are fresh, the ports of
/// those that were lost get their rest, before any program hands out ports.
pub(super) fn settle(instance: &Instance, tables: &Tables, state: &State) -> Result<()> {
    let current = tables.settings()?;
    let hertz = if current.hertz == 0 { tables.find_hertz()? } else { current.hertz };
    let timeouts = timeouts(state)?;
    let is_fresh = current.secret == [0, 0];
    let rest = Duration::from_secs(timeouts.mapping_rest.into());
    let lost = if is_fresh { Snapshot::load(instance, rest) } else { None };
    let secret = match &lost {
        Some(lost) => lost.secret,
        None if is_fresh => random()?,
        None => current.secret,
    };
    let pool = settle_pool(tables, state)?;
    let wanted = Settings {
        schema: SCHEMA_VERSION,
        epoch_shift: Settings::epoch_shift_for(hertz),
        hertz,
        secret,
        pool_first: pool.first,
        pool_last: pool.last,
        timeouts: timeouts.in_jiffies(hertz),
        quotas: state.quotas.into(),
        netns_cookie: netns::cookie().context("ask for the network namespace's cookie")?,
        ..current
    };
    let restored = lost.map_or(Ok(0), |lost| lost.restore(tables))?;
    if restored > 0 {
        info!("the ports of {restored} mappings rest for {} s, and are their owners' again", rest.as_secs());
    }
    if wanted != current {
        tables.set_settings(&wanted)?;
    }
    if !tables.is_watched()? {
        tables.set_sentinel().context("write the flow table's sentinel")?;
    }
    Ok(())
}

/// Takes the ports that the host holds, and those of forwards, out of the pool.
fn settle_pool(tables: &Tables, state: &State) -> Result<host_ports::Pool> {
    let pool = pool(state)?;
    for (index, word) in (0_u32..).zip(pool.words.iter()) {
        if tables.port_pool.get(&index)? != Some(*word) {
            tables.port_pool.set(&index, word).context("write the port pool")?;
        }
    }
    Ok(pool)
}

/// The masquerade pool that the wish and the host's ports leave.
///
/// # Errors
/// When the kernel does not say which ports the host has.
pub fn pool(state: &State) -> Result<host_ports::Pool> {
    let forwards: Vec<(Protocol, RangeInclusive<u16>)> =
        state.forwards.iter().flat_map(|forward| ports_of(&forward.wish.spec)).collect();
    Ok(host_ports::pool(&state.pool.ports(), &host_ports::taken()?, &forwards))
}

fn ports_of(spec: &ForwardSpec) -> impl Iterator<Item = (Protocol, RangeInclusive<u16>)> {
    let ports = spec.ports;
    spec.protocols.each().iter().map(move |protocol| (*protocol, ports.first()..=ports.last()))
}

/// The timeouts in seconds: the defaults, and what was asked for.
///
/// # Errors
/// When a name is unknown.
pub fn timeouts(state: &State) -> Result<Timeouts> {
    let mut timeouts = Timeouts::SECONDS;
    for (name, seconds) in &state.timeouts {
        match field(&mut timeouts, name) {
            Some(field) => *field = *seconds,
            None => bail!("there is no timeout {name}"),
        }
    }
    Ok(timeouts)
}

/// Names of all timeouts.
pub const TIMEOUTS: [&str; 11] = [
    "tcp_half_open",
    "tcp_established",
    "tcp_half_closed",
    "tcp_closed",
    "tcp_reset",
    "udp_unreplied",
    "udp_replied",
    "udp_dns",
    "icmp",
    "other",
    "mapping_rest",
];

/// The default of a timeout in seconds, by its name.
#[must_use]
pub fn default_timeout(name: &str) -> Option<u32> {
    let mut defaults = Timeouts::SECONDS;
    field(&mut defaults, name).copied()
}

fn field<'a>(timeouts: &'a mut Timeouts, name: &str) -> Option<&'a mut u32> {
    Some(match name {
        "tcp_half_open" => &mut timeouts.tcp_half_open,
        "tcp_established" => &mut timeouts.tcp_established,
        "tcp_half_closed" => &mut timeouts.tcp_half_closed,
        "tcp_closed" => &mut timeouts.tcp_closed,
        "tcp_reset" => &mut timeouts.tcp_reset,
        "udp_unreplied" => &mut timeouts.udp_unreplied,
        "udp_replied" => &mut timeouts.udp_replied,
        "udp_dns" => &mut timeouts.udp_dns,
        "icmp" => &mut timeouts.icmp,
        "other" => &mut timeouts.other,
        "mapping_rest" => &mut timeouts.mapping_rest,
        _ => return None,
    })
}

fn random() -> Result<[u32; 2]> {
    let mut words = [0_u32; 2];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(bytemuck::bytes_of_mut(&mut words)))
        .context("read /dev/urandom")?;
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_timeout_has_its_name() {
        let mut timeouts = Timeouts::SECONDS;
        for name in TIMEOUTS {
            *field(&mut timeouts, name).unwrap() = 7;
        }
        assert!(bytemuck::cast_slice::<_, u32>(&[timeouts]).iter().all(|seconds| *seconds == 7));
        assert!(field(&mut timeouts, "nonsense").is_none());
    }
}
