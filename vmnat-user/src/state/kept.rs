//! What an instance was asked to be, kept over a reboot: the wish without the records of what was done.
//!
//! It is written whenever it changes, to a temporary file, synced and renamed; `down` removes it. Port forwards have a file
//! of their own, which outlives `down` too ([`crate::forwards::store`]).

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{HookMode, State};
use crate::{error::Error, paths::Instance};

/// Version of the file's format.
const VERSION: u32 = 1;

/// A wish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    version: u32,
    /// How programs are attached, where that differs from what the kernel would have been given anyway: another kernel may
    /// come with the reboot.
    hook: Option<HookMode>,
    /// The wish, as a state that has nothing yet.
    state: State,
}

impl Kept {
    /// The wish in a state; `kernel` is how the kernel would have programs attached.
    #[must_use]
    pub fn of(state: &State, kernel: HookMode) -> Self {
        // Every field is either kept or a record of what was done: a new one must be decided on here.
        let State {
            hook,
            kernel_log,
            flows,
            timeouts,
            quotas,
            pool,
            bridges,
            uplinks,
            externals,
            lease_files,
            bindings,
            untranslated,
            access,
            reap_interval_ms,
            version: _,
            object: _,
            followed: _,
            dhcp_leases: _,
            forwards: _,
            next_forward: _,
            expiries: _,
            resolved: _,
            sysctls: _,
            loopback: _,
            filters: _,
            qdiscs: _,
            log: _,
            warnings: _,
            mounted_bpffs: _,
        } = state.clone();
        let state = State {
            kernel_log,
            flows,
            timeouts,
            quotas,
            pool,
            bridges,
            uplinks,
            externals,
            lease_files,
            bindings,
            untranslated,
            access,
            reap_interval_ms,
            ..State::new(HookMode::Tcx)
        };
        Self { version: VERSION, hook: (hook != kernel).then_some(hook), state }
    }

    /// A state that wishes for this and has nothing yet.
    #[must_use]
    pub fn into_state(self, kernel: HookMode) -> State {
        State { hook: self.hook.unwrap_or(kernel), ..self.state }
    }
}

/// Reads what is kept of an instance, if anything is.
///
/// # Errors
/// [`Error::UnknownLayout`] for a file that this version does not understand, and when it cannot be read.
pub fn load(instance: &Instance) -> Result<Option<Kept>> {
    let path = instance.wish();
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Error::NotPermitted { what: format!("reading {}", path.display()) }.into());
        }
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    parse(&text).map(Some).map_err(|why| Error::UnknownLayout { path, why }.into())
}

fn parse(text: &str) -> Result<Kept, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    // The version first: another one may have other fields.
    let Versioned { version } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("its version is {version}, and this vmnat knows {VERSION}"));
    }
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Keeps a wish, unless that very one is kept already. Where nothing can be kept, because the file system is read-only, that
/// is said once, and no failure.
///
/// # Errors
/// What the file system answers otherwise; the file is as it was.
pub(super) fn save(instance: &Instance, wish: &Kept) -> Result<()> {
    // What cannot be read is replaced.
    if load(instance).is_ok_and(|known| known.as_ref() == Some(wish)) {
        return Ok(());
    }
    match write(instance, wish) {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            warn!("a reboot will not bring this back: {} is read-only", instance.library().display());
            Ok(())
        }
        other => other.with_context(|| format!("write {}", instance.wish().display())),
    }
}

fn write(instance: &Instance, wish: &Kept) -> io::Result<()> {
    let (folder, path) = (instance.library(), instance.wish());
    let temporary = path.with_extension("json.next");
    DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let put = || {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        serde_json::to_writer_pretty(&mut file, wish)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(&folder)?.sync_all()
    };
    put().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Puts back what was kept before; nothing where nothing was.
///
/// # Errors
/// As [`save`].
pub fn put_back(instance: &Instance, before: Option<&Kept>) -> Result<()> {
    before.map_or(Ok(()), |wish| save(instance, wish))
}

/// Forgets what is kept; a line when something was.
///
/// # Errors
/// What the file system answers.
pub fn forget(instance: &Instance) -> Result<Option<String>> {
    let path = instance.wish();
    match fs::remove_file(&path) {
        Ok(()) => Ok(Some(format!("removed {}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Bridge, *};

    fn state() -> State {
        let mut state = State::new(HookMode::Tcx);
        state.bridges.push(Bridge::new("virbr0"));
        state.uplinks.push("enp3s0".into());
        state.timeouts.insert("icmp".into(), 5);
        state.pool = "10000-30000".parse().unwrap();
        state
    }

    #[test]
    fn a_wish_comes_back_without_what_was_done() {
        let mut running = state();
        running.object = "0123".into();
        running.warnings.push("bridge virbr0 does not exist".into());
        running.qdiscs.insert(3, "enp3s0".into());
        let kept = Kept::of(&running, HookMode::Tcx);
        let read = parse(&serde_json::to_string_pretty(&kept).unwrap()).unwrap();
        assert_eq!(read, kept);
        assert_eq!(read.into_state(HookMode::Tcx), state());
    }

    #[test]
    fn a_hook_mode_that_the_kernel_chose_is_chosen_again() {
        let chosen = Kept::of(&State::new(HookMode::Clsact), HookMode::Clsact);
        assert_eq!(chosen.into_state(HookMode::Tcx).hook, HookMode::Tcx);
        let asked_for = Kept::of(&State::new(HookMode::Clsact), HookMode::Tcx);
        assert_eq!(asked_for.into_state(HookMode::Tcx).hook, HookMode::Clsact);
    }

    #[test]
    fn another_version_or_half_a_file_is_no_wish() {
        assert!(parse(r#"{"version":2,"plan":[]}"#).unwrap_err().contains("its version is 2"));
        for text in ["", "{", r#"{"version":1}"#] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
