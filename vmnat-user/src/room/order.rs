//! What puts fragments in order: a rule of nftables in the room's namespace, and there alone.
//!
//! Forwarded fragments are put together only where connection tracking is on (`nf_defrag_ipv4`), and it is turned on
//! by any rule that asks for a packet's state (`nf_ct_netns_get()` of `net/netfilter/nf_conntrack_proto.c`). The rule
//! takes every packet out of tracking at the same time, so that no connection is ever kept in the room. A program of
//! the netfilter kind would do without nftables, but only from Linux 6.4 on, and with this flag from 6.6.

use std::io;

use anyhow::{Context as _, Result};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink::{self, Attributes, Batch, Body};

/// Names end with a zero.
const TABLE: &[u8] = b"vmnat\0";
const CHAIN: &[u8] = b"prerouting\0";

/// `NFPROTO_IPV4`.
const FAMILY: u8 = 2;

/// `NF_INET_PRE_ROUTING`, and `NF_IP_PRI_RAW`: after fragments are put together (-400), before tracking (-200).
const HOOK: u32 = 0;
const PRIORITY: i32 = -300;

/// Messages (`NFT_MSG_NEWTABLE` and so on), and the subsystem.
const NEW_TABLE: u8 = 0;
const GET_TABLE: u8 = 1;
const NEW_CHAIN: u8 = 3;
const NEW_RULE: u8 = 6;
const SUBSYSTEM: u8 = 10;

/// `NFT_REG_1` and `NFT_CT_STATE`.
const REGISTER: u32 = 1;
const STATE: u32 = 0;

/// Turns it on in the network namespace of the calling thread, unless it is on.
///
/// # Errors
/// When the kernel has no nftables, or no connection tracking.
pub(super) fn settle() -> Result<()> {
    if !stands().unwrap_or(false) {
        netlink::tell(NETLINK_NETFILTER, &batch()).context("nftables refuses a rule in the room")?;
    }
    Ok(())
}

fn stands() -> io::Result<bool> {
    let mut found = false;
    netlink::dump(
        NETLINK_NETFILTER,
        u16::from_be_bytes([SUBSYSTEM, GET_TABLE]),
        &[FAMILY, 0, 0, 0],
        |message| {
            // NFTA_TABLE_NAME, behind the family's four bytes.
            let attributes = Attributes(message.body.get(4..).unwrap_or_default());
            found |= attributes.find(1) == Some(TABLE);
        },
    )?;
    Ok(found)
}

/// `table ip vmnat { chain prerouting { type filter hook prerouting priority raw; ct state; notrack } }`.
fn batch() -> Vec<u8> {
    let mut batch = Batch::begin(SUBSYSTEM);
    batch.create(NEW_TABLE, FAMILY, |message| message.attribute(1, TABLE));
    batch.create(NEW_CHAIN, FAMILY, |message| {
        message.attribute(1, TABLE);
        message.attribute(3, CHAIN);
        message.attribute(7, b"filter\0");
        message.nested(4, |hook| {
            hook.attribute(1, &HOOK.to_be_bytes());
            hook.attribute(2, &PRIORITY.to_be_bytes());
        });
    });
    batch.create(NEW_RULE, FAMILY, |message| {
        message.attribute(1, TABLE);
        message.attribute(2, CHAIN);
        message.nested(4, expressions);
    });
    batch.end()
}

fn expressions(list: &mut Body) {
    list.nested(1, |element| {
        element.attribute(1, b"ct\0");
        element.nested(2, |ct| {
            ct.attribute(2, &STATE.to_be_bytes());
            ct.attribute(1, &REGISTER.to_be_bytes());
        });
    });
    list.nested(1, |element| element.attribute(1, b"notrack\0"));
}
