//! A host whose rules or networks change while its guests talk: first without vmnat, and then with it.

use std::{thread, time::Duration};

use anyhow::Result;

use super::{
    checks::{self, Check, Findings},
    stage::Stage,
    traffic::{Outcome, Traffic},
    variant::Variant,
};

/// How long guests talk before something happens.
const LEAD: Duration = Duration::from_secs(1);

/// What a bridge with the spanning tree takes until a new port forwards: twice libvirt's delay of two seconds. Nothing is asserted
/// that is tighter.
pub const LEARNING: Duration = Duration::from_secs(4);

/// How long a bridge that goes and comes may take, with its ports plugged again.
pub const REBUILDING: Duration = Duration::from_secs(15);

/// Something that happens to a host.
#[derive(Clone, Copy, Debug)]
pub struct Churn {
    /// The host, and what fails after it happened.
    pub host: Variant,
    /// What happens; it is told whether vmnat is up.
    pub happens: fn(&mut Stage, bool) -> Result<()>,
    /// What `vmnat up` is told besides bridge and uplink.
    pub up: &'static [&'static str],
    /// How long flows may wait for an answer.
    pub patience: Duration,
}

impl Churn {
    /// Plays it twice, each time on a fresh host, and notes in the table what was found afterwards and on the way.
    ///
    /// # Errors
    ///
    /// When it does not fail as it is known to, or vmnat does not mend all that it is said to.
    pub fn play(&self) -> Result<()> {
        let (mut stage, before, outage) = self.once(false)?;
        let without = ("without vmnat", outage.to_string());
        stage.keep_quiet();
        drop(stage);
        let (mut stage, after, outage) = self.once(true)?;
        let with = ("with vmnat", outage.to_string());
        println!("{}: {}\n{}: {}", without.0, without.1, with.0, with.1);
        self.host.judge(&before, &after, &[without, with])?;
        stage.lab.assert_sound_but_for_invalid_packets()?;
        stage.keep_quiet();
        Ok(())
    }

    fn once(&self, with_vmnat: bool) -> Result<(Stage, Findings, Outcome)> {
        let mut stage = Stage::new(self.host.tree, self.host.networks)?;
        (self.host.build)(&mut stage)?;
        if with_vmnat {
            stage.bring_up_with(self.up)?;
            stage.settle(Duration::from_secs(2));
        }
        let traffic = Traffic::start(stage.lab.guest(1)?)?;
        thread::sleep(LEAD);
        (self.happens)(&mut stage, with_vmnat)?;
        let outcome = traffic.end(self.patience)?;
        let leaked = stage.lab.leaks.assert_none();
        let mut findings = checks::all(&stage)?;
        findings.note(Check::Stream, outcome.stream());
        findings.note(Check::OldFlows, outcome.old_flows(self.patience));
        findings.note(Check::NewFlows, outcome.new_flows(self.patience));
        if leaked.is_err() {
            findings.note(Check::NoLeak, leaked);
        }
        Ok((stage, findings, outcome))
    }
}
