//! `dist`: a .deb and an .rpm of the release build, with units, hooks, man pages and completions.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::{
    command::{self, cargo, program},
    demo, project,
    setup::{self, packagers},
    steps::Steps,
};

/// Builds a .deb and an .rpm below target/dist
#[derive(Parser)]
pub struct Args {}

/// The package that holds the program and says what goes into both.
const PACKAGE: &str = "vmnat-user";

/// The revision of the packaging within a version.
const REVISION: &str = "1";

/// Sets up, builds, and says where the packages lie.
pub fn run(_args: &Args) -> Result<()> {
    let mut steps = Steps::new(5);
    let folder = project::target().join("dist");
    steps.step("set-up", || setup::ensure(setup::Scope::Build).and_then(|()| packagers::ensure()))?;
    steps.step("build (release)", demo::build_lab)?;
    steps.step("man pages and completions", pages)?;
    let deb = steps.step(".deb", || deb(&folder, env!("CARGO_PKG_VERSION")))?;
    let rpm = steps.step(".rpm", || rpm(&folder))?;
    println!("{}\n{}", deb.display(), rpm.display());
    Ok(())
}

/// Writes what the packages bring beside the program.
pub fn pages() -> Result<()> {
    let folder = project::target().join("release/pages");
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut write = cargo(["run", "--quiet", "--package", PACKAGE, "--example", "pages", "--"]);
    command::run(write.arg(&folder))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.join("man"))? {
        found.push(entry?.path());
    }
    // Neither name nor time of the file: the same content gives the same package.
    let log = folder.join("changelog.Debian");
    fs::write(&log, changelog(env!("CARGO_PKG_VERSION"))?)?;
    command::run(program("gzip", ["--best", "--no-name"]).args(found).arg(log))
}

/// Debian wants to know what a version brings; the project's own file says it in full.
fn changelog(version: &str) -> Result<String> {
    let epoch = env::var("SOURCE_DATE_EPOCH").ok();
    let epoch = match epoch {
        Some(epoch) => epoch,
        None => {
            let mut log = program("git", ["log", "-1", "--format=%ct"]);
            command::output(log.current_dir(project::root())).unwrap_or_else(|_| "0".to_owned())
        }
    };
    let date = command::output(&mut program("date", ["-u", "-R", "-d", &format!("@{}", epoch.trim())]))?;
    Ok(format!(
        "vmnat ({version}-{REVISION}) unstable; urgency=medium\n\n  * The project's CHANGELOG.md has what changes.\n\n \
         -- the vmnat authors <maintainers@vmnat.invalid>  {}\n",
        date.trim()
    ))
}

/// Builds the .deb of a version into a folder.
pub fn deb(folder: &Path, version: &str) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let version = format!("{version}-{REVISION}");
    let mut build =
        cargo(["deb", "--quiet", "--no-build", "--package", PACKAGE, "--deb-version", &version, "--output"]);
    command::run(build.arg(folder).env("CARGO_TARGET_DIR", project::target()))?;
    newest(folder, "deb")
}

/// Builds the .rpm into a folder.
pub fn rpm(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let mut build = cargo(["generate-rpm", "--package", PACKAGE, "--target-dir"]);
    command::run(build.arg(project::target()).arg("--output").arg(folder))?;
    newest(folder, "rpm")
}

/// The file that was made last.
fn newest(folder: &Path, extension: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            found.push((fs::metadata(&path)?.modified()?, path));
        }
    }
    let newest = found.into_iter().max();
    ensure!(newest.is_some(), "no .{extension} in {}", folder.display());
    newest.map(|(_, path)| path).context("no package")
}
