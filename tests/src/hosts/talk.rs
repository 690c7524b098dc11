//! Guests that talk while somebody changes the host under them: how long each kind of talk was silent.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::stage::Stage;
use crate::lab::{
    EXTERNAL, SERVER_ECHO,
    client::{self, Asker, Conversation},
    namespace::Namespace,
};

/// How long one try may take: an answer takes a thousandth of it.
const TRY: Duration = Duration::from_millis(100);

/// How long all talk before and after the change.
const AROUND: Duration = Duration::from_millis(700);

/// A change of the host, and how long its guests may be silent meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// What is done.
    pub title: &'static str,
    /// Does it.
    pub work: fn(&mut Stage) -> Result<()>,
    /// The longest silence of any talk.
    pub silence: Duration,
}

/// The longest silence of each kind of talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silences {
    /// A flow of UDP from a guest to the world that has been there before.
    pub kept: Duration,
    /// New flows of UDP from a guest to the world.
    pub new: Duration,
    /// A TCP conversation that has been there before.
    pub tcp: Duration,
    /// New calls of the world to a forwarded port.
    pub calls: Duration,
}

impl Silences {
    /// The longest of them.
    #[must_use]
    pub fn longest(&self) -> Duration {
        [self.kept, self.new, self.tcp, self.calls].into_iter().max().unwrap_or_default()
    }
}

impl fmt::Display for Silences {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kept, new, tcp, calls } = self;
        write!(
            formatter,
            "UDP {kept:.0?}, new UDP {new:.0?}, TCP {tcp:.0?}, calls from the world {calls:.0?}"
        )
    }
}

/// Has the first guest and the world talk while `change` is made.
///
/// # Errors
///
/// When the change fails, the TCP conversation breaks, or a talk is silent for longer than it may be.
pub fn during(stage: &mut Stage, change: &Change) -> Result<Silences> {
    let guest = stage.lab.guest(1)?.clone();
    let world = stage.lab.world.clone();
    let stop = Arc::new(AtomicBool::new(false));
    let asker = Asker::new(&guest, 0)?;
    let mut conversation = Conversation::open(&guest, SERVER_ECHO)?;
    let kept = repeat(&guest, &stop, move |_| asker.ask_within(SERVER_ECHO, 100, TRY).map(drop));
    let new =
        repeat(&guest, &stop, |guest| Asker::new(guest, 0)?.ask_within(SERVER_ECHO, 100, TRY).map(drop));
    let tcp = repeat(&guest, &stop, move |_| conversation.exchange(10_000));
    let calls = repeat(&world, &stop, |world| {
        client::connect(world, None, &format!("{EXTERNAL}:80"), 3 * TRY).map(drop)
    });

    thread::sleep(AROUND);
    let changed = (change.work)(stage);
    thread::sleep(AROUND);
    if changed.is_ok() {
        // The longest silence shows when it ends, so every talk has to be heard once more.
        thread::sleep(change.silence.saturating_sub(AROUND).min(Duration::from_secs(3)));
    }
    stop.store(true, Ordering::Relaxed);
    let silence = |talk: JoinHandle<Duration>| talk.join().map_err(|_| anyhow::anyhow!("a talk panicked"));
    let silences =
        Silences { kept: silence(kept)?, new: silence(new)?, tcp: silence(tcp)?, calls: silence(calls)? };
    changed.with_context(|| change.title.to_owned())?;
    ensure!(
        silences.longest() <= change.silence,
        "{}: silent for longer than {:?}: {silences}",
        change.title,
        change.silence
    );
    Ok(silences)
}

/// Tries again and again until told to stop; returns the longest time from one success to the next.
fn repeat(
    namespace: &Namespace,
    stop: &Arc<AtomicBool>,
    mut talk: impl FnMut(&Namespace) -> Result<()> + Send + 'static,
) -> JoinHandle<Duration> {
    let (namespace, stop) = (namespace.clone(), Arc::clone(stop));
    thread::spawn(move || {
        let mut last = Instant::now();
        let mut longest = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            if talk(&namespace).is_ok() {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            thread::sleep(Duration::from_millis(20));
        }
        longest.max(last.elapsed())
    })
}
