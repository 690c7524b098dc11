//! Behind which port of the bridge a client is, so that one guest cannot take the addresses of all.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use netlink_packet_core::Parseable as _;
use netlink_packet_route::{
    AddressFamily,
    neighbour::{NeighbourAttribute, NeighbourMessage},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use vmnat_common::Mac;

use crate::netlink;

/// Between two readings of the forwarding table: a flood of clients costs no more.
const PAUSE: Duration = Duration::from_millis(200);

/// The forwarding table of a bridge, as it was a moment ago.
#[derive(Debug)]
pub(super) struct ForwardingTable {
    bridge: u32,
    found: HashMap<Mac, u32>,
    read: Option<Instant>,
}

impl ForwardingTable {
    pub(super) fn new(bridge: u32) -> Self {
        Self { bridge, found: HashMap::new(), read: None }
    }

    /// Index of the port behind which a MAC is; 0 where the bridge does not know.
    pub(super) fn of(&mut self, mac: Mac) -> u32 {
        if self.read.is_none_or(|read| read.elapsed() >= PAUSE) {
            self.found = read(self.bridge);
            self.read = Some(Instant::now());
        }
        self.found.get(&mac).copied().unwrap_or(0)
    }
}

fn read(bridge: u32) -> HashMap<Mac, u32> {
    // `struct ndmsg`.
    let mut body = [0; 12];
    body[0] = u8::from(AddressFamily::Bridge);
    let mut found = HashMap::new();
    // Without it no port is told from another, and the limits of all hold.
    let _ = netlink::dump(NETLINK_ROUTE, libc::RTM_GETNEIGH, &body, |message| {
        let Ok(entry) = NeighbourMessage::parse(message.body) else { return };
        let is_here = entry.attributes.contains(&NeighbourAttribute::Controller(bridge));
        let mac = entry.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok().map(Mac::new),
            _ => None,
        });
        if let Some(mac) = mac.filter(|_| is_here && entry.header.ifindex != bridge) {
            found.insert(mac, entry.header.ifindex);
        }
    });
    found
}
