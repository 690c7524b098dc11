//! The six situations in which hosts cut their guests off, with the real software, first without vmnat and then with it.

use vmnat_tests::hosts::checks::Check;

/// Makes each variant a test of its name.
macro_rules! play {
    ($($variant:ident),+ $(,)?) => {
        $(#[test] fn $variant() -> anyhow::Result<()> { super::$variant().play() })+
    };
}

/// What the host serves its guests where its firewall lets nothing in: vmnat has the names answered.
const SERVICES_REFUSED: &[(Check, &str)] = &[(Check::Dhcp, DHCP_REFUSED)];

const DHCP_REFUSED: &str = "the host's firewall lets no request in to its own DHCP server";

mod churn;
mod docker;
mod firewalld;
mod libvirt_nft;
mod machine;
mod nftables;
mod outage;
mod ufw;
