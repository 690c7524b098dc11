//! The six situations in which hosts cut their guests off, with the real software, first without vmnat and then with it.

/// Makes each variant a test of its name.
macro_rules! play {
    ($($variant:ident),+ $(,)?) => {
        $(#[test] fn $variant() -> anyhow::Result<()> { super::$variant().play() })+
    };
}

/// Has vmnat give addresses on a bridge of one's own whose DHCP server the firewall keeps guests from; for libvirt's networks it does so
/// by itself.
const SERVE_DHCP: &[&str] = &["--dhcp", "192.168.122.100-192.168.122.199"];

mod causes;
mod churn;
mod docker;
mod firewalld;
mod guests;
mod libvirt_nft;
mod machine;
mod nftables;
mod outage;
mod ufw;
