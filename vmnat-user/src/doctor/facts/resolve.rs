//! Resolvers are asked one question, each for a second at most and all at once: those of `/etc/resolv.conf`, and the
//! gateways of the guests where something listens.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use super::Facts;

/// How long a resolver may take; the question is sent twice in that time.
const PATIENCE: Duration = Duration::from_millis(1_600);

/// The name that is asked for; it exists everywhere (RFC 2606).
const NAME: [&str; 2] = ["example", "com"];

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An answer, or "no such name".
    Good,
    /// The resolver says that it cannot: the code.
    Refused(u8),
    /// Nothing within the time.
    Silent,
    /// It could not be sent, or came back.
    Failed(String),
}

impl Answer {
    /// True where names are resolved.
    #[must_use]
    pub fn is_good(&self) -> bool {
        *self == Self::Good
    }

    /// In words, after the resolver's name.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Good => "answers".to_owned(),
            Self::Refused(2) => "answers that it failed (SERVFAIL)".to_owned(),
            Self::Refused(5) => "refuses the question (REFUSED)".to_owned(),
            Self::Refused(code) => format!("answers with error {code}"),
            Self::Silent => "does not answer".to_owned(),
            Self::Failed(why) => format!("cannot be reached: {why}"),
        }
    }
}

/// Asks all resolvers.
pub(super) fn ask_all(facts: &mut Facts) {
    let resolvers: Vec<String> = facts.files.resolvers.clone();
    let gateways: Vec<(String, [u8; 4])> = facts
        .subjects
        .iter()
        .filter_map(|subject| Some((subject.bridge.name.clone(), subject.gateway()?)))
        .filter(|(_, gateway)| facts.servers.dns_at((*gateway).into()).is_some())
        .collect();
    // Threads are born in the caller's network namespace.
    thread::scope(|scope| {
        let asked: Vec<_> = resolvers
            .into_iter()
            .map(|server| {
                let address = server.parse::<IpAddr>();
                (server, scope.spawn(move || address.map_or(Answer::Failed("it is no address".into()), ask)))
            })
            .collect();
        let own: Vec<_> = gateways
            .into_iter()
            .map(|(bridge, gateway)| (bridge, scope.spawn(move || ask(IpAddr::from(gateway)))))
            .collect();
        let result = |thread: thread::ScopedJoinHandle<'_, Answer>| thread.join().unwrap_or(Answer::Silent);
        facts.resolvers = asked.into_iter().map(|(server, thread)| (server, result(thread))).collect();
        facts.gateways = own.into_iter().map(|(bridge, thread)| (bridge, result(thread))).collect();
    });
}

/// Asks a resolver for the address of a name.
#[must_use]
pub fn ask(server: IpAddr) -> Answer {
    let any: SocketAddr = if server.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let asked = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((server, 53))?;
        converse(&socket)
    });
    asked.unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Answer::Silent,
        io::ErrorKind::ConnectionRefused => Answer::Failed("the question was refused".into()),
        _ => Answer::Failed(error.to_string()),
    })
}

fn converse(socket: &UdpSocket) -> io::Result<Answer> {
    let query = query(0x766d);
    let half = PATIENCE.checked_div(2).unwrap_or(PATIENCE);
    for _ in 0..2 {
        socket.send(&query)?;
        let since = Instant::now();
        loop {
            let left = half.saturating_sub(since.elapsed());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            let mut buffer = [0; 1500];
            match socket.recv(&mut buffer) {
                Ok(length) => {
                    if let Some(answer) = read(buffer.get(..length).unwrap_or_default(), &query) {
                        return Ok(answer);
                    }
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(Answer::Silent)
}

/// A question of RFC 1035: type A, class IN, recursion desired.
#[must_use]
pub fn query(id: u16) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in NAME {
        query.extend(u8::try_from(label.len()));
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

/// Understands an answer to a query; none where it is not one.
#[must_use]
pub fn read(answer: &[u8], query: &[u8]) -> Option<Answer> {
    let flags = answer.get(2..4)?;
    if answer.get(..2) != query.get(..2) || flags.first()? & 0x80 == 0 {
        return None;
    }
    // No error, or no such name: both come from somebody who knows.
    Some(match flags.last()? & 0x0f {
        0 | 3 => Answer::Good,
        code => Answer::Refused(code),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_from_questions_and_errors() {
        let query = query(7);
        assert_eq!(read(&query, &query), None, "a question");
        let answer = |code: u8| {
            let mut answer = query.clone();
            answer[2] |= 0x80;
            answer[3] |= code;
            answer
        };
        assert_eq!(read(&answer(0), &query), Some(Answer::Good));
        assert_eq!(read(&answer(3), &query), Some(Answer::Good));
        assert_eq!(read(&answer(2), &query), Some(Answer::Refused(2)));
        assert_eq!(read(&answer(0), &super::query(8)), None, "to another question");
        assert_eq!(read(&[], &query), None);
    }
}
