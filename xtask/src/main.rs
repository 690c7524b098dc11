//! `cargo xtask`, and so `./dev`: everything done to vmnat that is not vmnat itself, one file per subcommand.

mod bench;
mod check;
mod command;
mod demo;
mod dist;
mod docs;
mod fuzz;
mod object;
mod project;
mod setup;
mod steps;
mod test;

use std::process::ExitCode;

use clap::Parser;

/// Sets up, checks, tests, shows and measures vmnat.
#[derive(Parser)]
#[command(name = "./dev", bin_name = "./dev", max_term_width = 100)]
enum Task {
    Setup(setup::Args),
    Check(check::Args),
    Test(test::Args),
    Demo(demo::Args),
    Bench(bench::Args),
    Object(object::Args),
    Docs(docs::Args),
    Dist(dist::Args),
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Setup(args) => setup::run(&args),
        Task::Check(args) => check::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Demo(args) => demo::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Object(args) => object::run(&args),
        Task::Docs(args) => docs::run(&args),
        Task::Dist(args) => dist::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
