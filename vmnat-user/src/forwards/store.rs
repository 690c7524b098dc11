//! The file that holds port forwards over `down`, `up` and a reboot.
//!
//! It is written whole to a temporary file, synced and renamed, so a reader never sees half of it; and in two steps, so
//! that a full disk is met before anything has changed. A file that cannot be understood is never written over.

use std::{fs, io};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::PortForward;
use crate::{
    error::Error,
    paths::Instance,
    whole_file::{self, Staged},
};

/// Version of the file's format.
const VERSION: u32 = 1;

/// What the file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Store {
    version: u32,
    /// The number that the next port forward gets; none is used twice.
    pub next: u32,
    /// The port forwards.
    pub forwards: Vec<PortForward>,
}

impl Store {
    /// A file's content.
    #[must_use]
    pub const fn new(next: u32, forwards: Vec<PortForward>) -> Self {
        Self { version: VERSION, next, forwards }
    }
}

/// Reads the file of an instance, if there is one.
///
/// # Errors
/// [`Error::BadStore`] for one that cannot be understood, [`Error::NotPermitted`].
pub fn load(instance: &Instance) -> Result<Option<Store>> {
    let path = instance.forwards();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Error::NotPermitted { what: format!("reading {}", path.display()) }.into());
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    parse(&text).map(Some).map_err(|why| Error::BadStore { path, why }.into())
}

pub(crate) fn parse(text: &str) -> Result<Store, String> {
    whole_file::parse(text, VERSION)
}

/// Writes the content to a temporary file; none where the file holds it already.
///
/// # Errors
/// What the file system answers; the file is as it was.
pub fn stage(instance: &Instance, store: &Store) -> Result<Option<Staged>> {
    let known = load(instance)?;
    let is_empty = store.forwards.is_empty() && store.next <= 1;
    if known.as_ref() == Some(store) || (known.is_none() && is_empty) {
        return Ok(None);
    }
    let path = instance.forwards();
    Staged::document(&path, store).map(Some).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwards::Wish;

    #[test]
    fn what_is_written_is_read_back() {
        let forward = PortForward { id: 4, wish: Wish::plain("80:web:80".parse().unwrap()) };
        let store = Store::new(5, vec![forward]);
        assert_eq!(parse(&serde_json::to_string_pretty(&store).unwrap()), Ok(store));
    }

    #[test]
    fn another_version_or_half_a_file_is_no_store() {
        assert!(parse(r#"{"version":2,"rules":[]}"#).unwrap_err().contains("its version is 2"));
        for text in ["", "{", r#"{"version":1}"#, r#"{"version":1,"next":2,"forwards":[{"id":1}]}"#] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
