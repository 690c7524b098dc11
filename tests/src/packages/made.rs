//! The packages under test, as `cargo xtask dist` has made them.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Tells where they lie.
const VARIABLE: &str = "VMNAT_PACKAGES_DIR";

/// The packages.
#[derive(Debug)]
pub struct Packages {
    folder: PathBuf,
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
        Ok(Self { folder })
    }

    /// Their folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The only file whose name begins and ends so.
    ///
    /// # Errors
    ///
    /// When there is none, or more than one.
    pub fn one(&self, beginning: &str, end: &str) -> Result<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).with_context(|| self.folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with(beginning) && name.ends_with(end) {
                found.push(path);
            }
        }
        match &found[..] {
            [only] => Ok(only.clone()),
            _ => anyhow::bail!(
                "{} has {} files {beginning}*{end}: {found:?}",
                self.folder.display(),
                found.len()
            ),
        }
    }
}
