//! The command line: one file a subcommand, and the only code that prints.

mod access;
mod agent;
mod apply;
mod config;
mod counters;
mod diff;
pub(crate) mod dnat;
mod doctor;
mod down;
mod flows;
mod guests;
mod leases;
mod logs;
mod network;
mod nudge;
mod print;
mod run;
mod status;
mod up;
mod uplink;

use std::fmt::Write as _;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{duration::duration, error::Error, exit::Exit, paths::Instance, reconcile::Reconciled};

const EXAMPLES: &str = "\
Examples:
  vmnat up --bridge virbr0 --uplink enp3s0     put the guests behind virbr0 online
  vmnat up --bridge virbr0                     the same by whatever interface has the default route
  vmnat dnat add 8080:192.168.122.10:80        lead port 8080 of the host to a guest's web server
  vmnat dnat add 2222:web:22 --from 10.0.0.0/8 the same to a guest by its lease's name, for some callers
  vmnat status                                 what is attached where, and how it is
  vmnat flows --guest 192.168.122.10           what a guest talks to
  vmnat apply                                  make true what /etc/vmnat says, all of it or nothing
  vmnat doctor                                 why guests are offline
  vmnat down                                   leave the host as it was found
";

/// NAT for the guests of a VM host, before the host's firewall
///
/// vmnat puts the guests behind a bridge online, and port forwards through to them, whatever netfilter's FORWARD
/// rules say: its programs run at the bridge's ports and at the uplink before netfilter does. The programs go on
/// while no process runs. IPv4 is translated; IPv6 passes untouched.
#[derive(Debug, Parser)]
#[command(name = "vmnat", version, after_help = after_help(), max_term_width = 110)]
pub struct Cli {
    /// Which vmnat, where several run side by side on one kernel
    #[arg(long, global = true, value_name = "NAME", default_value_t, display_order = 900)]
    instance: Instance,
    /// Say more on standard error; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 901)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(Box<up::Args>),
    Down(down::Args),
    Apply(apply::Args),
    Diff(diff::Args),
    Config(config::Args),
    Status(status::Args),
    Doctor(doctor::Args),
    Network(network::Args),
    Uplink(uplink::Args),
    Dnat(dnat::Args),
    Access(access::Args),
    Flows(flows::Args),
    Leases(leases::Args),
    Guests(guests::Args),
    Counters(counters::Args),
    Logs(logs::Args),
    Run(run::Args),
    #[command(hide = true)]
    Agent(agent::Args),
    #[command(hide = true)]
    Nudge(nudge::Args),
}

/// Runs the command that was asked for.
///
/// # Errors
/// Whatever keeps it from being done; `error::exit_of` has the exit code.
pub async fn run(cli: Cli) -> Result<()> {
    let Cli { instance, verbose, command } = cli;
    match command {
        Command::Up(args) => up::run(&instance, *args).await,
        Command::Down(args) => down::run(&instance, &args).await,
        Command::Apply(args) => apply::run(&instance, &args).await,
        Command::Diff(args) => diff::run(&instance, &args).await,
        Command::Config(args) => config::run(&instance, &args),
        Command::Status(args) => status::run(&instance, &args).await,
        Command::Doctor(args) => doctor::run(&instance, &args, verbose > 0).await,
        Command::Network(args) => network::run(&instance, args).await,
        Command::Uplink(args) => uplink::run(&instance, args).await,
        Command::Dnat(args) => dnat::run(&instance, args).await,
        Command::Access(args) => access::run(&instance, args).await,
        Command::Flows(args) => flows::run(&instance, &args),
        Command::Leases(args) => leases::run(&instance, args).await,
        Command::Guests(args) => guests::run(&instance, &args),
        Command::Counters(args) => counters::run(&instance, &args),
        Command::Logs(args) => logs::run(&instance, &args),
        Command::Run(args) => run::run(&instance, &args).await,
        Command::Agent(args) => agent::run(&instance, &args).await,
        Command::Nudge(args) => {
            nudge::run(&args);
            Ok(())
        }
    }
}

impl Cli {
    /// Which instance is meant.
    #[must_use]
    pub const fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The level of what is said on standard error.
    #[must_use]
    pub const fn level(&self) -> &'static str {
        match (&self.command, self.verbose) {
            (Command::Agent(_) | Command::Run(_), 0) | (_, 1) => "vmnat_user=info",
            (_, 0) => "vmnat_user=warn",
            _ => "vmnat_user=trace,aya=debug",
        }
    }
}

fn after_help() -> String {
    let mut text = format!("{EXAMPLES}\nExit codes:\n");
    for exit in Exit::ALL {
        let _ = writeln!(text, "  {:>2}  {}", exit.code(), exit.meaning());
    }
    text
}

/// Prints what was changed, or that nothing was; fails with the steps that failed.
fn report(done: &Reconciled, nothing: &str) -> Result<()> {
    for change in done.changes.iter().chain(&done.forwards) {
        print::line(change)?;
    }
    if done.changes.is_empty() && done.forwards.is_empty() && done.failures.is_empty() {
        print::line(nothing)?;
    }
    fail_in_part(done)
}

/// Fails with the steps that failed, if any did.
fn fail_in_part(done: &Reconciled) -> Result<()> {
    if done.failures.is_empty() {
        return Ok(());
    }
    let steps = done.failures.iter().map(|failure| format!("{failure:#}")).collect();
    Err(Error::Partial { steps }.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_lists_every_exit_code() {
        let help = Cli::command().render_long_help().to_string();
        for exit in Exit::ALL {
            assert!(help.contains(exit.meaning()), "{}", exit.meaning());
        }
    }
}
