//! A real VPN as the uplink: guests reach the world by `WireGuard`, and are reached.

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    Lab,
    firewall::NFT_DROPS,
    frame::Tap,
    vmnat::Hook,
    wireguard::{DEVICE, WireGuard},
};

use super::kinds::by_all_means;

on_both_hooks!(guests_reach_the_world_and_are_reached_by_wireguard);

/// All kinds of traffic by a tunnel of MTU 1420; on the wire below it there is nothing but the tunnel.
fn guests_reach_the_world_and_are_reached_by_wireguard(hook: Hook) -> Result<()> {
    let mut lab = Lab::new()?;
    let _wireguard = WireGuard::between_host_and_router(&lab)?;
    lab.carry(DEVICE, "wg1")?;
    lab.host.nft(NFT_DROPS)?;
    let wire = Tap::open(&lab.router, "wan0")?;
    lab.vmnat_ok(&["up", "--bridge", "virbr0", "--uplink", DEVICE, "--hook", hook.name()])?;
    by_all_means(&lab)?;
    let frames = wire.drain();
    let below = frames.iter().filter(|frame| frame.get(12..14) == Some(&[8, 0]));
    let clear = below.clone().filter(|frame| frame.get(23) != Some(&17) || !is_tunnels(frame)).count();
    ensure!(below.count() > 100 && clear == 0, "{clear} packets beside the tunnel");
    lab.assert_sound_but_for_invalid_packets()
}

/// True for a datagram of the tunnel's own port.
fn is_tunnels(frame: &[u8]) -> bool {
    let port = 51820_u16.to_be_bytes();
    frame.get(34..36) == Some(&port) || frame.get(36..38) == Some(&port)
}
