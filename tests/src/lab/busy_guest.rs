//! A guest that never pauses, so that no moment without a program goes unseen.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};

use super::{
    Lab, SERVER,
    frame::{Packet, Tap},
};

impl Lab {
    /// Guest 1 sends a datagram each millisecond while this goes on; nothing may leave untranslated.
    ///
    /// # Errors
    ///
    /// What the work fails with, or that something has left.
    pub fn beside_a_busy_guest(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let wire = Tap::open(self.guest(1)?, "eth0")?;
        let frame = Packet::udp(self.outbound_ends(1, SERVER)?, 30_000, 9, b"without a pause").bytes();
        let done = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let sending = scope.spawn(|| -> Result<()> {
                while !done.load(Ordering::Relaxed) {
                    wire.send(&frame)?;
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            });
            let outcome = work();
            done.store(true, Ordering::Relaxed);
            sending.join().map_err(|_| anyhow!("the sender panicked"))??;
            outcome
        })?;
        self.leaks.assert_none()
    }
}
