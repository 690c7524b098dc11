//! The lock around an instance, and the writing of its state, which only its holder may do.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use super::{
    State,
    kept::{self, Kept},
};
use crate::{
    agent,
    error::Error,
    forwards::store,
    link,
    paths::Instance,
    whole_file::{self, Staged},
};

/// How long a command waits for another one to finish.
const PATIENCE: Duration = Duration::from_secs(20);

/// The right to change an instance, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
    instance: Instance,
}

impl Lock {
    /// Takes the lock, and waits a while for another command to finish.
    ///
    /// # Errors
    /// [`Error::Locked`] when it does not.
    pub fn take(instance: &Instance) -> Result<Self> {
        let since = Instant::now();
        loop {
            if let Some(lock) = Self::try_take(instance)? {
                return Ok(lock);
            }
            if since.elapsed() > PATIENCE {
                let holder = match agent::running(instance).filter(|pid| agent::is_stopped(*pid)) {
                    // Whoever waits for it waits in vain.
                    Some(pid) => format!(
                        "the agent, which is stopped (`kill -CONT {pid}` lets it go on), or another vmnat command"
                    ),
                    None => "another vmnat command".to_owned(),
                };
                return Err(
                    Error::Locked { instance: instance.to_string(), path: instance.lock(), holder }.into()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Takes the lock of an instance that exists, if nobody holds it: what was taken down is not made again.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn try_take_existing(instance: &Instance) -> Result<Option<Self>> {
        if instance.run().exists() { Self::try_take(instance) } else { Ok(None) }
    }

    /// Takes the lock if nobody holds it.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn try_take(instance: &Instance) -> Result<Option<Self>> {
        let path = instance.lock();
        make_run(instance)?;
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600);
        let file = options.open(&path).with_context(|| format!("open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) if is_current(&file, &path) => {
                // What a holder that was killed has not finished.
                for file in [instance.state(), instance.forwards(), instance.wish()] {
                    whole_file::forget_unfinished(&file);
                }
                Ok(Some(Self { _file: file, instance: instance.clone() }))
            }
            // `down` removed the file between open and lock: whoever comes next makes another.
            Ok(_) | Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// Writes the port forwards that outlive the instance beside their file; none where the file holds them already.
    ///
    /// # Errors
    /// As [`store::stage`].
    pub fn stage(&self, state: &State) -> Result<Option<Staged>> {
        store::stage(&self.instance, &state.divide().0)
    }

    /// Writes the wish beside its file; none where the file holds it already.
    ///
    /// # Errors
    /// What the file system answers; the file is as it was.
    pub fn stage_wish(&self, state: &State) -> Result<Option<Staged>> {
        kept::stage(&self.instance, &Kept::of(state, link::kernel_mode()))
    }

    /// Writes the state, and what outlives it where that has changed: port forwards, and the wish. Each lies beside its file before the
    /// first takes its name, so that a full disk changes none of them.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn save(&self, state: &State) -> Result<()> {
        let (store, wish) = (self.stage(state)?, self.stage_wish(state)?);
        let running = self.stage_running(state)?;
        store.map_or(Ok(()), Staged::commit)?;
        wish.map_or(Ok(()), Staged::commit)?;
        running.commit()
    }

    /// Writes the state alone: to a temporary file, synced, renamed.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn save_running(&self, state: &State) -> Result<()> {
        self.write_running(state)?.commit()
    }

    /// Puts on record what `down` will have to put back, before it is changed: whoever is killed then leaves a host that can be
    /// left as it was found. What the file says else stays as it is.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn note_records(&self, state: &State) -> Result<()> {
        let Some(mut known) = super::find_running(&self.instance)? else { return Ok(()) };
        let before = known.clone();
        known.sysctls.clone_from(&state.sysctls);
        known.loopback.clone_from(&state.loopback);
        known.filters.clone_from(&state.filters);
        known.qdiscs.clone_from(&state.qdiscs);
        if known == before { Ok(()) } else { self.save_running(&known) }
    }

    /// Writes the state beside its file, without the port forwards that outlive the instance.
    ///
    /// # Errors
    /// What the file system answers; the file is as it was.
    pub fn stage_running(&self, state: &State) -> Result<Staged> {
        self.write_running(&state.divide().1)
    }

    fn write_running(&self, state: &State) -> Result<Staged> {
        let path = self.instance.state();
        Staged::document(&path, state).with_context(|| format!("write {}", path.display()))
    }

    /// Removes everything that the instance keeps in `/run`, the lock last.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn remove_all(self) -> io::Result<()> {
        fs::remove_dir_all(self.instance.run())?;
        // Another instance may live there, or the directory may be a mount (a container's volume).
        let _ = fs::remove_dir(crate::paths::RUN);
        Ok(())
    }
}

/// Makes the directory of an instance's running state, for root alone.
fn make_run(instance: &Instance) -> Result<()> {
    let path = instance.run();
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(&path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Error::NotPermitted { what: format!("writing {}", path.display()) }.into())
        }
        other => other.with_context(|| format!("make {}", path.display())),
    }
}

fn is_current(file: &File, path: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(named)) => held.ino() == named.ino() && held.dev() == named.dev(),
        _ => false,
    }
}
