//! The software of hosts, started as their administrators start it.

pub mod by_hand;
pub mod dnsmasq;
pub mod docker;
pub mod firewalld;
pub mod libvirt;
pub mod networkd;
pub mod nftables;
pub mod ufw;
