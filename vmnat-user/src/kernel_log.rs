//! The programs' own log, on its way to the agent's; only where `up --kernel-log` asked for it.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{dataplane::program, paths::Instance, rawbpf};

/// Reads what the programs log.
pub struct KernelLog {
    logger: AsyncFd<EbpfLogger<ToTracing>>,
}

impl KernelLog {
    /// Finds the ring buffer of the pinned programs.
    ///
    /// # Errors
    /// When they have none, or may not be asked (`CAP_SYS_ADMIN`).
    pub fn open(instance: &Instance) -> Result<Self> {
        let program = rawbpf::object_get(&instance.program(program::OUTBOUND_PORT))?;
        let id = rawbpf::program_id(program.as_fd())?;
        let logger = EbpfLogger::init_from_id_with_logger(id, ToTracing).context("find the programs' log")?;
        // SAFETY: the logger owns its ring buffer, whose descriptor stays open, and the same, until it is dropped.
        let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }?;
        Ok(Self { logger })
    }

    /// Waits for records and hands them on.
    ///
    /// # Errors
    /// When the ring buffer cannot be waited for.
    pub async fn pump(&mut self) -> Result<()> {
        let mut ready = self.logger.readable_mut().await?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
        Ok(())
    }
}

/// Hands records on to `tracing`.
#[derive(Clone, Copy, Debug)]
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::info!("kernel: {}: {}", record.target(), record.args());
    }

    fn flush(&self) {}
}
