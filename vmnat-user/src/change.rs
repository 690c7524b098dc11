//! A change to an instance by a command: lock, state, one picture of the namespace, reconcile, save.

use anyhow::{Context as _, Result};
use rtnetlink::Handle;

use crate::{
    agent, config,
    dataplane::{self, LoadOptions},
    error::{Error, with_remedy},
    facts::{self, Facts},
    forwards::PortForward,
    paths::Instance,
    reconcile::{self, Reconciled},
    state::{self, Lock, State},
    tables::Tables,
    takeover::{self, TakenOver},
    whole_file::Staged,
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
    /// What was true when the change began, where anything was.
    known: Option<State>,
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
        let known = Some(state.clone());
        Ok(Self { known, ..Self::with(instance, handle, lock, state, facts) })
    }

    /// Begins with a state that may be a new one.
    #[must_use]
    pub fn with(instance: &Instance, handle: Handle, lock: Lock, state: State, facts: Facts) -> Self {
        let next_forward = state.next_forward;
        Self { instance: instance.clone(), handle, lock, next_forward, known: None, state, facts }
    }

    /// Tells what is true as yet, where the state is changed already: [`Change::apply`] puts that back if it fails.
    #[must_use]
    pub fn over(self, known: Option<&State>) -> Self {
        Self { known: known.cloned(), ..self }
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
    /// [`crate::error::Error::Foreign`] when that is not what files of the configuration say, and then nothing has
    /// changed; or when the state cannot be made true, and what was is put back then.
    pub async fn apply(&mut self) -> Result<Reconciled> {
        config::refuse_foreign(&self.instance, &self.state)?;
        let tables = self.tables()?;
        let Self { instance, handle, lock, state, facts, .. } = self;
        let done = reconcile::reconcile(instance, handle, &tables, state, facts, lock).await;
        let error = match done {
            Ok(done) => return self.save().map(|()| done),
            Err(error) => error,
        };
        let Some(known) = self.known.clone() else {
            self.save()?;
            return Err(error);
        };
        Err(self.put_back(&known, &tables, error).await)
    }

    /// Makes changed port forwards true, all of them or none, as [`Change::apply_whole`].
    ///
    /// # Errors
    /// As [`Change::apply_whole`].
    pub async fn apply_forwards(&mut self, before: Vec<PortForward>) -> Result<Reconciled> {
        let mut known = self.state.clone();
        known.forwards = before;
        known.next_forward = self.next_forward;
        self.apply_whole(&known).await
    }

    /// Makes the changed state true, all of it or nothing: every file is on the disk before the first one takes its name,
    /// and when a step fails, kernel and files are as before. Where nothing has changed, no file is written.
    ///
    /// # Errors
    /// When a file cannot be written, the state cannot be made true, or an interface refuses what it has not refused before.
    pub async fn apply_whole(&mut self, before: &State) -> Result<Reconciled> {
        let tables = self.tables()?;
        // A full disk is met before the kernel is told.
        let staged = (self.lock.stage(&self.state)?, self.lock.stage_wish(&self.state)?);
        let Self { instance, handle, lock, state, facts, .. } = self;
        let done = reconcile::reconcile(instance, handle, &tables, state, facts, lock).await;
        let done = done.and_then(|done| refuse_failures(before, done));
        match done.and_then(|done| self.write(before, staged).map(|()| done)) {
            Ok(done) => Ok(done),
            Err(error) => Err(self.put_back(before, &tables, error).await),
        }
    }

    /// Writes the last file beside the others, and only then gives them their names.
    fn write(&self, before: &State, staged: (Option<Staged>, Option<Staged>)) -> Result<()> {
        let running = if self.state == *before { None } else { Some(self.lock.stage_running(&self.state)?) };
        let (store, wish) = staged;
        [store, wish, running].into_iter().flatten().try_for_each(Staged::commit)
    }

    /// Makes the former wish true again; what was recorded for `down` since then stays on record. Returns the error with what holds
    /// then.
    async fn put_back(&mut self, before: &State, tables: &Tables, error: anyhow::Error) -> anyhow::Error {
        let mut outcome = "nothing was changed";
        config::copy_wish(before, &mut self.state);
        let Self { instance, handle, lock, state, facts, .. } = self;
        if let Err(again) = reconcile::reconcile(instance, handle, tables, state, facts, lock).await {
            tracing::debug!("cannot put back what was: {again:#}");
            outcome = "it was begun, and the agent puts back what was as soon as the kernel lets it";
            agent::nudge(instance);
        }
        // Where nothing is to be written, a full disk is no further trouble.
        if self.state != *before
            && let Err(error) = self.save()
        {
            tracing::warn!("cannot write what was put back: {error:#}");
        }
        with_remedy(error, outcome)
    }

    /// Loads the kernel half unless it is loaded as it should be; true when it did.
    ///
    /// # Errors
    /// As [`dataplane::load`].
    pub fn load(&mut self) -> Result<bool> {
        let Self { instance, state, .. } = self;
        let object = format!("{}-{}", dataplane::fingerprint(), u8::from(state.kernel_log));
        if state.object == object && dataplane::is_pinned(instance) {
            // A `down` that was killed may have removed some.
            dataplane::make_directories(instance)?;
            return Ok(false);
        }
        let options = LoadOptions { flows: state.flows, kernel_log: state.kernel_log };
        // What is refused leaves everything as it is, the agent too.
        dataplane::check(instance, options)?;
        if !state.object.is_empty() {
            // An agent of another version knows neither these maps nor these programs.
            agent::end_other(instance)?;
        }
        dataplane::load(instance, options)?;
        state.object = object;
        Ok(true)
    }

    /// [`Change::apply`] for an instance that has just been loaded: before the first packet meets a program, the guests'
    /// connections are taken over from the kernel.
    ///
    /// # Errors
    /// As [`Change::apply`].
    pub async fn apply_first(&mut self) -> Result<(Reconciled, TakenOver)> {
        let tables = self.tables()?;
        let Self { instance, handle, lock, state, facts, .. } = self;
        let mut done = Reconciled::default();
        let first = async {
            let plan = reconcile::fill(instance, &tables, state, facts, lock, &mut done)?;
            let taken = takeover::take_over(&tables)?;
            reconcile::attach(instance, handle, &tables, state, &plan, lock, &mut done).await?;
            Ok(taken)
        };
        let taken = first.await;
        reconcile::note_failure(state, taken.as_ref().err());
        self.save()?;
        taken.map(|taken| (done, taken))
    }
}

/// Fails with what single interfaces refuse, unless they have refused it before.
fn refuse_failures(before: &State, done: Reconciled) -> Result<Reconciled> {
    let steps: Vec<String> = done.failures.iter().map(|failure| format!("{failure:#}")).collect();
    if steps.iter().all(|step| before.warnings.contains(step)) {
        return Ok(done);
    }
    Err(Error::Undone { steps }.into())
}
