//! The `vmnat` command: parses, runs, prints the error, returns the exit code.

use std::process::ExitCode;

use clap::Parser as _;
use vmnat_user::{
    cli::{self, Cli},
    error::exit_of,
    exit::Exit,
    logging,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init(cli.instance(), cli.level());
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
