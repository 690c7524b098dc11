//! One situation, played: first without vmnat, which must fail in the known way, and then with it.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Result, ensure};

use super::{
    Tree,
    checks::{self, Check, Findings},
    matrix,
    stage::{Network, Stage},
    talk::{self, Change},
};

/// A way in which a host cuts its guests off.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// Which of the six situations, counted from 1.
    pub situation: u8,
    /// Its name, unique.
    pub name: &'static str,
    /// What an administrator has done.
    pub title: &'static str,
    /// Whose packages.
    pub tree: Tree,
    /// Its networks.
    pub networks: &'static [Network],
    /// Starts the software.
    pub build: fn(&mut Stage) -> Result<()>,
    /// What fails without vmnat; all else works.
    pub before: &'static [Check],
    /// What its operator tells `vmnat up` beside bridges and uplink.
    pub options: &'static [&'static str],
    /// What still fails with vmnat, and why; all else works.
    pub after: &'static [(Check, &'static str)],
    /// What is then done to the host while its guests talk; all that worked has to work after it too.
    pub changes: &'static [Change],
}

impl Variant {
    /// Plays it to the end and notes what was found in the table.
    ///
    /// # Errors
    ///
    /// When it does not fail as it is known to, or vmnat does not mend all that it is said to.
    pub fn play(&self) -> Result<()> {
        let mut stage = Stage::new(self.tree, self.networks)?;
        (self.build)(&mut stage)?;
        let before = checks::all(&stage)?;
        stage.lab.leaks.forget()?;
        stage.bring_up_with(self.options)?;
        stage.settle(Duration::from_secs(2));
        let after = checks::all(&stage)?;
        let mut silences = Vec::new();
        for change in self.changes {
            let found = talk::during(&mut stage, change)?;
            println!("{}: {found}", change.title);
            silences.push((change.title, found.to_string()));
        }
        let mut complaints = String::new();
        if !self.changes.is_empty() {
            stage.settle(Duration::from_secs(5));
            let later = checks::all(&stage)?;
            println!("with vmnat, after the changes:\n{later}");
            complain(&mut complaints, "with vmnat, after the changes", &self.remains(), &later);
        }
        self.judge(&before, &after, &silences)?;
        ensure!(complaints.is_empty(), "{} ({}):\n{complaints}", self.name, self.title);
        if self.remains().contains(&Check::Host) {
            stage.lab.leaks.assert_none()?;
        } else {
            stage.lab.assert_sound_but_for_invalid_packets()?;
        }
        stage.keep_quiet();
        Ok(())
    }

    /// Prints what was found and notes it in the table, with what was measured, and compares it with what is known.
    ///
    /// # Errors
    ///
    /// When it differs.
    pub fn judge(&self, before: &Findings, after: &Findings, measured: &[(&str, String)]) -> Result<()> {
        println!("{}\nwithout vmnat:\n{before}with vmnat:\n{after}", self.title);
        matrix::note(self, before, after, measured)?;
        let mut complaints = String::new();
        complain(&mut complaints, "without vmnat", self.before, before);
        complain(&mut complaints, "with vmnat", &self.remains(), after);
        ensure!(complaints.is_empty(), "{} ({}):\n{complaints}", self.name, self.title);
        Ok(())
    }

    /// What fails with vmnat too.
    fn remains(&self) -> Vec<Check> {
        self.after.iter().map(|(check, _)| *check).collect()
    }
}

/// Names each check that went another way than it is known to.
fn complain(complaints: &mut String, when: &str, expected: &[Check], findings: &Findings) {
    let failed = findings.failed();
    for check in findings.tried() {
        let line = match (expected.contains(&check), failed.contains(&check)) {
            (true, false) => "works, although it is known to fail",
            (false, true) => "fails",
            _ => continue,
        };
        writeln!(complaints, "  {when}, {} {line}", check.name()).ok();
    }
    for check in expected.iter().filter(|check| !findings.tried().contains(check)) {
        writeln!(complaints, "  {when}, {} was not tried, although it is known to fail", check.name()).ok();
    }
}
