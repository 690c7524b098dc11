//! Asking for names, over UDP and over TCP (RFC 1035 section 4).

use std::{
    io::{Read as _, Write as _},
    net::UdpSocket,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{Namespace, connect, patiently};

/// Over what a question goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A connection.
    Tcp,
}

/// Asks a resolver for the address of a name.
///
/// # Errors
///
/// When no answer comes within `patience`, or it has no address.
pub fn resolve(
    namespace: &Namespace,
    over: Transport,
    resolver: &str,
    name: &str,
    patience: Duration,
) -> Result<[u8; 4]> {
    let question = question(name);
    let asking = || match over {
        Transport::Udp => ask_udp(namespace, resolver, &question, patience),
        Transport::Tcp => ask_tcp(namespace, resolver, &question, patience),
    };
    let answer = asking()
        .with_context(|| format!("{} asking {resolver} for {name} over {over:?}", namespace.name()))?;
    ensure!(answer.get(..2) == question.get(..2), "the answer is to another question");
    let code = answer.get(3).map_or(0, |byte| byte & 15);
    ensure!(code == 0, "the answer is an error, code {code}");
    ensure!(answer.get(6..8).is_some_and(|count| count != [0, 0]), "an answer without a record");
    // The address is the end of the only record, where no option follows.
    let end = answer.len().checked_sub(4).context("an answer without a record")?;
    answer.get(end..).and_then(|address| address.try_into().ok()).context("an answer without an address")
}

/// A recursive question for an A record.
fn question(name: &str) -> Vec<u8> {
    let mut question = vec![0x5a, 0x17, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap_or(0));
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    question
}

fn ask_udp(namespace: &Namespace, resolver: &str, question: &[u8], patience: Duration) -> Result<Vec<u8>> {
    let socket = namespace.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    namespace.run(|| socket.connect(resolver))?;
    socket.send(question)?;
    socket.set_read_timeout(Some(patiently(patience)))?;
    let mut answer = vec![0; 1 << 12];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn ask_tcp(namespace: &Namespace, resolver: &str, question: &[u8], patience: Duration) -> Result<Vec<u8>> {
    let mut stream = connect(namespace, None, resolver, patience)?;
    stream.set_read_timeout(Some(patiently(patience)))?;
    let length = u16::try_from(question.len())?.to_be_bytes();
    stream.write_all(&[&length[..], question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}
