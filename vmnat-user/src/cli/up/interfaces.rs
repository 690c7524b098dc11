//! The interfaces that `up` was asked for: waits for them, and says what is wrong with them.

use std::time::Duration;

use anyhow::Result;
use rtnetlink::Handle;
use tokio::time::{Instant, sleep};

use super::Args;
use crate::{
    config::Config,
    error::Error,
    facts::{self, Facts},
    paths::Instance,
    state,
};

/// Looks at the interfaces until everything that was asked for is there, as long as `--wait` allows.
///
/// Those of options must be there then; for those of files the agent waits on.
pub(super) async fn wait(
    instance: &Instance,
    args: &Args,
    config: Option<&Config>,
    handle: &Handle,
) -> Result<Facts> {
    let is_first = state::find(instance)?.is_none();
    let said = |key: &str| named(config, key);
    if is_first && args.bridges.is_empty() && said("bridge").is_empty() {
        let what = "name the bridge of the guests: `vmnat up --bridge BRIDGE`, or [bridge.BRIDGE] in /etc/vmnat/vmnat.toml";
        return Err(Error::Usage(what.into()).into());
    }
    let patience = args.wait.unwrap_or_default();
    let insists = args.wait != Some(Duration::ZERO);
    let since = Instant::now();
    loop {
        let facts = facts::gather(handle).await?;
        let needs_route = is_first && args.uplinks.is_empty() && said("uplink").is_empty();
        let of_files = || {
            said("bridge").iter().try_for_each(|bridge| check_bridge(&facts, bridge))?;
            said("uplink").iter().try_for_each(|uplink| check_uplink(&facts, uplink))
        };
        let is_over = since.elapsed() >= patience;
        let checked = check_interfaces(args, &facts, needs_route && config.is_none());
        match checked.and_then(|()| if is_over { Ok(()) } else { of_files() }) {
            Ok(()) => return Ok(facts),
            Err(error) if !insists && may_come(&error) => return Ok(facts),
            Err(error) if is_over => return Err(error),
            Err(error) => tracing::info!("waiting: {error:#}"),
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// True for what is merely not there yet.
fn may_come(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(Error::NoInterface { .. } | Error::NoUplinkAddress { .. } | Error::NoDefaultRoute)
    )
}

/// The interfaces that files name.
fn named(config: Option<&Config>, key: &str) -> Vec<String> {
    let said = config.into_iter().flat_map(|config| &config.statements).map(|(said, _)| said);
    said.filter(|said| said.bridge.is_none() && said.key == key).map(|said| said.value.plain()).collect()
}

fn check_interfaces(args: &Args, facts: &Facts, needs_route: bool) -> Result<()> {
    for bridge in &args.bridges {
        check_bridge(facts, bridge)?;
    }
    for uplink in &args.uplinks {
        check_uplink(facts, uplink)?;
    }
    if needs_route {
        let uplink = facts.default_uplink().ok_or(Error::NoDefaultRoute)?;
        check_uplink(facts, &uplink.name)?;
    }
    Ok(())
}

/// Fails unless the interface is a bridge; says which bridges there are.
pub(in crate::cli) fn check_bridge(facts: &Facts, name: &str) -> Result<()> {
    let bridges: Vec<&str> =
        facts.links.iter().filter(|link| link.is_bridge).map(|link| link.name.as_str()).collect();
    let hint = match bridges[..] {
        [] => "there are no bridges here".to_owned(),
        [only] => format!("the only bridge is {only}"),
        _ => format!("the bridges are {}", bridges.join(", ")),
    };
    let name = name.to_owned();
    match facts.link(&name) {
        None => Err(Error::NoInterface { name, hint }.into()),
        Some(link) if !link.is_bridge => Err(Error::NotABridge { name, hint }.into()),
        Some(_) => Ok(()),
    }
}

/// Fails unless the interface exists, can be served, and has an address.
pub(in crate::cli) fn check_uplink(facts: &Facts, name: &str) -> Result<()> {
    let Some(link) = facts.link(name) else {
        let others = facts.links.iter().filter(|link| !link.loopback && link.master.is_none());
        let others: Vec<&str> = others.map(|link| link.name.as_str()).collect();
        let hint = format!("the interfaces are {}", others.join(", "));
        return Err(Error::NoInterface { name: name.to_owned(), hint }.into());
    };
    if !link.can_be_uplink() {
        return Err(Error::UnknownLinkLayer { name: name.to_owned() }.into());
    }
    let master = link.master.and_then(|master| facts.link_at(master)).filter(|master| master.is_bridge);
    if let Some(bridge) = master {
        let (name, bridge) = (name.to_owned(), bridge.name.clone());
        return Err(Error::PortAsUplink { name, bridge }.into());
    }
    if facts.primary_address(link.index).is_none() {
        return Err(Error::NoUplinkAddress { name: name.to_owned() }.into());
    }
    Ok(())
}
