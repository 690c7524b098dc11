//! Flows that come and go by the thousand, over few ports (abuse row A11).

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use vmnat_tests::lab::{
    EXTERNAL, Lab, SERVER_ECHO,
    client::{self, Conversation, PATIENCE},
    namespace::Namespace,
    service::sha256,
    vmnat::Hook,
};

const SPAN: Duration = Duration::from_secs(6);
/// Ports that each guest has for all of its conversations: those of both guests are the same ones.
const PORTS: &str = "24000 24499";

/// A conversation of a few hundred bytes that nobody else sends, ended by a reset, so that its port is free at once.
fn one(stream: TcpStream, number: u32) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, Linger, &linger)?;
    let mut stream = BufReader::new(stream);
    let mut seen_as = String::new();
    stream.read_line(&mut seen_as).context("the server's line")?;
    ensure!(seen_as.starts_with(EXTERNAL), "seen as {seen_as}");
    let content = format!("{number} {}", sha256(&number.to_le_bytes())).repeat(4);
    stream.get_mut().write_all(content.as_bytes())?;
    let mut echoed = vec![0; content.len()];
    stream.read_exact(&mut echoed).context("the echo")?;
    ensure!(sha256(&echoed) == sha256(content.as_bytes()), "conversation {number} got somebody else's bytes");
    Ok(())
}

/// Two guests, four conversations at a time each, over 500 ports that both use, to one server, for six seconds, as many as the
/// machine manages: every byte comes back to the conversation that sent it, and one that lives all along is unharmed.
///
/// Two slow cores make some 3,000 a second; with 1,001 some port is used for a second time.
#[test]
fn recycled_ports_deliver_nothing_to_the_wrong_peer() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.up(Hook::of_the_kernel())?;
    for guest in &lab.guests {
        guest.set_sysctl("net/ipv4/ip_local_port_range", PORTS)?;
    }
    let mut steady = Conversation::open_from(lab.guest(1)?, 30_000, SERVER_ECHO)?;
    let made = AtomicU32::new(0);
    let begun = Instant::now();
    let churn = |guest: &Namespace| -> Result<()> {
        while begun.elapsed() < SPAN {
            let stream = client::connect(guest, None, SERVER_ECHO, PATIENCE)?;
            one(stream, made.fetch_add(1, Ordering::Relaxed))?;
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        let callers: Vec<_> =
            lab.guests.iter().cycle().take(8).map(|guest| scope.spawn(move || churn(guest))).collect();
        steady.exchange(5_000_000)?;
        callers
            .into_iter()
            .try_for_each(|caller| caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?)
    })?;
    let made = made.into_inner();
    eprintln!("{made} conversations in {SPAN:?}");
    ensure!(made > 1000, "only {made} conversations in {SPAN:?}: no port was used twice");
    steady.exchange(100_000)?;
    // A reset that overtakes its data is valid to no tracking.
    lab.assert_sound_but_for_invalid_packets()
}
