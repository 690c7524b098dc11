//! Admission: whether a port forward may be, and if not, who is in its way and what to do.

use std::{collections::HashMap, net::Ipv4Addr};

use anyhow::Result;
use vmnat_common::Protocol;

use super::{Claimed, Claims, External, PortForward, Target, Wish, patience::Patience};
use crate::{
    docker::{self, Published},
    error::Error,
    facts::Facts,
    host_sockets::{self, Sockets},
    leases::Directory,
    plan::{self, PlannedNetwork},
    state::State,
};

/// A port forward that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub wish: Wish,
    /// Also where a socket of the host, or Docker, has the port.
    pub steal: bool,
    /// The line of a file that asks for it, for messages.
    pub origin: Option<String>,
}

/// What comes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may be added.
    New,
    /// It is there, under this number.
    Unchanged(u32),
    /// It is there, under this number, and ends at another time.
    Renewed(u32),
}

/// A request that may be granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// What comes of it.
    pub verdict: Verdict,
    /// What the operator should know, one sentence each.
    pub warnings: Vec<String>,
}

/// What is there, to compare requests with; each one that is granted joins it.
#[derive(Debug)]
pub struct Admission<'a> {
    external: External<'a>,
    networks: Vec<PlannedNetwork>,
    /// Names of the uplinks that the instance has, whether they exist at the moment or not.
    uplinks: Vec<String>,
    directory: Directory,
    claims: Claims<usize>,
    /// Who owns ports: a clause, and what to do about it.
    owners: Vec<(String, String)>,
    present: HashMap<(super::ForwardSpec, Option<String>), PortForward>,
    sockets: Sockets,
    published: Vec<Published>,
    patience: Patience,
}

impl<'a> Admission<'a> {
    /// Takes one picture of what is there.
    ///
    /// # Errors
    /// When the host's sockets cannot be listed.
    pub fn open(state: &State, facts: &'a Facts, directory: Directory) -> Result<Self> {
        let links = plan::uplinks(state, facts);
        let uplinks = if state.uplinks.is_empty() {
            links.iter().map(|link| link.name.clone()).collect()
        } else {
            state.uplinks.clone()
        };
        let mut admission = Self {
            external: External::new(facts, &links),
            networks: plan::managed(state, facts),
            uplinks,
            directory,
            claims: Claims::default(),
            owners: Vec::new(),
            present: HashMap::new(),
            sockets: host_sockets::sockets()?,
            published: docker::published(),
            patience: Patience::default(),
        };
        for forward in &state.forwards {
            admission.join(forward);
        }
        Ok(admission)
    }

    /// Lets what may still come be waited for: leases, and interfaces of the host. Files are read at boot, in any order
    /// with what makes bridges and starts guests.
    #[must_use]
    pub fn patient(mut self, state: &State, facts: &Facts) -> Self {
        self.patience = Patience::of(state, facts);
        self
    }

    fn join(&mut self, forward: &PortForward) {
        let PortForward { id, wish } = forward;
        let (owner, hint) = match &wish.file {
            Some(file) => (format!(" of {file}"), ": change it there, or take another port".to_owned()),
            None => (String::new(), format!(": remove it with `vmnat dnat rm {id}`, or take another port")),
        };
        self.own(wish, format!("port forward {id}{owner} ({})", wish.spec), hint);
        self.present.insert((wish.spec.clone(), wish.uplink.clone()), forward.clone());
    }

    fn own(&mut self, wish: &Wish, owner: String, hint: String) {
        self.claims.claim(wish, &self.external, self.owners.len());
        self.owners.push((owner, hint));
    }

    /// Grants a request, or says why not.
    ///
    /// # Errors
    /// [`Error::Taken`], [`Error::NotAGuest`], [`Error::NoLease`], [`Error::NoUplink`], [`Error::Unfit`].
    pub fn admit(&mut self, request: &Request) -> Result<Admitted, Error> {
        let Request { wish, steal, origin } = request;
        if let Some(there) = self.present.get(&(wish.spec.clone(), wish.uplink.clone()))
            && there.wish.is_like(wish)
        {
            let is_same = there.wish.expires == wish.expires;
            let verdict = if is_same { Verdict::Unchanged(there.id) } else { Verdict::Renewed(there.id) };
            return Ok(Admitted { verdict, warnings: Vec::new() });
        }
        let mut warnings = self.check_host(wish)?;
        for result in [self.check_uplink(wish), self.check_target(wish)] {
            warnings.extend(self.patience.bear(result)?);
        }
        if let Some(claimed) = self.claims.find(wish, &self.external) {
            return Err(self.owned_by(claimed));
        }
        if !steal {
            self.check_host_sockets(wish)?;
        }
        let owner = match origin {
            Some(origin) => format!("{origin} ({})", wish.spec),
            None => format!("{} of the same command", wish.spec),
        };
        self.own(wish, owner, ": one of the two must go".to_owned());
        Ok(Admitted { verdict: Verdict::New, warnings })
    }

    fn owned_by(&self, claimed: Claimed<usize>) -> Error {
        let (holder, hint) = self.owners.get(claimed.owner).cloned().unwrap_or_default();
        Error::Taken { what: port(claimed.protocol, claimed.port), holder, hint }
    }

    fn check_uplink(&self, wish: &Wish) -> Result<(), Error> {
        let Some(name) = &wish.uplink else { return Ok(()) };
        if wish.spec.host.is_some() {
            return Err(Error::Usage(format!(
                "{} names an address and --uplink {name} an interface: leave out one of them",
                wish.spec
            )));
        }
        if self.uplinks.contains(name) {
            return Ok(());
        }
        let hint = match &self.uplinks[..] {
            [] => "it has none at the moment".to_owned(),
            [only] => format!("its only uplink is {only}"),
            uplinks => format!("its uplinks are {}", uplinks.join(", ")),
        };
        Err(Error::NoUplink { name: name.clone(), hint })
    }

    fn check_host(&self, wish: &Wish) -> Result<Vec<String>, Error> {
        let Some(host) = wish.spec.host else { return Ok(Vec::new()) };
        let network = self.networks.iter().find(|network| network.subnet.contains(&host));
        match network {
            Some(network) if !self.external.is_own(host) => Err(Error::Unfit {
                what: format!("{host} cannot be the external address of {}", wish.spec),
                why: format!("it belongs to the guests of {}", network.subnet),
                hint: "write an address of the host, or none for every uplink's".to_owned(),
            }),
            None if !self.external.is_own(host) => Ok(vec![format!(
                "{host} is no address of this host: {} waits until packets for it come in by an uplink",
                wish.spec
            )]),
            Some(_) | None => Ok(Vec::new()),
        }
    }

    fn check_target(&self, wish: &Wish) -> Result<(), Error> {
        let target = &wish.spec.target;
        let Some(guest) = self.directory.find(target) else { return Err(self.no_lease(target)) };
        let network = self.networks.iter().find(|network| network.subnet.contains(&guest));
        let Some(network) = network else { return Err(Error::NotAGuest { guest }) };
        let subnet = network.subnet;
        let why = if self.external.is_own(guest) {
            format!("it is the host's own address, the gateway of {subnet}")
        } else if subnet.prefix_len() < 31 && guest == subnet.network() {
            format!("it is the address of the network {subnet} itself")
        } else if subnet.prefix_len() < 31 && guest == subnet.broadcast() {
            format!("it is the broadcast address of {subnet}")
        } else {
            return Ok(());
        };
        let what = format!("{guest} cannot be the target of {}", wish.spec);
        Err(Error::Unfit { what, why, hint: "write a guest's address; `vmnat leases` shows them".to_owned() })
    }

    fn no_lease(&self, target: &Target) -> Error {
        let known = self.directory.names();
        let near = match target {
            Target::Name(name) => {
                let near = known.iter().map(|known| (strsim::damerau_levenshtein(name, known), known));
                // A slip or two, as many as the name is long.
                near.filter(|(slips, _)| slips.saturating_mul(3) <= name.len()).min()
            }
            Target::Address(_) | Target::Mac(_) => None,
        };
        let hint = match (near, &known[..]) {
            (Some((_, name)), _) => format!("did you mean \"{name}\"?"),
            (None, []) => {
                "no lease has a name: write an address; `vmnat leases` shows those that are known".to_owned()
            }
            (None, names) if names.len() <= 10 => format!("the names are {}", names.join(", ")),
            (None, _) => "`vmnat leases` shows those that are known".to_owned(),
        };
        Error::NoLease { target: target.to_string(), hint }
    }

    fn check_host_sockets(&self, wish: &Wish) -> Result<(), Error> {
        let addresses = self.external.addresses(wish);
        for protocol in wish.spec.protocols.each() {
            if let Some(published) = docker::find(&self.published, *protocol, wish.spec.ports, &addresses) {
                return Err(taken_by_docker(*protocol, published));
            }
            if let Some((number, socket)) = self.sockets.find(*protocol, wish.spec.ports, &addresses) {
                return Err(taken_by_socket(*protocol, number, socket.at, socket.inode));
            }
        }
        Ok(())
    }
}

fn taken_by_docker(protocol: Protocol, published: &Published) -> Error {
    let Published { container, port: number, .. } = published;
    Error::Taken {
        what: port(protocol, *number),
        holder: format!("Docker, which publishes it for the container {container}"),
        hint: format!(
            ": run `docker stop {container}`, take another port, or give this one to the guest with --steal"
        ),
    }
}

fn taken_by_socket(protocol: Protocol, number: u16, at: Ipv4Addr, inode: u64) -> Error {
    let place = if at.is_unspecified() { String::new() } else { format!(" at {at}") };
    let (holder, what_to_do) = match host_sockets::holder(inode) {
        Some(process) if process.name == "docker-proxy" => {
            (format!("Docker, which publishes it ({process}){place}"), "stop the container that publishes it")
        }
        Some(process) => (format!("{process} of the host, which listens{place}"), "end it"),
        None => (format!("a socket of the host{place}"), "end what listens there"),
    };
    let narrower = if at == Ipv4Addr::LOCALHOST { " bind the forward with --uplink," } else { "" };
    let hint =
        format!(": {what_to_do},{narrower} take another port, or give this one to the guest with --steal");
    Error::Taken { what: port(protocol, number), holder, hint }
}

fn port(protocol: Protocol, number: u16) -> String {
    format!("port {number}/{protocol}")
}

#[cfg(test)]
mod tests {
    use vmnat_common::Address;

    use super::*;
    use crate::{
        facts::{AddressFact, LinkFact},
        leases::LeaseFact,
        state::{Bridge, HookMode},
    };

    fn host() -> (State, Facts) {
        let mut state = State::new(HookMode::Tcx);
        state.bridges.push(Bridge::new("virbr0"));
        state.uplinks.push("enp3s0".into());
        let link = |index, name: &str| LinkFact { index, name: name.into(), ..LinkFact::default() };
        let address = |index, octets| AddressFact {
            index,
            address: Address::new(octets),
            prefix: 24,
            secondary: false,
        };
        let facts = Facts {
            links: vec![link(1, "enp3s0"), LinkFact { is_bridge: true, ..link(2, "virbr0") }],
            addresses: vec![address(1, [198, 51, 100, 2]), address(2, [192, 168, 122, 1])],
            ..Facts::default()
        };
        (state, facts)
    }

    fn request(spec: &str) -> Request {
        Request { wish: Wish::plain(spec.parse().unwrap()), steal: true, origin: None }
    }

    fn directory() -> Directory {
        Directory::of(&[LeaseFact::named("web", [192, 168, 122, 10])])
    }

    #[test]
    fn what_cannot_be_is_refused_with_cause_and_remedy() {
        let (state, facts) = host();
        let mut admission = Admission::open(&state, &facts, directory()).unwrap();
        for (spec, words) in [
            ("80:10.0.0.2:80", "no network of this instance holds 10.0.0.2"),
            ("80:192.168.122.1:80", "the gateway of 192.168.122.0/24; write a guest's address"),
            ("80:192.168.122.0:80", "it is the address of the network"),
            ("80:192.168.122.255:80", "it is the broadcast address"),
            ("80:wbe:80", "no lease of \"wbe\" is known: did you mean \"web\"?"),
            ("80:database:80", "the names are web"),
            ("80:[52:54:00:00:00:01]:80", "no lease of \"[52:54:00:00:00:01]\""),
            ("192.168.122.9:80:web:80", "it belongs to the guests of 192.168.122.0/24"),
        ] {
            let error = admission.admit(&request(spec)).unwrap_err().to_string();
            assert!(error.contains(words), "{spec}: {error}");
        }
        let mut bound = request("80:web:80");
        bound.wish.uplink = Some("enp9s0".into());
        let error = admission.admit(&bound).unwrap_err();
        assert!(error.to_string().contains("its only uplink is enp3s0"), "{error}");
        bound.wish = Wish { uplink: Some("enp3s0".into()), ..request("198.51.100.2:80:web:80").wish };
        assert!(matches!(admission.admit(&bound), Err(Error::Usage(_))));
    }

    #[test]
    fn hosts_own_addresses_are_fit_and_foreign_ones_worth_a_warning() {
        let (state, facts) = host();
        let mut admission = Admission::open(&state, &facts, directory()).unwrap();
        for (spec, warnings) in [
            ("127.0.0.1:80:web:80", 0),
            ("198.51.100.2:80:web:80", 0),
            ("192.168.122.1:80:web:80", 0),
            ("192.0.2.200:80:web:80", 1),
        ] {
            let admitted = admission.admit(&request(spec)).unwrap();
            assert_eq!((admitted.verdict, admitted.warnings.len()), (Verdict::New, warnings), "{spec}");
        }
    }

    #[test]
    fn the_owner_of_a_port_is_named_and_the_same_wish_is_no_conflict() {
        let (mut state, facts) = host();
        let wish = Wish { expires: Some(9), ..request("8080-8089:web:80-89").wish };
        state.forwards.push(PortForward { id: 3, wish: wish.clone() });
        let mut admission = Admission::open(&state, &facts, directory()).unwrap();
        let error = admission.admit(&request("8085:192.168.122.11:80")).unwrap_err().to_string();
        assert_eq!(
            error,
            "port 8085/tcp is already taken by port forward 3 (8080-8089:web:80-89/tcp): remove it with `vmnat dnat rm 3`, or take another port"
        );
        let verdict = |admission: &mut Admission<'_>, wish: &Wish| {
            admission
                .admit(&Request { wish: wish.clone(), ..request("1:web:1") })
                .map(|admitted| admitted.verdict)
        };
        assert_eq!(verdict(&mut admission, &wish).unwrap(), Verdict::Unchanged(3));
        let later = Wish { expires: Some(10), ..wish.clone() };
        assert_eq!(verdict(&mut admission, &later).unwrap(), Verdict::Renewed(3));
        let other = Wish { comment: Some("else".into()), ..wish };
        assert!(verdict(&mut admission, &other).is_err());
    }

    #[test]
    fn two_lines_of_a_file_cannot_own_one_port() {
        let (state, facts) = host();
        let mut admission = Admission::open(&state, &facts, directory()).unwrap();
        let line = |number, spec| Request { origin: Some(format!("line {number}")), ..request(spec) };
        admission.admit(&line(1, "8080:web:80")).unwrap();
        let error = admission.admit(&line(2, "8080:web:81")).unwrap_err().to_string();
        assert!(error.contains("port 8080/tcp is already taken by line 1 (8080:web:80/tcp)"), "{error}");
    }

    #[test]
    fn a_socket_of_the_host_is_named_with_its_process() {
        let (state, facts) = host();
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let number = listener.local_addr().unwrap().port();
        let mut admission = Admission::open(&state, &facts, directory()).unwrap();
        let asked = Request { steal: false, ..request(&format!("{number}:web:80")) };
        let error = admission.admit(&asked).unwrap_err().to_string();
        let process = format!("process {}", std::process::id());
        assert!(
            error.contains(&process) && error.contains("at 127.0.0.1") && error.contains("--steal"),
            "{error}"
        );
        assert!(admission.admit(&Request { steal: true, ..asked }).is_ok());
    }
}
