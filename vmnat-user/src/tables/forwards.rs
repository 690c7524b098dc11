//! The set of port forwards: read whole, replaced in one step.

use anyhow::{Context as _, Result, bail};
use bytemuck::Zeroable as _;
use vmnat_common::{
    Protocol,
    forward::{Active, BANK, Forward},
    port_range::{POOL_WORDS, pool_bit},
};

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
        let (before, after) = (self.forward_ports()?, ports_of(forwards));
        // While both sets may be met, the ports of both are looked up.
        let either: Vec<u64> = before.iter().zip(&after).map(|(before, after)| before | after).collect();
        self.set_forward_ports(&either)?;
        self.forward_active.set(&0, &idle).context("turn over to the new port forwards")?;
        self.set_forward_ports(&after)
    }

    fn forward_ports(&self) -> Result<Vec<u64>> {
        let words = (0..POOL_WORDS).map(|word| Ok(self.forward_port.get(&word)?.unwrap_or(0)));
        words.collect::<Result<_>>().context("read the ports of port forwards")
    }

    fn set_forward_ports(&self, words: &[u64]) -> Result<()> {
        let indices: Vec<u32> = (0..POOL_WORDS).collect();
        self.forward_port.set_all(&indices, words).context("write the ports of port forwards")
    }

    fn active(&self) -> Result<Active> {
        self.forward_active.get(&0)?.context("FORWARD_ACTIVE has no entry")
    }
}

/// A bit a port that one of the forwards has, as the `FORWARD_PORT` map wants it.
fn ports_of(forwards: &[Forward]) -> Vec<u64> {
    let mut words = vec![0; usize::try_from(POOL_WORDS).unwrap_or_default()];
    for forward in forwards {
        let (protocol, external) = forward.external();
        let Some(protocol) = Protocol::from_number(protocol) else { continue };
        let first = external.port.number();
        for port in first..=first.saturating_add(forward.span) {
            let place = pool_bit(protocol, port);
            let place =
                place.and_then(|(word, bit)| Some((words.get_mut(usize::try_from(word).ok()?)?, bit)));
            if let Some((word, bit)) = place {
                *word |= bit;
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use vmnat_common::{Address, Endpoint, Port, forward::place};

    use super::*;

    #[test]
    fn a_range_has_each_of_its_ports_and_no_other() {
        let external = |port| Endpoint::new(Address::new([192, 0, 2, 1]), Port::new(port));
        let forward = |protocol, port, span| Forward {
            first: place(protocol, external(port)),
            span,
            ..Forward::zeroed()
        };
        let words = ports_of(&[forward(6, 60, 9), forward(17, 65_535, 0), forward(132, 0, 0)]);
        let has = |protocol, port| {
            let (word, bit) = pool_bit(protocol, port).unwrap();
            words[word as usize] & bit != 0
        };
        let ports: Vec<u16> = (0..=u16::MAX).filter(|port| has(Protocol::Tcp, *port)).collect();
        assert_eq!(ports, (60..=69).collect::<Vec<_>>());
        assert!(has(Protocol::Udp, 65_535) && !has(Protocol::Udp, 60) && has(Protocol::Sctp, 0));
    }
}
