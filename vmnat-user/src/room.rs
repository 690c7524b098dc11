//! The quiet room: a network namespace of vmnat's own with an unmodified stack, for the few packets that need one.
//!
//! What it is for, and what comes in and goes out where, is `vmnat_common::room`'s to say; this makes it, keeps it right, and
//! removes it. It serves while no process of vmnat runs: the namespace is kept by a mount (`namespace`), the pairs of
//! interfaces by the namespace (`door`), and the ways through it are routes (`interior`).
//!
//! The programs may use it once `Settings::room` names its doors, which is written when all of it stands, hooks too, and
//! taken back before anything of it is removed. A host that cannot have one does without it, and says so.

mod door;
mod interior;
mod namespace;
mod order;

use std::fs::File;

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use tracing::debug;
use vmnat_common::{Address, network::NetworkKey, room::Room};

use self::door::Door;
use crate::{
    dataplane::program,
    facts::Facts,
    link::{Hook, Point},
    paths::Instance,
    plan::Plan,
    services,
    tables::Tables,
};

/// What a route takes as the size of packets: at least what IPv4 asks for, at most what a veth takes.
const SIZES: std::ops::RangeInclusive<u32> = 68..=65_535;

/// The size where there is no interface to ask.
const USUAL_SIZE: u32 = 1500;

/// What the room is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    /// The largest packet to guests: the smallest MTU of the bridges.
    inner_mtu: u32,
    /// The largest packet to the world: the smallest MTU of the uplinks.
    outer_mtu: u32,
    /// Where guests are.
    networks: Vec<Ipv4Net>,
    /// Gateways at which the relay for names waits inside.
    relays: Vec<Address>,
}

impl Wish {
    fn of(plan: &Plan) -> Self {
        let smallest = |sizes: &mut dyn Iterator<Item = u16>| {
            let smallest = sizes.min().map_or(USUAL_SIZE, u32::from);
            smallest.clamp(*SIZES.start(), *SIZES.end())
        };
        let bridges = plan.bridge_port.iter().filter(|(index, port)| *index == port.bridge);
        Self {
            inner_mtu: smallest(&mut bridges.map(|(_, bridge)| bridge.mtu)),
            outer_mtu: smallest(&mut plan.uplink.iter().map(|(_, uplink)| uplink.mtu)),
            networks: plan.network.iter().filter_map(|(key, _)| subnet(*key)).collect(),
            relays: services::relayed(&plan.service),
        }
    }
}

/// An end of a pair on the host's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
}

/// The host's ends of the pairs: inner, outer, refusing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends([End; 3]);

impl Ends {
    /// The ends that are here, if all are.
    #[must_use]
    pub fn find(instance: &Instance, facts: &Facts) -> Option<Self> {
        let find = |door: Door| {
            let link = facts.link(&door.host_name(instance)).filter(|link| door::fits(link))?;
            Some(End { index: link.index, name: link.name.clone() })
        };
        let [inner, outer, refusing] = Door::ALL.map(find);
        Some(Self([inner?, outer?, refusing?]))
    }

    /// The ends that the programs use, whether they are here or not; for listings.
    #[must_use]
    pub fn of(instance: &Instance, room: &Room) -> Option<Self> {
        let indices = [room.inner, room.outer, room.refusing];
        let mut doors = Door::ALL.into_iter().zip(indices);
        let mut end = || doors.next().map(|(door, index)| End { index, name: door.host_name(instance) });
        room.exists().then(|| Some(Self([end()?, end()?, end()?])))?
    }

    /// What the programs are told.
    #[must_use]
    pub fn value(&self) -> Room {
        let [inner, outer, refusing] = self.indices();
        Room { inner, outer, refusing, reserved: 0 }
    }

    /// The hooks at which what comes out of the room is met.
    #[must_use]
    pub fn hooks(&self) -> [Hook; 2] {
        let Self([inner, outer, _]) = self;
        [(inner, program::ROOM_INWARD), (outer, program::ROOM_OUTWARD)].map(|(end, program)| Hook {
            interface: end.name.clone(),
            ifindex: end.index,
            point: Point::Ingress,
            program,
        })
    }

    fn indices(&self) -> [u32; 3] {
        let Self(ends) = self;
        ends.each_ref().map(|end| end.index)
    }
}

/// What came of [`settle`].
#[derive(Debug, Default)]
pub struct Settled {
    /// The host's ends, unless there is no room.
    pub ends: Option<Ends>,
    /// A line for each change.
    pub changes: Vec<String>,
    /// What cannot be done, one sentence each.
    pub warnings: Vec<String>,
}

/// Makes the room what it should be, and leaves it alone where it is. The programs are told of it by [`open()`].
///
/// # Errors
/// When the programs cannot be told that it is gone; a room that cannot be made is a warning.
pub fn settle(instance: &Instance, tables: &Tables, facts: &Facts, plan: &Plan) -> Result<Settled> {
    let wish = Wish::of(plan);
    let mut settled = Settled::default();
    match keep(instance, facts, &wish, &mut settled) {
        Ok(Some(ends)) => {
            settled.ends = Some(ends);
            return Ok(settled);
        }
        Ok(None) => {}
        Err(error) => debug!("the quiet room is made again: {error:#}"),
    }
    close(tables)?;
    match remove(instance).and_then(|_| build(instance, &wish, &mut settled)) {
        Ok(ends) => {
            settled.changes = vec![format!("made the quiet room, behind {}", names(&ends))];
            settled.ends = Some(ends);
        }
        Err(error) => {
            settled.warnings.push(format!(
                "no quiet room: fragments out of order and packets larger than the uplink that may be fragmented are dropped: {error:#}"
            ));
            if let Err(error) = remove(instance) {
                debug!("what was begun of the quiet room stays: {error:#}");
            }
        }
    }
    Ok(settled)
}

/// Tells the programs that the room is there; its hooks stand.
///
/// # Errors
/// What the kernel answers.
pub fn open(tables: &Tables, ends: &Ends) -> Result<()> {
    tell(tables, ends.value())
}

/// Tells the programs that there is no room.
///
/// # Errors
/// What the kernel answers.
pub fn close(tables: &Tables) -> Result<()> {
    tell(tables, Room::default())
}

/// Removes everything of the room; a line when there was something. The programs know by now.
///
/// # Errors
/// What the kernel or the file system answers.
pub fn remove(instance: &Instance) -> Result<Option<String>> {
    let mut removed = false;
    for index in door::find(instance).context("list the interfaces")? {
        removed |= door::close(index).context("delete an interface of the quiet room")?;
    }
    removed |= namespace::release(&instance.room())?;
    Ok(removed.then(|| "removed the quiet room".to_owned()))
}

/// Lets `work` run in the room's namespace; none where there is none to enter.
///
/// # Errors
/// Those of `work`.
pub fn inside<T: Send>(instance: &Instance, work: impl FnOnce() -> Result<T> + Send) -> Result<Option<T>> {
    let Some(namespace) = namespace::find(&instance.room()) else { return Ok(None) };
    namespace::inside(&namespace, work).map(Some)
}

fn tell(tables: &Tables, room: Room) -> Result<()> {
    let mut settings = tables.settings()?;
    if settings.room != room {
        settings.room = room;
        tables.set_settings(&settings)?;
    }
    Ok(())
}

/// Keeps a room that stands; none when there is none, or not all of it.
fn keep(instance: &Instance, facts: &Facts, wish: &Wish, settled: &mut Settled) -> Result<Option<Ends>> {
    let Some(ends) = Ends::find(instance, facts) else { return Ok(None) };
    // The ends stand, so the namespace of their peers does: it is kept in another mount namespace, where the agent may
    // be. That one looks after its inside.
    let Some(namespace) = namespace::find(&instance.room()) else { return Ok(Some(ends)) };
    let stands = arrange(&namespace, &ends, wish, settled)?;
    Ok(stands.then_some(ends))
}

fn build(instance: &Instance, wish: &Wish, settled: &mut Settled) -> Result<Ends> {
    let (namespace, ()) = namespace::make(&instance.room(), interior::furnish)?;
    let end = |door: Door| {
        let name = door.host_name(instance);
        door::open(door, &name, &namespace).map(|index| End { index, name })
    };
    let [inner, outer, refusing] = Door::ALL.map(end);
    let ends = Ends([inner?, outer?, refusing?]);
    namespace::inside(&namespace, interior::open)?;
    let stands = arrange(&namespace, &ends, wish, settled)?;
    anyhow::ensure!(stands, "its interfaces have gone again");
    Ok(ends)
}

/// Arranges the inside; false when a door is missing.
fn arrange(namespace: &File, ends: &Ends, wish: &Wish, settled: &mut Settled) -> Result<bool> {
    let arranged = namespace::inside(namespace, || {
        let Some(doors) = interior::doors(ends.indices())? else { return Ok(None) };
        interior::settle_addresses(&wish.relays)?;
        Ok(Some((interior::settle_ways(wish, doors)?, order::settle())))
    })?;
    let Some((moved, order)) = arranged else { return Ok(false) };
    if moved {
        settled.changes.push(format!(
            "the quiet room cuts packets to {} bytes for guests and {} for the world",
            wish.inner_mtu, wish.outer_mtu
        ));
    }
    if let Err(error) = order {
        settled.warnings.push(format!("fragments that arrive out of order are dropped: {error:#}"));
    }
    Ok(true)
}

fn subnet(key: NetworkKey) -> Option<Ipv4Net> {
    Ipv4Net::new(key.address.into(), u8::try_from(key.prefix).ok()?).ok()
}

fn names(Ends(ends): &Ends) -> String {
    ends.each_ref().map(|end| end.name.as_str()).join(", ")
}
