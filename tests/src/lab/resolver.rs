//! A question to a name server, as a guest's resolver asks it.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{namespace::Namespace, patience::patiently};

/// How long a resolver waits before it asks again.
const AGAIN: Duration = Duration::from_millis(1500);

/// Asks a server for the address of a name over UDP (RFC 1035 section 4), again where no answer comes.
///
/// # Errors
///
/// When none has come within `patience`, or it holds no address.
pub fn resolve(namespace: &Namespace, server: &str, name: &str, patience: Duration) -> Result<Ipv4Addr> {
    let ask = || -> Result<Ipv4Addr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((server, 53))?;
        socket.set_read_timeout(Some(patiently(AGAIN)))?;
        let patience = patiently(patience);
        let deadline = Instant::now() + patience;
        let mut answer = [0; 1500];
        let length = loop {
            socket.send(&question(name))?;
            match socket.recv(&mut answer) {
                Ok(length) => break length,
                Err(error) => ensure!(Instant::now() < deadline, "no answer within {patience:?}: {error}"),
            }
        };
        address_in(answer.get(..length).unwrap_or_default())
    };
    namespace.run(ask).with_context(|| format!("{} asking {server} for {name}", namespace.name()))
}

/// A query for an A record, recursion desired.
fn question(name: &str) -> Vec<u8> {
    let mut query = vec![0x56, 0x4e, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or(0));
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// The address of an answer with one record, which its last bytes are.
fn address_in(answer: &[u8]) -> Result<Ipv4Addr> {
    ensure!(answer.get(6..8) == Some(&[0, 1]), "an answer without exactly one record: {answer:02x?}");
    // Servers may add records after the answer's (an EDNS one), so it is looked for by its type, class and length.
    let at =
        answer.windows(2).rposition(|bytes| bytes == [0xc0, 12]).context("an answer without a record")?;
    ensure!(answer.get(at + 10..at + 12) == Some(&[0, 4]), "a record of another size: {answer:02x?}");
    let octets = answer.get(at + 12..at + 16).context("an answer that ends early")?;
    Ok(Ipv4Addr::from(<[u8; 4]>::try_from(octets)?))
}
