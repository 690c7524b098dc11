//! The other build that is measured beside this one: a commit's, built below `target/against`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    command::{self, program},
    project,
};

/// A `vmnat` of another build.
pub struct Other {
    /// What tables call it.
    pub name: String,
    /// Where it is.
    pub program: PathBuf,
}

/// The program where one is named, otherwise the build of that commit; built once.
pub fn find(wanted: &str) -> Result<Other> {
    if Path::new(wanted).is_file() {
        return Ok(Other { name: wanted.to_owned(), program: fs::canonicalize(wanted)? });
    }
    let name = commit(wanted)?;
    let folder = project::target().join("against");
    let built = folder.join(format!("vmnat-{name}"));
    if !built.is_file() {
        build(&name, &folder, &built).with_context(|| format!("building {wanted} ({name})"))?;
    }
    Ok(Other { name, program: built })
}

/// The commit's number, short.
fn commit(revision: &str) -> Result<String> {
    let root = project::root().to_string_lossy();
    let wanted = format!("{revision}^{{commit}}");
    let mut git = program("git", ["-C", &*root, "rev-parse", "--short=12", "--verify", "--quiet", &*wanted]);
    let name = command::output(&mut git)
        .with_context(|| format!("\"{revision}\" is neither a program nor a commit of this repository"))?;
    Ok(name.trim().to_owned())
}

/// Checks the commit out beside its own build directory, which all of them share.
fn build(name: &str, folder: &Path, built: &Path) -> Result<()> {
    let source = folder.join(name);
    // One that was cut short is begun anew.
    if source.exists() {
        fs::remove_dir_all(&source)?;
    }
    fs::create_dir_all(&source)?;
    let archive = folder.join(format!("{name}.tar"));
    let (root, output) = (project::root().to_string_lossy(), archive.to_string_lossy());
    command::run(&mut program("git", ["-C", &*root, "archive", "--output", &*output, name]))?;
    command::run(&mut program("tar", ["-x", "-f", &*output, "-C", &*source.to_string_lossy()]))?;
    fs::remove_file(&archive)?;
    let target = folder.join("build");
    let mut cargo = program("cargo", ["build", "--release", "--package", "vmnat-user"]);
    // Its own toolchain: not the one that rustup has chosen for this process.
    cargo.current_dir(&source).env("CARGO_TARGET_DIR", &target).env_remove("RUSTUP_TOOLCHAIN");
    command::run(&mut cargo)?;
    fs::copy(target.join("release/vmnat"), built).context("keeping what was built")?;
    fs::remove_dir_all(&source).context("removing the sources")
}
