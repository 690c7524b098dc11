//! Which files are read: the operator's in `/etc/vmnat`, or one that is named. None is ever written.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{
    fault::SourceText,
    read::{Config, parse},
};
use crate::{error::Error, paths::Instance};

/// Where the files' layer of an instance came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The instance's own files in `/etc/vmnat`.
    #[default]
    Own,
    /// A file that was named.
    File(PathBuf),
    /// Standard input, which cannot be read again.
    Input,
}

impl Source {
    /// The source that `-f` names.
    ///
    /// # Errors
    /// When the working directory is gone.
    pub fn named(file: Option<&Path>) -> Result<Self> {
        Ok(match file {
            None => Self::Own,
            Some(path) if path.as_os_str() == "-" => Self::Input,
            // The agent has another working directory.
            Some(path) => Self::File(std::path::absolute(path)?),
        })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self, instance: &Instance) -> String {
        match self {
            Self::Own => folder(instance).display().to_string(),
            Self::File(path) => path.display().to_string(),
            Self::Input => "standard input".to_owned(),
        }
    }
}

/// The folder of an instance's files.
#[must_use]
pub fn folder(instance: &Instance) -> PathBuf {
    instance.configuration()
}

/// Reads the instance's own files; none where there is no file.
///
/// # Errors
/// [`Error::BadConfig`], or when a file cannot be read.
pub fn find(instance: &Instance) -> Result<Option<Config>> {
    let paths = own(instance)?;
    if paths.is_empty() {
        return Ok(None);
    }
    let texts: Result<Vec<SourceText>> = paths.iter().map(|path| text_of(path)).collect();
    Ok(Some(parse(texts?).map_err(Error::from)?))
}

/// Reads a source.
///
/// # Errors
/// As [`find`]; [`Error::NoConfig`] where there is no file.
pub fn read(instance: &Instance, source: &Source) -> Result<Config> {
    let text = match source {
        Source::Own => {
            let folder = folder(instance);
            return find(instance)?.ok_or_else(|| Error::NoConfig { folder }.into());
        }
        Source::File(path) => text_of(path)?,
        Source::Input => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).context("read standard input")?;
            SourceText::new(source.name(instance), text)
        }
    };
    Ok(parse(vec![text]).map_err(Error::from)?)
}

/// Reads again what was taken over last; none where that cannot be, or where there is and was nothing.
///
/// # Errors
/// As [`read`].
pub fn again(instance: &Instance, source: &Source, owns: bool) -> Result<Option<Config>> {
    match source {
        Source::Input => Ok(None),
        Source::Own if !owns => find(instance),
        Source::Own | Source::File(_) => read(instance, source).map(Some),
    }
}

/// `vmnat.toml`, and what is in `conf.d` by name.
fn own(instance: &Instance) -> Result<Vec<PathBuf>> {
    let folder = folder(instance);
    let mut paths = Vec::new();
    let parts = folder.join("conf.d");
    match fs::read_dir(&parts) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.with_context(|| format!("read {}", parts.display()))?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name.ends_with(".toml") && !name.starts_with('.') && !path.is_dir() {
                    paths.push(path);
                }
            }
        }
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(unreadable(error, &parts)),
    }
    paths.sort();
    let main = folder.join("vmnat.toml");
    match fs::symlink_metadata(&main) {
        Ok(_) => paths.insert(0, main),
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(unreadable(error, &main)),
    }
    Ok(paths)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn text_of(path: &Path) -> Result<SourceText> {
    let bytes = fs::read(path).map_err(|error| unreadable(error, path))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::Usage(format!("{}: byte {at} is no UTF-8, which TOML is written in", path.display()))
    })?;
    Ok(SourceText::new(path.display().to_string(), text))
}

fn unreadable(error: io::Error, path: &Path) -> anyhow::Error {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return Error::NotPermitted { what: format!("reading {}", path.display()) }.into();
    }
    let what = format!("read {}", path.display());
    anyhow::Error::from(error).context(what)
}
