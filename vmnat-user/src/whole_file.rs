//! Files that nobody ever sees half of: written beside their place, synced, and given their name.
//!
//! The two steps are apart, so that a full disk is met before anything else has changed.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What a file's name ends with until it is whole.
const UNFINISHED: &str = ".next";

/// Content that lies on the disk and is not the file yet; it goes when this value does.
#[derive(Debug)]
#[must_use]
pub struct Staged {
    temporary: PathBuf,
    path: PathBuf,
}

impl Staged {
    /// Writes bytes beside the file at `path`, for root alone; the folder is made where there is none.
    ///
    /// # Errors
    /// What the file system answers; the file is as it was.
    pub fn bytes(path: &Path, content: &[u8]) -> io::Result<Self> {
        Self::fill(path, |file| file.write_all(content))
    }

    /// Writes a JSON document beside the file at `path`, as [`Staged::bytes`] does.
    ///
    /// # Errors
    /// What the file system answers; the file is as it was.
    pub fn document<T: Serialize>(path: &Path, content: &T) -> io::Result<Self> {
        Self::fill(path, |file| {
            serde_json::to_writer_pretty(&mut *file, content)?;
            file.write_all(b"\n")
        })
    }

    fn fill(path: &Path, write: impl FnOnce(&mut io::BufWriter<File>) -> io::Result<()>) -> io::Result<Self> {
        let staged = Self { temporary: unfinished(path), path: path.to_owned() };
        DirBuilder::new().recursive(true).mode(0o700).create(staged.folder())?;
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(true).write(true).mode(0o600).open(&staged.temporary)?;
        let mut file = io::BufWriter::new(file);
        write(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok(staged)
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Makes it the file.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn commit(self) -> Result<()> {
        let rename = || -> io::Result<()> {
            fs::rename(&self.temporary, &self.path)?;
            File::open(self.folder())?.sync_all()
        };
        rename().with_context(|| format!("write {}", self.path.display()))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already where it has become the file.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Where the file at `path` lies until it is whole.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

/// Removes what a process that was killed has left beside the file at `path`.
pub fn forget_unfinished(path: &Path) {
    let _ = fs::remove_file(unfinished(path));
}

/// Reads a JSON document that says its `version`.
///
/// # Errors
/// Another version, which is said as such whatever its fields are, or no document of this one.
pub fn parse<T: DeserializeOwned>(text: &str, version: u32) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    // The version first: another one may have other fields.
    let said: Versioned = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if said.version != version {
        return Err(format!("its version is {}, and this vmnat knows {version}", said.version));
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_old_content_until_the_new_one_is_whole() {
        let folder = std::env::temp_dir().join(format!("vmnat-whole-file-{}", std::process::id()));
        let path = folder.join("deep/a.json");
        Staged::bytes(&path, b"old").unwrap().commit().unwrap();
        let staged = Staged::document(&path, &[1, 2]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(staged);
        let names = || fs::read_dir(path.parent().unwrap()).unwrap().count();
        assert_eq!((fs::read(&path).unwrap(), names()), (b"old".to_vec(), 1));
        Staged::document(&path, &[1, 2]).unwrap().commit().unwrap();
        assert_eq!(serde_json::from_slice::<Vec<u32>>(&fs::read(&path).unwrap()).unwrap(), [1, 2]);
        assert_eq!(names(), 1);
        fs::remove_dir_all(folder).unwrap();
    }
}
