//! A change to an instance by a command: lock, state, one picture of the namespace, reconcile, save.

use anyhow::{Context as _, Result};
use rtnetlink::Handle;

use crate::{
    facts::{self, Facts},
    forwards::{PortForward, store::Staged},
    paths::Instance,
    reconcile::{self, Reconciled},
    state::{self, Lock, State},
    tables::Tables,
    takeover::{self, TakenOver},
};

/// Opens a netlink connection in the calling thread's network namespace; needs a tokio runtime.
///
/// # Errors
/// When the kernel gives no socket.
pub fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// A change that is being made; the instance is locked until it is dropped.
#[derive(Debug)]
pub struct Change {
    instance: Instance,
    handle: Handle,
    lock: Lock,
    /// Number of the next port forward when the change began.
    next_forward: u32,
    /// The state, to be changed by the command.
    pub state: State,
    /// The picture of the namespace.
    pub facts: Facts,
}

impl Change {
    /// Begins to change a running instance.
    ///
    /// # Errors
    /// [`crate::error::Error::NotRunning`], [`crate::error::Error::Locked`].
    pub async fn begin(instance: &Instance) -> Result<Self> {
        // Says that nothing runs before it makes a lock for it.
        state::load(instance)?;
        let lock = Lock::take(instance)?;
        let state = state::load(instance)?;
        let handle = connect()?;
        let facts = facts::gather(&handle).await?;
        Ok(Self::with(instance, handle, lock, state, facts))
    }

    /// Begins with a state that may be a new one.
    #[must_use]
    pub fn with(instance: &Instance, handle: Handle, lock: Lock, state: State, facts: Facts) -> Self {
        let next_forward = state.next_forward;
        Self { instance: instance.clone(), handle, lock, next_forward, state, facts }
    }

    /// The netlink connection.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Opens the maps.
    ///
    /// # Errors
    /// As [`Tables::open`].
    pub fn tables(&self) -> Result<Tables> {
        Tables::open(&self.instance)
    }

    /// Writes the state as it is.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn save(&self) -> Result<()> {
        self.lock.save(&self.state)
    }

    /// Makes the changed state true, and writes it.
    ///
    /// # Errors
    /// When the state cannot be made true; the file then holds what was done.
    pub async fn apply(&mut self) -> Result<Reconciled> {
        let tables = self.tables()?;
        let Self { instance, handle, state, facts, .. } = self;
        let done = reconcile::reconcile(instance, handle, &tables, state, facts).await;
        self.save()?;
        done
    }

    /// Makes changed port forwards true, all of them or none: their file is on the disk before the kernel is told, and
    /// takes its name after. When that fails, `before` is put back.
    ///
    /// # Errors
    /// When the file cannot be written, or the forwards cannot be made true.
    pub async fn apply_forwards(&mut self, before: Vec<PortForward>) -> Result<Reconciled> {
        let tables = self.tables()?;
        let staged = self.lock.stage(&self.state)?;
        let Self { instance, handle, state, facts, next_forward, .. } = self;
        let done = reconcile::reconcile(instance, handle, &tables, state, facts).await;
        let done = done.and_then(|done| staged.map_or(Ok(()), Staged::commit).map(|()| done));
        if done.is_err() {
            state.forwards = before;
            state.next_forward = *next_forward;
            let undone = reconcile::reconcile(instance, handle, &tables, state, facts).await;
            if let Err(error) = undone {
                tracing::warn!("cannot put the port forwards back: {error:#}");
            }
        }
        self.save()?;
        done
    }

    /// [`Change::apply`] for an instance that has just been loaded: before the first packet meets a program, the guests'
    /// connections are taken over from the kernel.
    ///
    /// # Errors
    /// As [`Change::apply`].
    pub async fn apply_first(&mut self) -> Result<(Reconciled, TakenOver)> {
        let tables = self.tables()?;
        let Self { instance, handle, state, facts, .. } = self;
        let mut done = Reconciled::default();
        let first = async {
            let plan = reconcile::fill(instance, &tables, state, facts, &mut done)?;
            let taken = takeover::take_over(&tables)?;
            reconcile::attach(instance, handle, &tables, state, &plan, &mut done).await?;
            Ok(taken)
        };
        let taken = first.await;
        self.save()?;
        taken.map(|taken| (done, taken))
    }
}
