//! The set of port forwards: read whole, replaced in one step.

use anyhow::{Context as _, Result, bail};
use bytemuck::Zeroable as _;
use vmnat_common::forward::{Active, BANK, Forward};

use super::Tables;

impl Tables {
    /// The port forwards in use, in the order of their first endpoints.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn forwards(&self) -> Result<Vec<Forward>> {
        let active = self.active()?;
        let indices = (active.base()..).take(usize::try_from(active.count())?);
        let forwards = indices.map(|index| Ok(self.forward.get(&index)?.unwrap_or(Forward::zeroed())));
        forwards.collect::<Result<_>>().context("read the port forwards")
    }

    /// Replaces all port forwards in one step: a packet meets the old set or the new one.
    ///
    /// # Errors
    /// When there are more than fit, and what the kernel answers; the old set then stays.
    pub fn set_forwards(&self, forwards: &[Forward]) -> Result<()> {
        debug_assert!(
            forwards.is_sorted_by_key(|forward| forward.first),
            "the kernel half searches by halving"
        );
        let count = u32::try_from(forwards.len()).unwrap_or(u32::MAX);
        if count > BANK {
            bail!(
                "{count} port forwards are more than the {BANK} that fit: an entry is taken for each external address and protocol"
            );
        }
        let idle = Active::new(!self.active()?.is_second(), count);
        let indices: Vec<u32> = (idle.base()..).take(forwards.len()).collect();
        self.forward.set_all(&indices, forwards).context("write the port forwards")?;
        self.forward_active.set(&0, &idle).context("turn over to the new port forwards")
    }

    fn active(&self) -> Result<Active> {
        self.forward_active.get(&0)?.context("FORWARD_ACTIVE has no entry")
    }
}
