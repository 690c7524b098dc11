//! The agent: keeps maps and hooks true while interfaces come and go, and lets flows expire.
//!
//! It holds nothing that the kernel does not: when it dies, forwarding goes on, only expiry and new ports wait for
//! the next one. It is one thread, so that it stays in the network namespace in which it was started.

mod lease_watch;
mod listener;
mod place;
mod reload;
mod round;

use std::{future, time::Duration};

use anyhow::{Context as _, Result};
use rtnetlink::Handle;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info, warn};

pub use self::place::{Herald, Place, end, end_background, end_other, nudge, running};
use self::{lease_watch::LeaseWatch, listener::Listener, round::Round};
use crate::{
    dhcp::Dhcp,
    facts::{self, Changes, RouteFact, Watch},
    forwards,
    kernel_log::KernelLog,
    leases::{self, LeaseFact},
    paths::Instance,
    reconcile,
    services::Relay,
    state::{self, Lock, State},
    systemd::{self, Heartbeat},
    tables::Tables,
};

/// How long changes are gathered before they are acted on.
const SETTLE: Duration = Duration::from_millis(100);

/// The same for what changes all the time: neighbours and forwarding tables.
const SETTLE_NEIGHBOURS: Duration = Duration::from_secs(2);

/// Between two looks at what announces no change: ports that the host holds, kernel settings, filters
/// of tc, folders of lease files.
const LOOK: Duration = Duration::from_secs(30);

/// Between two questions to the system's bus, where leases are told there alone.
const ASK_BUS: Duration = Duration::from_secs(2);

/// Runs until SIGTERM or SIGINT, or until `down` has removed the instance; the herald is told when it is ready.
///
/// # Errors
/// When the instance is not loaded, or the kernel gives no netlink sockets.
pub async fn run(instance: &Instance, herald: Herald) -> Result<()> {
    // Before others can see that it runs: they signal it.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut nudged = signal(SignalKind::user_defined1())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let _place = Place::take(instance)?;
    let mut agent = Agent::open(instance)?;
    let mut changes = Listener::<Watch>::open()?;
    let mut reap = interval(agent.reap_interval.max(Duration::from_millis(50)));
    let mut bus = interval(ASK_BUS);
    bus.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut look = interval(LOOK);
    look.reset();
    let mut kernel_log = agent.open_kernel_log();
    let mut heartbeat = Heartbeat::new();
    reap.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = Round::new();
    agent.reconcile().await;
    // What moves from here on is an event.
    round.go(instance, &agent.tables);
    if let Herald::Command(ready) = herald {
        ready();
    }
    loop {
        agent.tell_ready();
        tokio::select! {
            () = heartbeat.next() => {}
            () = agent.lease_watch.next() => agent.plan(SETTLE),
            _ = bus.tick() => agent.ask_bus(),
            found = changes.next() => agent.note(found),
            () = due(agent.due) => agent.reconcile().await,
            true = pump(&mut kernel_log) => {}
            _ = reap.tick() => {
                round.go(instance, &agent.tables);
                agent.relay.leave_lost_room(instance);
            }
            _ = look.tick() => agent.reconcile().await,
            _ = hangup.recv() => agent.reload(&mut kernel_log).await,
            () = due(agent.reload_due) => agent.reload(&mut kernel_log).await,
            _ = nudged.recv() => agent.reconcile().await,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
        if !instance.state().exists() {
            info!("the instance was taken down");
            systemd::stopping();
            return Ok(());
        }
    }
    systemd::stopping();
    info!("the agent ends; the dataplane goes on without it");
    Ok(())
}

/// Index of an interface of the agent's network namespace.
fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => future::pending().await,
    }
}

/// Hands the programs' log on, where there is one; false when it has broken.
async fn pump(kernel_log: &mut Option<KernelLog>) -> bool {
    let Some(log) = kernel_log else { return future::pending().await };
    let result = log.pump().await;
    if let Err(error) = &result {
        warn!("cannot read the programs' log: {error:#}");
        *kernel_log = None;
    }
    result.is_ok()
}

/// How far an agent is on its way to be ready.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// Nothing has gone through yet.
    Begun,
    /// All was made true once.
    Reached,
    /// And whoever waits for it has been told.
    Told,
}

struct Agent<'a> {
    instance: &'a Instance,
    handle: Handle,
    tables: Tables,
    reap_interval: Duration,
    /// The programs log.
    kernel_log: bool,
    lease_watch: LeaseWatch,
    /// What the system's bus said of leases; none where it is not asked.
    bus: Option<(State, Vec<LeaseFact>)>,
    /// Answers for names where the host's own server cannot.
    relay: Relay,
    /// Gives addresses where the host's own server cannot.
    dhcp: Dhcp,
    /// When to reconcile.
    due: Option<Instant>,
    /// When to read the operator's files, because a command was at it.
    reload_due: Option<Instant>,
    readiness: Readiness,
    /// The last failure to make all true, which is said once.
    failure: Option<String>,
    /// Routes have changed: flows must look at their way again.
    rerouted: bool,
    /// The routes of the last picture. The kernel tells nobody of those that go with a link (`fib_disable_ip()` of
    /// `net/ipv4/fib_frontend.c`).
    routes: Vec<RouteFact>,
}

impl<'a> Agent<'a> {
    fn open(instance: &'a Instance) -> Result<Self> {
        let state = state::load(instance)?;
        let tables = Tables::open(instance)?;
        let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
        tokio::spawn(connection);
        let reap_interval = Duration::from_millis(state.reap_interval_ms);
        let kernel_log = state.kernel_log;
        Ok(Self {
            instance,
            handle,
            tables,
            reap_interval,
            kernel_log,
            lease_watch: LeaseWatch::open(),
            bus: None,
            relay: Relay::default(),
            dhcp: Dhcp::default(),
            due: None,
            reload_due: None,
            readiness: Readiness::Begun,
            failure: None,
            rerouted: false,
            routes: Vec::new(),
        })
    }

    fn open_kernel_log(&self) -> Option<KernelLog> {
        let opened = self.kernel_log.then(|| KernelLog::open(self.instance))?;
        opened.inspect_err(|error| warn!("cannot read the programs' log: {error:#}")).ok()
    }

    /// Plans a reconcile for what has changed.
    fn note(&mut self, changes: Changes) {
        let firm = Changes::LINK.with(Changes::ADDRESS).with(Changes::ROUTE).with(Changes::RULES);
        let firm = firm.with(Changes::SETTING);
        if changes.any_of(Changes::ROUTE) && !std::mem::replace(&mut self.rerouted, true) {
            self.look_again();
        }
        if !changes.is_empty() {
            let after = if changes.any_of(firm) { SETTLE } else { SETTLE_NEIGHBOURS };
            self.plan(after);
        }
    }

    /// Has flows look at their way again at once: where a VPN has taken the default route, nothing goes on beside it. Where a command
    /// holds the lock, the reconcile that is planned does it.
    fn look_again(&self) {
        match Lock::try_take_existing(self.instance) {
            Ok(Some(_lock)) => {
                if let Err(error) = self.tables.bump_generation() {
                    warn!("flows do not look at their way again yet: {error:#}");
                }
            }
            Ok(None) => {}
            Err(error) => debug!("flows look at their way with the next reconcile: {error:#}"),
        }
    }

    fn plan(&mut self, after: Duration) {
        let Some(at) = Instant::now().checked_add(after) else { return };
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Makes everything true; what fails is logged and tried again.
    async fn reconcile(&mut self) {
        self.due = None;
        match self.try_reconcile().await {
            Ok(true) => {
                if self.readiness == Readiness::Begun {
                    self.readiness = Readiness::Reached;
                }
                if self.failure.take().is_some() {
                    info!("the instance is up to date again");
                }
            }
            // A command is changing the instance.
            Ok(false) => self.plan(SETTLE),
            Err(error) => {
                let failure = format!("cannot bring the instance up to date: {error:#}");
                if self.failure.as_ref() != Some(&failure) {
                    warn!("{failure}");
                    systemd::status(&failure);
                    self.failure = Some(failure);
                }
                self.plan(SETTLE_NEIGHBOURS);
            }
        }
    }

    /// Says that all is true, the first time that it is.
    fn tell_ready(&mut self) {
        if self.readiness == Readiness::Reached {
            self.readiness = Readiness::Told;
            info!("the agent of instance {} is ready", self.instance);
            systemd::ready();
        }
    }

    async fn try_reconcile(&mut self) -> Result<bool> {
        let Some(lock) = Lock::try_take_existing(self.instance)? else { return Ok(false) };
        let Some(mut state) = state::find(self.instance)? else { return Ok(true) };
        let before = state.clone();
        // Before they are read, so that no change falls between.
        self.lease_watch.follow(&leases::files(&state));
        let facts = facts::gather(&self.handle).await?;
        let Self { instance, handle, tables, .. } = &*self;
        let done = reconcile::reconcile(instance, handle, tables, &mut state, &facts, &lock).await;
        if state != before {
            lock.save(&state)?;
        }
        self.look_ahead(&state);
        let done = done?;
        systemd::status(&summary(&state));
        self.relay.settle(self.instance, &state, &facts);
        self.dhcp.settle(self.instance, &state, &facts);
        for change in done.changes.iter().chain(&done.forwards) {
            info!("{change}");
        }
        for warning in state.warnings.iter().filter(|warning| !before.warnings.contains(warning)) {
            warn!("{warning}");
        }
        let moved = self.routes != facts.routes;
        if moved {
            self.routes.clone_from(&facts.routes);
        }
        if std::mem::take(&mut self.rerouted) || moved {
            self.tables.bump_generation()?;
        }
        if !done.failures.is_empty() {
            self.plan(SETTLE_NEIGHBOURS);
        }
        Ok(true)
    }

    /// Plans a reconcile where the bus tells other leases than before; it announces none.
    fn ask_bus(&mut self) {
        let Some((state, before)) = &self.bus else { return };
        let is_other = leases::of_bus(state, &index_of) != *before;
        if is_other {
            self.plan(SETTLE);
        }
    }

    /// Notes what is to be waited for: leases that no file tells, and the first end of a port forward.
    fn look_ahead(&mut self, state: &State) {
        let told = leases::of_bus(state, &index_of);
        self.bus = leases::may_ask_bus(state, &index_of).then(|| (state.clone(), told));
        if let Some(end) = state.forwards.iter().filter_map(|forward| forward.wish.expires).min() {
            self.plan(Duration::from_secs(end.saturating_sub(forwards::now())).max(SETTLE));
        }
    }
}

/// What the instance serves, in a line.
fn summary(state: &State) -> String {
    let bridges: Vec<&str> = state.bridges.iter().map(|bridge| bridge.name.as_str()).collect();
    let uplinks = match &state.uplinks[..] {
        [] if state.followed.is_empty() => "the default route, when there is one".to_owned(),
        [] => state.followed.clone(),
        named => named.join(", "),
    };
    let warnings = match state.warnings.len() {
        0 => String::new(),
        number => format!("; warnings: {number}, see `vmnat status`"),
    };
    format!("{} by {uplinks}; port forwards: {}{warnings}", bridges.join(", "), state.forwards.len())
}
