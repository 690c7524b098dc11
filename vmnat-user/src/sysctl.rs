//! Kernel settings under `/proc/sys`: read, changed, and put back as they were.
//!
//! Names are paths below `/proc/sys` (`net/ipv4/conf/virbr0/forwarding`), since names of interfaces may hold dots.
//! What lies under `net` is of the calling thread's network namespace.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Where the settings are.
const ROOT: &str = "/proc/sys";

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The setting, as a path below `/proc/sys`.
    pub path: String,
    /// Its value before.
    pub before: String,
    /// The value that it was given.
    pub after: String,
}

/// What became of a change that was to be undone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The setting has its former value.
    Restored,
    /// The setting does not exist any more: its interface is gone.
    Gone,
    /// Somebody else has given it this value since, which was left alone.
    Foreign(String),
}

/// The value of a setting, without the line's end.
///
/// # Errors
/// When there is no such setting, or it may not be read.
pub fn read(path: &str) -> Result<String> {
    read_file(&file(path)).with_context(|| format!("cannot read the kernel setting {path}"))
}

/// Gives a setting a value.
///
/// # Errors
/// When there is no such setting, or the value is refused.
pub fn write(path: &str, value: &str) -> Result<()> {
    fs::write(file(path), value).with_context(|| format!("cannot set the kernel setting {path} to {value}"))
}

/// Gives a setting a value and says what that changed; `None` when it had it already.
///
/// # Errors
/// As [`read`] and [`write()`].
pub fn apply(path: &str, value: &str) -> Result<Option<Change>> {
    let before = read(path)?;
    if before == value {
        return Ok(None);
    }
    write(path, value)?;
    Ok(Some(Change { path: path.to_owned(), before, after: value.to_owned() }))
}

/// Undoes a change, unless somebody else has changed the setting since.
///
/// # Errors
/// When the setting exists and cannot be read or written.
pub fn restore(change: &Change) -> Result<Restored> {
    restore_file(change, &file(&change.path))
        .with_context(|| format!("cannot set the kernel setting {} back to {}", change.path, change.before))
}

fn restore_file(change: &Change, file: &Path) -> io::Result<Restored> {
    match read_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Restored::Gone),
        Ok(current) if current == change.after => {
            fs::write(file, &change.before)?;
            Ok(Restored::Restored)
        }
        Ok(current) if current == change.before => Ok(Restored::Restored),
        Ok(current) => Ok(Restored::Foreign(current)),
        Err(error) => Err(error),
    }
}

fn read_file(file: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(file)?.trim_end().to_owned())
}

fn file(path: &str) -> PathBuf {
    Path::new(ROOT).join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str, value: &str) -> PathBuf {
        let file = std::env::temp_dir().join(format!("vmnat-sysctl-{}-{name}", std::process::id()));
        fs::write(&file, value).unwrap();
        file
    }

    fn change() -> Change {
        Change { path: "net/ipv4/example".into(), before: "0".into(), after: "1".into() }
    }

    #[test]
    fn a_change_is_undone_unless_it_is_not_ours_any_more() {
        for (current, result, left) in [
            ("1\n", Restored::Restored, "0"),
            ("0\n", Restored::Restored, "0\n"),
            ("2\n", Restored::Foreign("2".into()), "2\n"),
        ] {
            let file = scratch("restore", current);
            assert_eq!(restore_file(&change(), &file).unwrap(), result);
            assert_eq!(fs::read_to_string(&file).unwrap(), left);
            fs::remove_file(file).unwrap();
        }
    }

    #[test]
    fn a_setting_that_went_with_its_interface_is_gone() {
        assert_eq!(restore_file(&change(), Path::new("/nonexistent")).unwrap(), Restored::Gone);
    }

    #[test]
    fn a_setting_is_read_without_its_line_end() {
        assert!(
            read("kernel/osrelease").is_ok_and(|release| !release.is_empty() && !release.ends_with('\n'))
        );
        assert!(read("net/none/such").unwrap_err().to_string().contains("net/none/such"));
    }
}
