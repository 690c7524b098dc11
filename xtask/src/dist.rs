//! `dist`: a .deb and an .rpm of the release build, with units, hooks, man pages and completions.

use std::{
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
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

/// Tells the packages tier where its packages lie.
pub const VARIABLE: &str = "VMNAT_PACKAGES_DIR";

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
    clear(&folder)?;
    steps.step("man pages and completions", pages)?;
    let deb = steps.step(".deb", || deb(&folder))?;
    let rpm = steps.step(".rpm", || rpm(&folder))?;
    println!("{}\n{}", deb.display(), rpm.display());
    Ok(())
}

/// Builds both packages of what is built, into a folder that then holds nothing else.
pub fn make(folder: &Path) -> Result<()> {
    clear(folder)?;
    pages()?;
    deb(folder)?;
    rpm(folder).map(drop)
}

fn clear(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(fs::create_dir_all(folder)?),
    }
}

/// Writes what the packages bring beside the program.
fn pages() -> Result<()> {
    let folder = project::target().join("release/pages");
    clear(&folder)?;
    let mut write = cargo(["run", "--quiet", "--package", PACKAGE, "--example", "pages", "--"]);
    command::run(write.arg(&folder))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.join("man"))? {
        found.push(entry?.path());
    }
    let log = folder.join("changelog.Debian");
    fs::write(&log, changelog(env!("CARGO_PKG_VERSION"))?)?;
    // Neither name nor time of the file: the same content gives the same package.
    command::run(program("gzip", ["--best", "--no-name"]).args(found).arg(log))
}

/// Debian wants to know what a version brings; the project's own file says it in full.
fn changelog(version: &str) -> Result<String> {
    let epoch = env::var("SOURCE_DATE_EPOCH").or_else(|_| {
        let mut log = program("git", ["log", "-1", "--format=%ct"]);
        command::output(log.current_dir(project::root()))
    });
    let epoch = epoch.unwrap_or_else(|_| "0".to_owned());
    let date = command::output(&mut program("date", ["-u", "-R", "-d", &format!("@{}", epoch.trim())]))?;
    Ok(format!(
        "vmnat ({version}-{REVISION}) unstable; urgency=medium\n\n  * The project's CHANGELOG.md has what changes.\n\n \
         -- the vmnat authors <maintainers@vmnat.invalid>  {}\n",
        date.trim()
    ))
}

/// Builds the .deb into a folder.
fn deb(folder: &Path) -> Result<PathBuf> {
    let mut build = cargo(["deb", "--quiet", "--no-build", "--package", PACKAGE]);
    build.args(["--deb-revision", REVISION, "--output"]).arg(folder);
    command::output(build.env("CARGO_TARGET_DIR", project::target()))?;
    only(folder, "deb")
}

/// Builds the .rpm into a folder.
fn rpm(folder: &Path) -> Result<PathBuf> {
    let mut build = cargo(["generate-rpm", "--package", PACKAGE, "--target-dir"]);
    command::run(build.arg(project::target()).arg("--output").arg(folder))?;
    only(folder, "rpm")
}

/// The file with that extension.
fn only(folder: &Path, extension: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            return Ok(path);
        }
    }
    bail!("no .{extension} was made in {}", folder.display())
}
