//! vmnat takes over from netfilter's masquerade while guests are talking.

use anyhow::{Result, ensure};
use vmnat_tests::lab::{
    Lab, SERVER_ECHO, Setup,
    client::{self, Asker, Conversation},
    firewall::{NFT_DROPS, NFT_MASQUERADE},
    vmnat::Hook,
};

on_both_hooks!(
    conversations_through_masquerade_survive_up,
    a_silent_conversation_survives_up,
    a_guest_keeps_its_external_port_across_up,
);

/// 1. guest 1 and guest 2, both from port 26,000, talk through netfilter's masquerade; 2. `up`; 3. FORWARD is dropped
///    and the masquerade flushed, so vmnat alone can carry them; 4. both go on, and new ones open.
fn conversations_through_masquerade_survive_up(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.nft(NFT_MASQUERADE)?;
    let mut first = Conversation::open_from(lab.guest(1)?, 26_000, SERVER_ECHO)?;
    let mut second = Conversation::open_from(lab.guest(2)?, 26_000, SERVER_ECHO)?;
    ensure!(first.seen_as != second.seen_as, "both are {}", first.seen_as);
    first.exchange(100_000)?;
    second.exchange(100_000)?;
    lab.up(hook)?;
    lab.host.nft("flush ruleset\n")?;
    lab.host.nft(NFT_DROPS)?;
    first.exchange(1_000_000)?;
    second.exchange(1_000_000)?;
    first.close()?;
    client::converse(lab.guest(1)?, SERVER_ECHO)?;
    client::converse(lab.guest(2)?, SERVER_ECHO)?;
    second.exchange(1000)?;
    lab.assert_invariants()
}

/// The server speaks first after `up`: 1. a conversation; 2. `up`, drops; 3. the first packet comes from outside.
/// The echo cannot speak unasked, so the guest's stack holds its bytes back: nothing but an idle while differs.
fn a_silent_conversation_survives_up(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.nft(NFT_MASQUERADE)?;
    let mut conversation = Conversation::open(lab.guest(1)?, SERVER_ECHO)?;
    lab.up(hook)?;
    lab.host.nft(NFT_DROPS)?;
    let flows = format!("{:?}", lab.rows(&["flows"])?);
    let port = conversation.seen_as.port().to_string();
    ensure!(flows.contains(&port), "the conversation of external port {port} was not taken over: {flows}");
    std::thread::sleep(std::time::Duration::from_secs(1));
    conversation.exchange(10_000)?;
    conversation.close()?;
    lab.assert_invariants()
}

/// One UDP socket, the same caller before and after.
fn a_guest_keeps_its_external_port_across_up(hook: Hook) -> Result<()> {
    let mut lab = Lab::with(Setup { ip_forward: true, ..Setup::default() })?;
    lab.host.nft(NFT_MASQUERADE)?;
    // The second guest's port is the one that masquerade had to change.
    let askers = [Asker::new(lab.guest(1)?, 27_000)?, Asker::new(lab.guest(2)?, 27_000)?];
    let mut before = Vec::new();
    for asker in &askers {
        before.push(asker.ask(SERVER_ECHO)?);
    }
    ensure!(before.first() != before.last(), "both are {before:?}");
    lab.up(hook)?;
    lab.host.nft(NFT_DROPS)?;
    for (asker, before) in askers.iter().zip(&before) {
        let after = asker.ask(SERVER_ECHO)?;
        ensure!(after == *before, "{before} has become {after}");
    }
    lab.assert_invariants()
}
