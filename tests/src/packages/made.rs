//! The packages under test, as `cargo xtask dist` makes them, and one of a later version.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// Tells where they lie.
const VARIABLE: &str = "VMNAT_PACKAGES_DIR";

/// The later version.
pub const LATER: &str = "99.0.0-1";

/// In the debug information of the kernel half, which nothing reads: with another letter the object is another one.
const MARK: &[u8] = b"clang LLVM (rustc";

/// The packages.
#[derive(Debug)]
pub struct Packages {
    /// The .deb.
    pub deb: PathBuf,
    /// The .rpm.
    pub rpm: PathBuf,
}

impl Packages {
    /// Those in `VMNAT_PACKAGES_DIR`.
    ///
    /// # Errors
    ///
    /// When there are none; the message says how to make them.
    pub fn find() -> Result<Self> {
        let folder = env::var_os(VARIABLE).map(PathBuf::from).with_context(|| {
            format!("no packages: {VARIABLE} is unset; `./dev test packages` makes them and sets it")
        })?;
        Ok(Self { deb: only(&folder, "deb")?, rpm: only(&folder, "rpm")? })
    }

    /// Makes a .deb of a later version at a path, whose kernel half is another one.
    ///
    /// # Errors
    ///
    /// When dpkg-deb is missing, or the program has no kernel half that can be told apart.
    pub fn make_later(&self, path: &Path) -> Result<()> {
        let tree = path.with_extension("tree");
        let _ = fs::remove_dir_all(&tree);
        run(Command::new("dpkg-deb").arg("--raw-extract").arg(&self.deb).arg(&tree))?;
        let control = tree.join("DEBIAN/control");
        let text = fs::read_to_string(&control)?;
        let lines = text.lines().map(|line| match line.strip_prefix("Version: ") {
            Some(_) => format!("Version: {LATER}\n"),
            None => format!("{line}\n"),
        });
        let text: String = lines.collect();
        fs::write(&control, text)?;
        let program = tree.join("usr/bin/vmnat");
        let mut bytes = fs::read(&program)?;
        let place = bytes.windows(MARK.len()).position(|window| window == MARK);
        let place = place.context("the program's kernel half has no name of its compiler")?;
        if let Some(byte) = bytes.get_mut(place) {
            *byte = b'k';
        }
        fs::write(&program, bytes)?;
        run(Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "--build"]).arg(&tree).arg(path))?;
        Ok(fs::remove_dir_all(&tree)?)
    }
}

fn only(folder: &Path, extension: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.extension().is_some_and(|found| found == extension));
    match &found[..] {
        [only] => Ok(only.clone()),
        _ => bail!("{} holds {} packages .{extension}", folder.display(), found.len()),
    }
}

/// Runs a program, and returns what it printed.
///
/// # Errors
///
/// When it fails; the message has what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{command:?}: {}: {said}{printed}", output.status);
    Ok(printed)
}
