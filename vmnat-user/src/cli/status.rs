//! `vmnat status`: what is attached where, and how it is.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use tokio::time::sleep;
use vmnat_common::bridge::BridgePortFlags;

use super::{access, guests, network, print, uplink};
use crate::{
    access::Rule,
    agent, change,
    dataplane::program::{self, HostProgram},
    dhcp::{self, DhcpRow},
    error::Error,
    events::{self, Event},
    facts,
    facts::Facts,
    flows::{self, Filter},
    link::{self, Point},
    paths::Instance,
    plan::{self, Circumstances},
    rawbpf,
    reconcile::settings,
    report::{self, Column},
    room,
    services::{self, ServiceRow},
    state::{self, Filtering, GuestQuotas, HookMode, State},
    tables::Tables,
};

/// How long the agent has for a hook before it counts as missing.
const MOMENT: Duration = Duration::from_millis(500);

/// Show networks, uplinks, hooks and health
///
/// Ends with 0 when all is well, with 13 when the agent is dead or stopped or a hook is missing (a line on standard error says which), and
/// with 9 when the instance does not run. Warnings alone are no failure.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Status {
    instance: String,
    version: &'static str,
    /// Agent and hooks are all there.
    healthy: bool,
    hook_mode: &'static str,
    networks: Vec<network::Row>,
    uplinks: Vec<uplink::Row>,
    hooks: Vec<HookRow>,
    flows: u64,
    flows_max: u32,
    port_forwards: usize,
    guest_quotas: GuestQuotas,
    pool: PoolRow,
    /// What guests may use of the host whatever its INPUT rules say.
    services: Vec<ServiceRow>,
    /// Who gives addresses to guests.
    dhcp: Vec<DhcpRow>,
    events: Vec<Event>,
    agent: AgentRow,
    warnings: Vec<String>,
    access: Vec<Rule>,
    firewall_forward_rules_apply: bool,
    ipv6: &'static str,
}

/// External ports of guests.
#[derive(Debug, Serialize)]
struct PoolRow {
    first: u16,
    last: u16,
    /// Ports that the host leaves to guests.
    free_tcp: u32,
    free_udp: u32,
}

#[derive(Debug, Serialize)]
struct AgentRow {
    pid: Option<i32>,
    /// It was stopped, and does nothing.
    stopped: bool,
    log: String,
}

#[derive(Debug, Serialize)]
struct HookRow {
    interface: String,
    point: &'static str,
    program: &'static str,
    attached: bool,
    /// Every program at the hook, in the order in which they run; tcx only.
    order: Vec<String>,
}

/// Runs the command.
///
/// # Errors
/// When the instance does not run, or the kernel refuses.
pub async fn run(instance: &Instance, args: &Args) -> Result<()> {
    let Args { json } = args;
    let mut status = look(instance).await?;
    if !status.healthy && status.agent.pid.is_some() && !status.agent.stopped {
        // The agent may be attaching it just now.
        sleep(MOMENT).await;
        status = look(instance).await?;
    }
    let missing = missing(&status.agent, &status.hooks);
    if *json {
        print::line(&report::json("status", &[status])?)?;
    } else {
        print::text(&text(&status))?;
    }
    let Some(what) = missing else { return Ok(()) };
    Err(Error::Degraded { instance: instance.to_string(), what, option: instance.option() }.into())
}

async fn look(instance: &Instance) -> Result<Status> {
    let state = state::load(instance)?;
    let tables = Tables::open(instance)?;
    let facts = facts::gather(&change::connect()?).await?;
    status(instance, state, &tables, &facts)
}

/// What is missing, as a clause; none when all is well.
fn missing(agent: &AgentRow, hooks: &[HookRow]) -> Option<String> {
    let agent = match agent.pid {
        None => Some("its agent is dead, so flows do not expire and new ports wait".to_owned()),
        Some(pid) if agent.stopped => {
            Some(format!("its agent (process {pid}) is stopped, so flows do not expire and new ports wait"))
        }
        Some(_) => None,
    };
    let gone = hooks.iter().filter(|hook| !hook.attached);
    let gone: Vec<String> =
        gone.map(|hook| format!("{} at {} of {}", hook.program, hook.point, hook.interface)).collect();
    let hooks = match gone.len() {
        0 => None,
        1 => Some(format!("the hook {} is missing", gone.join(""))),
        _ => Some(format!("the hooks {} are missing", gone.join(", "))),
    };
    let clauses: Vec<String> = agent.into_iter().chain(hooks).collect();
    (!clauses.is_empty()).then(|| clauses.join(", and "))
}

fn status(instance: &Instance, state: State, tables: &Tables, facts: &Facts) -> Result<Status> {
    let hooks = hooks(instance, &state, tables, facts);
    let pid = agent::running(instance);
    let stopped = pid.is_some_and(agent::is_stopped);
    let agent = AgentRow { pid: pid.map(nix::unistd::Pid::as_raw), stopped, log: state.log.clone() };
    let events = events::recent(instance)?;
    let pool = settings::pool(&state)?;
    let files = state.file.fault.as_ref().map(|fault| {
        let name = state.file.source.name(instance);
        format!("what {name} says is not taken over: {fault}; `vmnat config check` shows all of it")
    });
    let events_told = events.iter().map(|event| event.text.clone());
    let warnings = files.into_iter().chain(state.warnings.iter().cloned()).chain(events_told).collect();
    Ok(Status {
        instance: instance.to_string(),
        version: env!("CARGO_PKG_VERSION"),
        healthy: missing(&agent, &hooks).is_none(),
        hook_mode: state.hook.name(),
        networks: network::rows(&state, facts),
        uplinks: uplink::rows(&state, facts),
        hooks,
        flows: flows::count(tables, &Filter::default())?,
        flows_max: state.flows,
        port_forwards: state.forwards.len(),
        guest_quotas: state.quotas,
        pool: PoolRow {
            first: pool.first,
            last: pool.last,
            free_tcp: pool.free_tcp,
            free_udp: pool.free_udp,
        },
        services: services::rows(&state, tables, facts)?,
        dhcp: dhcp::rows(instance, &state, facts, pid.is_some() && !stopped),
        events,
        agent,
        warnings,
        access: state.access,
        firewall_forward_rules_apply: false,
        ipv6: "passes untouched",
    })
}

/// Every hook that is wanted, and who stands there.
fn hooks(instance: &Instance, state: &State, tables: &Tables, facts: &Facts) -> Vec<HookRow> {
    let direct = |index: u32| {
        let entry = tables.bridge_port.get(&index).ok().flatten();
        entry.is_some_and(|port| port.flags & (BridgePortFlags::DIRECT | BridgePortFlags::OF_UPLINK) != 0)
    };
    // A port whose entry is not direct was found to have something behind its hook.
    let unfit = facts.links.iter().filter(|link| link.master.is_some() && !direct(link.index));
    let obstructed = unfit.map(|link| (link.index, String::new())).collect();
    // The room that the programs use: where its interfaces are gone, its hooks are missing.
    let room = tables.settings().ok().and_then(|settings| room::Ends::of(instance, &settings.room));
    let circumstances = Circumstances { obstructed, room, ..Circumstances::default() };
    let Ok(plan) = plan::plan(state, facts, &circumstances) else { return Vec::new() };
    let row = |hook: link::Hook| {
        let (attached, order) = match state.hook {
            HookMode::Tcx => tcx_order(instance, hook.ifindex, hook.point, hook.program),
            HookMode::Clsact => {
                let present = facts::filters(hook.ifindex, hook.point).unwrap_or_default();
                let stands = |record: &state::FilterRecord| {
                    record.ifindex == hook.ifindex
                        && record.point == hook.point
                        && present.iter().any(|filter| {
                            filter.preference == record.priority && filter.handle == record.handle
                        })
                };
                (state.filters.iter().any(stands), Vec::new())
            }
        };
        HookRow {
            interface: hook.interface,
            point: hook.point.name(),
            program: hook.program,
            attached,
            order,
        }
    };
    let sockets = if plan.forward.is_empty() { Vec::new() } else { host_hooks(instance) };
    plan.hooks.into_iter().map(row).chain(sockets).collect()
}

/// The hooks of the host's own sockets; none where the kernel has no place for them, which is a warning.
fn host_hooks(instance: &Instance) -> Vec<HookRow> {
    let Some(root) = link::cgroup_root() else { return Vec::new() };
    let row = |host: HostProgram| HookRow {
        interface: root.display().to_string(),
        point: host.point,
        program: host.name,
        attached: link::stands(instance, &host),
        order: Vec::new(),
    };
    program::HOST.map(row).into()
}

/// Whether the program stands at a tcx hook, and everyone who does.
fn tcx_order(instance: &Instance, ifindex: u32, point: Point, program: &str) -> (bool, Vec<String>) {
    use std::os::fd::AsFd as _;
    let own = rawbpf::object_get(&instance.program(program)).and_then(|fd| rawbpf::program_id(fd.as_fd()));
    let own = own.unwrap_or(0);
    let entries = rawbpf::query_tcx(ifindex, point.tcx()).unwrap_or_default();
    let name = |entry: &rawbpf::TcxEntry| {
        rawbpf::program_name(entry.program).unwrap_or_else(|_| format!("program {}", entry.program))
    };
    (entries.iter().any(|entry| entry.program == own), entries.iter().map(name).collect())
}

fn text(status: &Status) -> String {
    let agent = match status.agent.pid {
        Some(pid) if status.agent.stopped => {
            format!("is stopped (process {pid}; `kill -CONT {pid}` lets it go on)")
        }
        Some(pid) => format!("runs (process {pid})"),
        None => "does not run".to_owned(),
    };
    let percent = status.flows.saturating_mul(100).checked_div(u64::from(status.flows_max)).unwrap_or(0);
    let mut text = format!(
        "instance     {} (vmnat {})\nagent        {agent}\nlog          {}\nflows        {} of {} ({percent} %)\n\
         each guest   {}\nports        {} to {}, of which guests may have {} for TCP and {} for UDP\nforwards     {}\nattached by  {}\nfirewall     FORWARD rules of the host's firewall do not apply to these guests\n\
         inbound      only answers, and what port forwards{} lead to guests\n\
         IPv6         {}\n",
        status.instance,
        status.version,
        status.agent.log,
        report::number(status.flows),
        report::number(status.flows_max.into()),
        guests::quotas(&status.guest_quotas),
        status.pool.first,
        status.pool.last,
        report::number(status.pool.free_tcp.into()),
        report::number(status.pool.free_udp.into()),
        status.port_forwards,
        status.hook_mode,
        invited(&status.networks),
        status.ipv6,
    );
    text.push_str(&services::text(&status.services));
    text.push_str(&dhcp::text(&status.dhcp));
    text.push('\n');
    text.push_str(&network::text(&status.networks));
    text.push('\n');
    text.push_str(&uplink::text(&status.uplinks));
    text.push('\n');
    text.push_str(&access::text(&status.access));
    text.push('\n');
    text.push_str(&hook_table(&status.hooks));
    for warning in &status.warnings {
        text.push_str("\nwarning: ");
        text.push_str(warning);
    }
    if !status.warnings.is_empty() {
        text.push('\n');
    }
    text
}

/// Who invites calls beside port forwards.
fn invited(networks: &[network::Row]) -> &'static str {
    let is_open = networks.iter().any(|row| row.filtering == Filtering::EndpointIndependent);
    if is_open { " and mapped ports of open networks" } else { "" }
}

fn hook_table(hooks: &[HookRow]) -> String {
    const COLUMNS: [Column; 4] =
        [Column::Text("INTERFACE"), Column::Text("HOOK"), Column::Text("PROGRAM"), Column::Text("ORDER")];
    let cells = |row: &HookRow| {
        let HookRow { interface, point, program, attached, order } = row;
        let program = if *attached { (*program).to_owned() } else { format!("{program} (missing)") };
        let order = match (order.first(), *attached) {
            (None, _) => String::new(),
            (Some(first), true) if !program.starts_with(first.as_str()) => {
                format!("{} (another program stands ahead)", order.join(", "))
            }
            _ => order.join(", "),
        };
        [interface.clone(), (*point).to_owned(), program, order]
    };
    report::table(&COLUMNS, hooks.iter().map(cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_in_one_line() {
        let hook = |interface: &str, attached| HookRow {
            interface: interface.to_owned(),
            point: "ingress",
            program: "inbound",
            attached,
            order: Vec::new(),
        };
        let agent = |pid, stopped| AgentRow { pid, stopped, log: String::new() };
        let (runs, dead) = (agent(Some(7), false), agent(None, false));
        assert_eq!(missing(&runs, &[hook("eth0", true)]), None);
        let stopped = missing(&agent(Some(7), true), &[hook("eth0", true)]).unwrap();
        assert!(stopped.starts_with("its agent (process 7) is stopped"), "{stopped}");
        assert_eq!(
            missing(&runs, &[hook("eth0", true), hook("eth1", false)]).as_deref(),
            Some("the hook inbound at ingress of eth1 is missing")
        );
        let both = missing(&dead, &[hook("eth0", false), hook("eth1", false)]).unwrap();
        assert!(both.starts_with("its agent is dead") && both.ends_with("eth1 are missing"), "{both}");
        assert!(!both.contains('\n'));
    }
}
