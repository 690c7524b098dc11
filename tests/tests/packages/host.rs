//! A host with a guest and the world in its namespaces, and steady traffic between them.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use vmnat_tests::packages::{Machine, Packages};

/// Datagrams that may go lost while something is done: one comes every 20 ms, so this is an outage of 0.1 s.
const LOST: u64 = 5;

/// Bridge, guest, uplink and world, a resolver in the world, and an echo there and at the guest. Nothing is forwarded. Where the bridge is
/// libvirt's, it is there already.
const LAB: &str = "set -e
ip netns add guest; ip netns add world
if ! [ -e /sys/class/net/virbr0 ]; then
  ip link add virbr0 type bridge; ip addr add 192.168.122.1/24 dev virbr0; ip link set virbr0 up
fi
ip link add vnet1 type veth peer name eth0 netns guest; ip link set vnet1 master virbr0 up
ip link add enp3s0 type veth peer name eth0 netns world
ip addr add 203.0.113.2/24 dev enp3s0; ip link set enp3s0 up; ip route add default via 203.0.113.1
ip -n guest link set lo up; ip -n guest addr add 192.168.122.10/24 dev eth0; ip -n guest link set eth0 up
ip -n guest route add default via 192.168.122.1
ip -n world addr add 203.0.113.1/24 dev eth0; ip -n world link set eth0 up
ip netns exec world dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --address=/lab.test/192.0.2.7 \
  --listen-address=203.0.113.1 --bind-interfaces --user=root --pid-file=/run/resolver.pid
setsid ip netns exec world /stage/steady serve 203.0.113.1:7 >/dev/null 2>&1 &
setsid ip netns exec guest /stage/steady serve 192.168.122.10:7 >/dev/null 2>&1 &
";

/// The machine, and what is staged for it.
pub struct Host {
    pub machine: Machine,
    stage: PathBuf,
}

impl Host {
    /// Boots a distribution, with the packages at hand, and makes the lab.
    pub fn boot(suite: &str) -> Result<Self> {
        let packages = Packages::find()?;
        let stage = env::temp_dir().join(format!("vmnat-stage-{}", std::process::id()));
        fs::create_dir_all(&stage)?;
        fs::copy(&packages.deb, stage.join("vmnat.deb"))?;
        packages.make_later(&stage.join("later.deb"))?;
        fs::copy(steady()?, stage.join("steady"))?;
        fs::write(stage.join("lab.sh"), LAB)?;
        let mut machine = Machine::boot(suite, &stage)?;
        machine.run("bash /stage/lab.sh")?;
        Ok(Self { machine, stage })
    }

    /// Waits until the guest reaches the world, and the world the guest by the port forward.
    pub fn must_be_online(&mut self) -> Result<()> {
        self.machine.wait_for(60, &ask("guest", "203.0.113.1:7", 10)).context("the guest is cut off")?;
        self.machine
            .wait_for(60, &ask("world", "203.0.113.2:7007", 10))
            .context("the port forward leads nowhere")?;
        Ok(())
    }

    /// Has the agent answer the guest, from where the unit lets it: the address that it gives. The resolver in the world is asked
    /// for a name by way of the gateway.
    pub fn must_be_served(&mut self) -> Result<String> {
        let lookup =
            "ip netns exec guest timeout 5 busybox nslookup web.lab.test 192.168.122.1 | grep 192.0.2.7";
        self.machine.wait_for(60, lookup).context("the guest asks for a name in vain")?;
        let ask = "ip netns exec guest timeout 20 busybox udhcpc -i eth0 -f -n -q -t 5 -T 3 -s /bin/true 2>&1 | grep 'lease of'";
        let said = self.machine.wait_for(90, ask).context("the guest asks for an address in vain")?;
        let address = said.split_whitespace().find(|word| word.starts_with("192.168.122."));
        address.map(str::to_owned).with_context(|| format!("no address: {said}"))
    }

    /// Fails when the guest reaches the world.
    pub fn must_be_cut_off(&mut self) -> Result<()> {
        let output = self.machine.try_run(&ask("guest", "203.0.113.1:7", 4))?;
        ensure!(output.code != 0, "the guest reaches the world: {}", output.text);
        Ok(())
    }

    /// Does something while the guest sends datagrams and a stream to the world: nothing may break, and hardly a datagram
    /// go lost.
    pub fn under_traffic(
        &mut self,
        what: &str,
        mut work: impl FnMut(&mut Machine) -> Result<()>,
    ) -> Result<()> {
        let begin = "rm -f /run/end; setsid ip netns exec guest /stage/steady send 203.0.113.1:7 /run/end >/run/sent 2>&1 & \
                    sleep 1; pgrep -x steady | wc -l";
        self.machine.run(begin)?;
        work(&mut self.machine)?;
        let sent = self.machine.run("sleep 1; touch /run/end; for i in $(seq 150); do grep -q blocks /run/sent && break; sleep 0.2; done; cat /run/sent")?;
        let figure = |name: &str| -> Result<u64> {
            let mut words = sent.split_whitespace().skip_while(|word| *word != name).skip(1);
            words
                .next()
                .and_then(|word| word.parse().ok())
                .with_context(|| format!("{what}: no {name} in {sent:?}"))
        };
        let (sent, answered) = (figure("sent")?, figure("answered")?);
        println!(
            "{what}: {sent} datagrams, {} lost, {} in a row, {} ms between two answers, {} blocks of the stream",
            sent.saturating_sub(answered),
            figure("run")?,
            figure("gap_ms")?,
            figure("blocks")?
        );
        ensure!(sent >= 50 && figure("blocks")? >= 20, "{what}: too little traffic to tell");
        ensure!(sent.saturating_sub(answered) <= LOST, "{what}: {answered} of {sent} datagrams came back");
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.stage);
    }
}

/// A command that ends well when the echo at `to` answers within `seconds`.
fn ask(from: &str, to: &str, seconds: u32) -> String {
    let (address, port) = to.split_once(':').unwrap_or_default();
    format!(
        "ip netns exec {from} timeout {seconds} bash -c 'exec 9<>/dev/tcp/{address}/{port} || exit 1; echo ask >&9; read -r answer <&9; \
         [ \"$answer\" = ask ]' 2>&1"
    )
}

fn steady() -> Result<PathBuf> {
    let named = env::var_os("VMNAT_STEADY_BIN").map(PathBuf::from);
    let path = named.unwrap_or_else(|| Path::new(env!("CARGO_BIN_EXE_steady")).to_owned());
    if path.is_file() { Ok(path) } else { bail!("no {}", path.display()) }
}
