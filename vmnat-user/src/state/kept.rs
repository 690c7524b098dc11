//! What an instance was asked to be, kept over a reboot: the wish without the records of what was done.
//!
//! It is written whenever it changes, to a temporary file, synced and renamed; `down` removes it. Port forwards of the command
//! line have a file of their own, which outlives `down` too ([`crate::forwards::store`]). What the operator's files said last
//! is part of the wish: it holds over a reboot where the files cannot be read again ([`crate::config::renew_kept`]).

use std::{fs, io};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{HookMode, State};
use crate::{
    config::FileLayer,
    error::Error,
    paths::Instance,
    whole_file::{self, Staged},
};

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
            mut forwards,
            file,
            reap_interval_ms,
            version: _,
            object: _,
            followed: _,
            dhcp_leases: _,
            next_forward: _,
            expiries: _,
            resolved: _,
            sysctls: _,
            loopback: _,
            filters: _,
            qdiscs: _,
            log: _,
            warnings: _,
            unfinished: _,
            mounted_bpffs: _,
        } = state.clone();
        // The files can ask for a hook mode too, the kernel's own as well.
        let is_said = file.owned.iter().any(|said| said.bridge.is_none() && said.key == "hook");
        // The others have a file of their own, or end with the instance.
        forwards.retain(|forward| forward.wish.file.is_some());
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
            forwards,
            file: FileLayer { fault: None, ..file },
            reap_interval_ms,
            ..State::new(HookMode::Tcx)
        };
        Self { version: VERSION, hook: (is_said || hook != kernel).then_some(hook), state }
    }

    /// A state that wishes for this and has nothing yet.
    #[must_use]
    pub fn into_state(self, kernel: HookMode) -> State {
        let used = self.state.forwards.iter().map(|forward| forward.id).max().unwrap_or_default();
        State { hook: self.hook.unwrap_or(kernel), next_forward: used.saturating_add(1), ..self.state }
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
    whole_file::parse(text, VERSION)
}

/// Writes a wish beside its file; none where that very one is kept already. Where nothing can be kept, because the file system
/// is read-only, that is said, and no failure.
///
/// # Errors
/// What the file system answers otherwise; the file is as it was.
pub(super) fn stage(instance: &Instance, wish: &Kept) -> Result<Option<Staged>> {
    // What cannot be read is replaced.
    if load(instance).is_ok_and(|known| known.as_ref() == Some(wish)) {
        return Ok(None);
    }
    let path = instance.wish();
    match Staged::document(&path, wish) {
        Ok(staged) => Ok(Some(staged)),
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            warn!("a reboot will not bring this back: {} is read-only", instance.library().display());
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("write {}", path.display())),
    }
}

/// Keeps a wish.
///
/// # Errors
/// As [`stage`] and [`Staged::commit`].
pub(super) fn save(instance: &Instance, wish: &Kept) -> Result<()> {
    stage(instance, wish)?.map_or(Ok(()), Staged::commit)
}

/// Puts back what was kept before; nothing where nothing was.
///
/// # Errors
/// What the file system answers.
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
    use crate::{
        config::{Scalar, Source, Statement},
        forwards::{PortForward, Wish},
    };

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
    fn what_the_files_said_is_kept_with_their_forwards() {
        let mut running = state();
        let said = Statement { bridge: None, key: "guest-flows".into(), value: Scalar::Number(7) };
        running.file =
            FileLayer { source: Source::File("/etc/a.toml".into()), owned: vec![said], fault: None };
        let forward = |id, file: Option<&str>| {
            let wish =
                Wish { file: file.map(str::to_owned), ..Wish::plain("80:10.0.0.2:80".parse().unwrap()) };
            PortForward { id, wish }
        };
        running.forwards = vec![forward(2, None), forward(5, Some("/etc/a.toml"))];
        running.next_forward = 9;
        let kept = Kept::of(&running, HookMode::Tcx);
        running.file.fault = Some("/etc/a.toml:1:1: there is no key".into());
        assert_eq!(Kept::of(&running, HookMode::Tcx), kept, "a fault is no part of the wish");
        let back = kept.into_state(HookMode::Tcx);
        assert_eq!(back.file, FileLayer { fault: None, ..running.file.clone() });
        assert_eq!((&back.forwards[..], back.next_forward), (&running.forwards[1..], 6));
    }

    #[test]
    fn a_hook_mode_that_the_files_ask_for_is_theirs_under_any_kernel() {
        let mut state = State::new(HookMode::Tcx);
        let said = Statement { bridge: None, key: "hook".into(), value: Scalar::Text("tcx".into()) };
        state.file.owned.push(said);
        assert_eq!(Kept::of(&state, HookMode::Tcx).into_state(HookMode::Clsact).hook, HookMode::Tcx);
    }

    #[test]
    fn another_version_or_half_a_file_is_no_wish() {
        assert!(parse(r#"{"version":2,"plan":[]}"#).unwrap_err().contains("its version is 2"));
        for text in ["", "{", r#"{"version":1}"#] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
