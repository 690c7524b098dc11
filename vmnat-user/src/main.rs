//! The `vmnat` command: parses, runs, prints the error, returns the exit code.

use std::{io, process::ExitCode};

use clap::Parser as _;
use tracing_subscriber::EnvFilter;
use vmnat_user::{
    cli::{self, Cli},
    error::exit_of,
    exit::Exit,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let level = cli.level();
    let filter = EnvFilter::try_from_env("VMNAT_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    // A log that cannot be written (its disk is full, the journal was restarted) must not end the agent.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .log_internal_errors(false)
        .init();
    // One thread: network namespaces are a thread's, and netlink speaks for the caller's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(cli::run(cli)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            let text = format!("{error:#}");
            if !text.is_empty() {
                eprintln!("vmnat: {text}");
            }
            exit_of(&error).into()
        }
    }
}
