//! What becomes of a packet that does not exist: its way through the rules of a hook, rule by rule, as the kernel would
//! take it. What cannot be known (a rule about a mark that another rule may have set, a condition that is not understood)
//! is followed both ways, and the answer is "cannot tell" where the two differ.

use super::{Chain, Family, Place, Ruleset, Source, Verdict, run};

/// Jumps that are followed; the kernel allows 16 (`NFT_JUMP_STACK_SIZE`).
const DEPTH: u8 = 16;

/// Rules that are looked at before this gives up: chains that call each other often can make any number.
const BUDGET: u32 = 200_000;

/// Three answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It holds.
    Yes,
    /// It does not.
    No,
    /// This cannot tell.
    Maybe,
}

impl Known {
    /// What is certain.
    #[must_use]
    pub const fn of(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }

    /// The contrary, where `is_not`.
    #[must_use]
    pub const fn turned(self, is_not: bool) -> Self {
        match (self, is_not) {
            (Self::Yes, true) => Self::No,
            (Self::No, true) => Self::Yes,
            (known, _) => known,
        }
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Maybe,
        }
    }

    /// One of both.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::No, Self::No) => Self::No,
            _ => Self::Maybe,
        }
    }
}

/// The state of a packet's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// It opens one.
    Opens,
    /// It answers.
    Answers,
}

impl Sender {
    /// As bits of `nf_tables` (`NF_CT_STATE_BIT`) and of xtables (`XT_CONNTRACK_STATE_BIT`), which agree.
    pub(super) const fn xtables(self) -> u32 {
        match self {
            Self::Opens => 8,
            Self::Answers => 2,
        }
    }
}

/// Where rules hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// To the host itself.
    Input = 1,
    /// Through the host.
    Forward = 2,
    /// From the host itself.
    Output = 3,
    /// After routing.
    Postrouting = 4,
}

/// The packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes in.
    pub input: Option<String>,
    /// Where it goes out.
    pub output: Option<String>,
    /// Indices of the two.
    pub indices: (u32, u32),
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Protocol.
    pub protocol: u8,
    /// Ports, where they are known.
    pub ports: (Option<u16>, Option<u16>),
    /// ICMP type and code.
    pub icmp: Option<(u8, u8)>,
    /// Flags of TCP.
    pub tcp_flags: u8,
    /// State of its connection.
    pub state: Sender,
    /// The mark; none once a rule may have changed it.
    pub mark: Option<u32>,
    /// `RTN_*` of the source.
    pub source_type: u32,
    /// `RTN_*` of the destination.
    pub destination_type: u32,
    /// A frame that a bridge shows to IP's hooks.
    pub is_bridged: bool,
    /// The family whose hook it meets.
    pub family: Family,
}

/// The rule, or the policy, that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The base chain.
    pub base: Place,
    /// The chain that decided.
    pub chain: Place,
    /// The rule's place in it; none for the policy.
    pub rule: Option<usize>,
    /// The sender is told.
    pub rejects: bool,
}

/// What becomes of a packet at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Every base chain lets it pass; what changes its addresses, if anything does.
    Accepts(Option<String>),
    /// It ends here.
    Drops(Decision),
    /// This cannot tell; the rule that may end it.
    CannotTell(Option<Decision>),
}

/// What one base chain does to a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// The chain.
    pub base: Place,
    /// What becomes of the packet there.
    pub fate: Fate,
    /// The rule that accepts it there.
    pub accepted_by: Option<Decision>,
}

/// Where one way through a base chain ends.
struct Ending {
    outcome: Outcome,
    decision: Decision,
    is_certain: bool,
}

#[derive(Clone, PartialEq, Eq)]
enum Outcome {
    Accept,
    Drop,
    Translate(String),
    Unknown,
}

/// A packet on its way through the rules of one hook.
#[derive(Debug)]
pub struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: Packet,
    budget: u32,
}

/// Whether a packet may come out of a chain on the other side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exit {
    Continues,
    Ends,
}

impl<'a> Walk<'a> {
    /// A packet before the rules.
    #[must_use]
    pub const fn new(ruleset: &'a Ruleset, packet: Packet) -> Self {
        Self { ruleset, packet, budget: BUDGET }
    }

    /// Takes the packet through every base chain of a hook, in the kernel's order, and says what each does: it must pass
    /// all of them. Behind one that drops, the others are asked as if it did not.
    pub fn meet_each(&mut self, hook: Hook) -> Vec<Station> {
        let mut bases: Vec<&Chain> =
            self.ruleset.chains.iter().filter(|chain| self.is_met(chain, hook)).collect();
        bases.sort_by_key(|chain| chain.base.as_ref().map_or(0, |base| base.priority));
        bases.into_iter().map(|base| self.pass(base)).collect()
    }

    /// The same in one answer: the first base chain that drops it, or the first that may.
    pub fn meet(&mut self, hook: Hook) -> Fate {
        let mut translation = None;
        let mut doubt = None;
        for station in self.meet_each(hook) {
            match station.fate {
                Fate::Accepts(found) => translation = translation.or(found),
                Fate::Drops(_) => return station.fate,
                Fate::CannotTell(_) => doubt = doubt.or(Some(station.fate)),
            }
        }
        doubt.unwrap_or(Fate::Accepts(translation))
    }

    fn pass(&mut self, base: &Chain) -> Station {
        let mut endings = Vec::new();
        if self.follow(base, &base.place, DEPTH, true, &mut endings) == Exit::Continues {
            let drops = base.base.as_ref().is_some_and(|base| base.drops);
            let outcome = if drops { Outcome::Drop } else { Outcome::Accept };
            let decision = Decision::of(base, base, None, false);
            endings.push(Ending { outcome, decision, is_certain: true });
        }
        let accepted = endings.iter().find(|ending| ending.outcome == Outcome::Accept && ending.is_certain);
        let accepted_by =
            accepted.map(|ending| ending.decision.clone()).filter(|decision| decision.rule.is_some());
        let fate = judge(endings);
        Station { base: base.place.clone(), fate, accepted_by }
    }

    fn is_met(&self, chain: &Chain, hook: Hook) -> bool {
        let Some(base) = &chain.base else { return false };
        let family = chain.place.family;
        let is_of_ip =
            self.packet.family == Family::IPV4 && (family == Family::IPV4 || family == Family::INET);
        // Bound to a device: of its own ingress, which comes before all of these.
        let is_ingress = !base.devices.is_empty();
        base.hook == hook as u32
            && !is_ingress
            && (is_of_ip || family == self.packet.family)
            && !(base.is_nat && self.packet.state == Sender::Answers)
    }

    /// The packet's way through the rules of a device's own ingress.
    pub fn enter(&mut self, device: &str) -> Fate {
        let is_here = |chain: &&Chain| {
            let base = chain.base.as_ref();
            base.is_some_and(|base| base.hook == 0 && base.devices.iter().any(|name| name == device))
        };
        let bases: Vec<&Chain> = self.ruleset.chains.iter().filter(is_here).collect();
        for base in bases {
            let Station { fate, .. } = self.pass(base);
            if !matches!(fate, Fate::Accepts(_)) {
                return fate;
            }
        }
        Fate::Accepts(None)
    }

    fn follow(
        &mut self,
        base: &Chain,
        place: &Place,
        depth: u8,
        is_certain: bool,
        endings: &mut Vec<Ending>,
    ) -> Exit {
        let ruleset = self.ruleset;
        let Some(chain) = ruleset.chain(place) else { return Exit::Continues };
        for (number, rule) in chain.rules.iter().enumerate() {
            let mut end = |outcome, is_certain, rejects| {
                let decision = Decision::of(base, chain, Some(number), rejects);
                endings.push(Ending { outcome, decision, is_certain });
            };
            let Some(budget) = self.budget.checked_sub(1) else {
                end(Outcome::Unknown, false, false);
                return Exit::Ends;
            };
            self.budget = budget;
            let (holds, verdict) = run::rule(ruleset, place, rule, &mut self.packet);
            if holds == Known::No {
                continue;
            }
            let is_sure = holds == Known::Yes;
            let is_certain = is_certain && is_sure;
            let outcome = match verdict {
                run::End::Next | run::End::Verdict(Verdict::Continue) => continue,
                run::End::Verdict(verdict @ (Verdict::Jump(_) | Verdict::Goto(_))) => {
                    let (name, is_goto) = match verdict {
                        Verdict::Goto(name) => (name, true),
                        Verdict::Jump(name) => (name, false),
                        _ => continue,
                    };
                    let exit = match depth.checked_sub(1) {
                        Some(depth) => self.follow(base, &place.beside(&name), depth, is_certain, endings),
                        None => Exit::Continues,
                    };
                    match (exit, is_sure, is_goto) {
                        (Exit::Ends, true, _) => return Exit::Ends,
                        (Exit::Continues, true, true) => return Exit::Continues,
                        _ => continue,
                    }
                }
                run::End::Verdict(Verdict::Return) => {
                    // One that only may go back goes on as well: both are looked at by going on.
                    if is_sure {
                        return Exit::Continues;
                    }
                    continue;
                }
                run::End::Verdict(Verdict::Drop) => (Outcome::Drop, false),
                run::End::Reject => (Outcome::Drop, true),
                run::End::Verdict(Verdict::Accept) => (Outcome::Accept, false),
                run::End::Verdict(Verdict::Queue) | run::End::Unknown => (Outcome::Unknown, false),
                run::End::Translate(text) => (Outcome::Translate(text), false),
            };
            end(outcome.0, is_certain, outcome.1);
            if is_sure {
                return Exit::Ends;
            }
        }
        Exit::Continues
    }
}

impl Decision {
    fn of(base: &Chain, chain: &Chain, rule: Option<usize>, rejects: bool) -> Self {
        Self { base: base.place.clone(), chain: chain.place.clone(), rule, rejects }
    }

    /// True where iptables-legacy decided.
    #[must_use]
    pub fn is_legacy(&self) -> bool {
        self.chain.source == Source::Legacy
    }
}

/// What all ways through a base chain come to.
fn judge(endings: Vec<Ending>) -> Fate {
    let is_drop = |ending: &Ending| ending.outcome == Outcome::Drop;
    let is_pass = |ending: &Ending| matches!(ending.outcome, Outcome::Accept | Outcome::Translate(_));
    if endings.iter().all(is_pass) {
        let translation = endings.into_iter().find_map(|ending| match ending.outcome {
            Outcome::Translate(text) => Some(text),
            _ => None,
        });
        return Fate::Accepts(translation);
    }
    if endings.iter().all(is_drop) {
        // The last one is certain; a rule before it that may have dropped it already is no better witness.
        let witness = endings.into_iter().max_by_key(|ending| ending.is_certain);
        return witness.map_or(Fate::Accepts(None), |ending| Fate::Drops(ending.decision));
    }
    let suspect = endings.into_iter().find(|ending| !is_pass(ending));
    Fate::CannotTell(suspect.map(|ending| ending.decision))
}
