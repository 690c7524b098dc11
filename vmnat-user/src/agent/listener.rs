//! Listens for changes; a watch that fails for good is opened again, less and less often while that is in vain. The
//! agent's regular look goes on meanwhile.

use std::{io, time::Duration};

use anyhow::Result;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::facts::{Changes, Watch};

/// Until the first attempt to open it again; each further one waits twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest time between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// What tells changes.
pub(super) trait Source: Sized {
    fn open() -> Result<Self>;
    async fn next(&mut self) -> io::Result<Changes>;
}

impl Source for Watch {
    fn open() -> Result<Self> {
        Self::open()
    }

    async fn next(&mut self) -> io::Result<Changes> {
        self.next().await
    }
}

/// A source that is opened again when it fails.
pub(super) struct Listener<S> {
    /// None while it is broken.
    source: Option<S>,
    pause: Duration,
    retry_at: Instant,
}

impl<S: Source> Listener<S> {
    pub(super) fn open() -> Result<Self> {
        Ok(Self { source: Some(S::open()?), pause: FIRST_PAUSE, retry_at: Instant::now() })
    }

    /// Waits for changes. Dropping the future loses none.
    pub(super) async fn next(&mut self) -> Changes {
        loop {
            let Some(source) = &mut self.source else {
                sleep_until(self.retry_at).await;
                match S::open() {
                    Ok(source) => {
                        self.source = Some(source);
                        // Nobody knows what was missed.
                        return Changes::ALL;
                    }
                    Err(error) => self.retreat(&format!("{error:#}")),
                }
                continue;
            };
            match source.next().await {
                Ok(changes) => {
                    if self.pause != FIRST_PAUSE {
                        info!("changes of the interfaces are heard again");
                        self.pause = FIRST_PAUSE;
                    }
                    return changes;
                }
                Err(error) => self.retreat(&error.to_string()),
            }
        }
    }

    /// Plans the next attempt. Only the first failure is told: those that follow have its cause.
    fn retreat(&mut self, why: &str) {
        self.source = None;
        let pause = self.pause;
        self.pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        self.retry_at = Instant::now().checked_add(pause).unwrap_or_else(Instant::now);
        if pause == FIRST_PAUSE {
            warn!(
                "changes of the interfaces are not heard ({why}); the agent tries again, and looks by itself"
            );
        } else {
            debug!("changes of the interfaces are still not heard: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// Opens, and fails at once when it is read.
    struct Broken;

    impl Source for Broken {
        fn open() -> Result<Self> {
            Ok(Self)
        }

        async fn next(&mut self) -> io::Result<Changes> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }

    #[tokio::test]
    async fn a_source_that_stays_broken_is_left_alone_for_longer_and_longer() {
        let mut listener = Listener::<Broken>::open().unwrap();
        let heard = timeout(Duration::from_millis(50), listener.next()).await;
        assert!(heard.is_err(), "it waits before it opens the source again");
        assert!(listener.source.is_none());
        for seconds in [4, 8, 16, 32, 60, 60] {
            listener.retry_at = Instant::now();
            assert_eq!(listener.next().await, Changes::ALL, "what was missed is looked at");
            assert!(timeout(Duration::from_millis(1), listener.next()).await.is_err());
            assert_eq!(listener.pause, Duration::from_secs(seconds));
        }
    }
}
