//! Listens for changes of lease files. Their folders are watched, because most are replaced as a whole; folders that come
//! later are taken up at the agent's regular look.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    future, io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::io::{Interest, unix::AsyncFd};
use tracing::{debug, warn};

/// dnsmasq writes into its file and keeps it open; libvirt's helper puts another in its place.
const CHANGES: AddWatchFlags =
    AddWatchFlags::IN_MODIFY.union(AddWatchFlags::IN_MOVE).union(AddWatchFlags::IN_DELETE);

/// Lease files that are watched.
pub(super) struct LeaseWatch {
    /// None where the kernel gives none.
    source: Option<AsyncFd<Descriptor>>,
    folders: HashMap<WatchDescriptor, PathBuf>,
    names: HashSet<OsString>,
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl LeaseWatch {
    /// Watches nothing yet; needs a tokio runtime.
    pub(super) fn open() -> Self {
        let opened = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).map_err(io::Error::from);
        let source = opened.and_then(|inotify| {
            // SAFETY: the descriptor is the inotify instance's, which `Descriptor` owns and never replaces.
            let registered =
                unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE) };
            registered.map_err(io::Error::from)
        });
        let source = source.inspect_err(|error| {
            warn!("changes of lease files are not heard ({error}); the agent looks by itself");
        });
        Self { source: source.ok(), folders: HashMap::new(), names: HashSet::new() }
    }

    /// Watches the folders of these files.
    pub(super) fn follow(&mut self, files: &[PathBuf]) {
        let Some(source) = &self.source else { return };
        self.names = files.iter().filter_map(|file| Some(file.file_name()?.to_owned())).collect();
        for folder in files.iter().filter_map(|file| file.parent()) {
            if self.folders.values().any(|known| known == folder) {
                continue;
            }
            match source.get_ref().0.add_watch(folder, CHANGES) {
                Ok(descriptor) => drop(self.folders.insert(descriptor, folder.to_owned())),
                Err(error) => debug!("{} is not watched: {error}", folder.display()),
            }
        }
    }

    /// Waits until a lease file has changed. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) {
        loop {
            let Some(source) = &self.source else { return future::pending().await };
            let Ok(mut guard) = source.readable().await else { return future::pending().await };
            match guard.get_inner().0.read_events() {
                Ok(events) => {
                    if self.concern(&events) {
                        return;
                    }
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(error) => {
                    warn!("changes of lease files are not heard any more: {error}");
                    self.source = None;
                }
            }
        }
    }

    /// Forgets folders that are gone; true where an event is a lease file's.
    fn concern(&mut self, events: &[InotifyEvent]) -> bool {
        for event in events.iter().filter(|event| event.mask.contains(AddWatchFlags::IN_IGNORED)) {
            self.folders.remove(&event.wd);
        }
        events.iter().any(|event| {
            let is_named =
                event.name.as_ref().is_some_and(|name| self.names.contains(Path::new(name).as_os_str()));
            is_named || event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn writing_and_replacing_a_lease_file_is_heard_and_other_files_are_not() {
        let folder = std::env::temp_dir().join(format!("vmnat-leases-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("br0.leases");
        let mut watch = LeaseWatch::open();
        watch.follow(&[file.clone(), PathBuf::from("/nonexistent/other.leases")]);
        let mut hears = async || timeout(Duration::from_millis(200), watch.next()).await.is_ok();
        fs::write(folder.join("other"), "x").unwrap();
        assert!(!hears().await);
        fs::write(&file, "x").unwrap();
        assert!(hears().await);
        fs::rename(folder.join("other"), &file).unwrap();
        assert!(hears().await);
        assert!(!hears().await);
        fs::remove_dir_all(&folder).unwrap();
    }
}
