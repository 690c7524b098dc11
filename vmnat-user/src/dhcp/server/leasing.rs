//! What a client that is due gets: an offer, a lease, a refusal.

use std::net::Ipv4Addr;

use dhcproto::v4::MessageType;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    super::{
        book::Entry,
        choice::{Choice, Verdict},
        question::Question,
        reply,
    },
    OFFER, Offer, PORT_LEASES, Server, TRIES, Waiting,
};
use crate::forwards::now;

impl Server {
    pub(super) fn offer(&mut self, mut waiting: Waiting, now: Instant) {
        let Some(Choice { address, is_fresh }) = waiting.choice else {
            warn!("no address is left for {} on {}", waiting.question.client.mac, self.network.bridge);
            return;
        };
        if is_fresh && self.barred.contains_key(&address) && waiting.tries < TRIES {
            let probe = self.look_for_address(&mut waiting);
            waiting.due = now.checked_add(probe).unwrap_or(now);
            self.waiting.push(waiting);
            return;
        }
        // The bridge has learned it by now.
        waiting.port = self.ports.of(waiting.question.client.mac);
        let client = &waiting.question.client;
        if !self.is_within_port(&waiting, address) {
            return;
        }
        let until = now.checked_add(OFFER).unwrap_or(now);
        self.offered.insert(address, Offer { to: client.clone(), until, port: waiting.port });
        debug!("offered {address} to {} on {}", client.mac, self.network.bridge);
        self.grant(&waiting.question, MessageType::Offer, address);
    }

    /// Whether the client's port may have one more address than it has. What the bridge does not know the port of may be behind
    /// any.
    fn is_within_port(&self, waiting: &Waiting, address: Ipv4Addr) -> bool {
        let book = self.shared.book();
        let (mac, port) = (waiting.question.client.mac, waiting.port);
        let has = book.at(address).is_some_and(|entry| entry.client.mac == mac && entry.expires > now());
        let offers = self.offered.iter().filter(|(other, offer)| {
            (offer.port == port || offer.port == 0 || port == 0)
                && **other != address
                && book.at(**other).is_none()
        });
        let leases = if port == 0 { 0 } else { book.behind(port, now()) };
        let is_within = has || leases.saturating_add(offers.count()) < PORT_LEASES;
        if !is_within {
            debug!("{mac} gets no address: its port on {} has {PORT_LEASES}", self.network.bridge);
        }
        is_within
    }

    pub(super) fn decide(&mut self, waiting: &Waiting) {
        let question = &waiting.question;
        match self.around(|around| around.judge(question)) {
            Verdict::Granted(address) if self.is_within_port(waiting, address) => {
                self.lease(waiting, address);
            }
            Verdict::Refused => {
                info!(
                    "{} on {} asked for an address that is not its own",
                    question.client.mac, self.network.bridge
                );
                self.send(&reply::refuse(&self.network, question));
            }
            Verdict::Granted(_) | Verdict::Elsewhere(_) => {}
        }
    }

    /// Writes the lease down, and then tells the client.
    fn lease(&mut self, waiting: &Waiting, address: Ipv4Addr) {
        let question = &waiting.question;
        let name = self.around(|around| around.name(question, address));
        let client = question.client.clone();
        let expires = now().saturating_add(self.network.lease(address).into());
        let (mac, shown) = (client.mac, name.clone().unwrap_or_default());
        self.shared.book().note(address, Entry { client, name, expires, port: waiting.port });
        self.offered.remove(&address);
        if self.save() {
            info!("{mac} on {} has {address} {shown}", self.network.bridge);
            self.grant(question, MessageType::Ack, address);
        }
    }

    pub(super) fn inform(&self, question: &Question) {
        if self.network.may_be_given(question.has) {
            self.send(&reply::grant(&self.network, question, MessageType::Ack, question.has, None, None));
        }
    }

    fn grant(&self, question: &Question, kind: MessageType, address: Ipv4Addr) {
        let name = self.around(|around| around.name(question, address));
        let lease = Some(self.network.lease(address));
        self.send(&reply::grant(&self.network, question, kind, address, lease, name.as_deref()));
    }
}
