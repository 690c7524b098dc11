//! Docker: its daemon sets FORWARD to DROP where nothing was forwarded before it started.

use std::time::Duration;

use anyhow::Result;

use crate::{
    hosts::{
        checks::{PAGE, PUBLISHED},
        stage::Stage,
    },
    lab::wait_until,
};

/// Where a bundle of Docker's has programs of its own.
const BUNDLE: &str = "/opt/docker/bin";

/// Starts the daemon. With it comes `br_netfilter`: it loads that module.
///
/// # Errors
///
/// When it does not start.
pub fn start(stage: &mut Stage) -> Result<()> {
    start_with(stage, &[])
}

/// Starts the daemon with an older kind of iptables than the rest of the host has, as Docker's own bundles bring along.
///
/// # Errors
///
/// When it does not start.
pub fn start_on_legacy_iptables(stage: &mut Stage) -> Result<()> {
    stage.run(&["mkdir", "-p", BUNDLE])?;
    for name in ["iptables", "ip6tables"] {
        for program in ["", "-save", "-restore"].map(|what| format!("{BUNDLE}/{name}{what}")) {
            stage.run(&["ln", "-s", "/usr/sbin/xtables-legacy-multi", &program])?;
        }
    }
    start_with(stage, &["env", &format!("PATH={BUNDLE}:/usr/sbin:/usr/bin")])
}

fn start_with(stage: &mut Stage, environment: &[&str]) -> Result<()> {
    stage.lab.set_br_netfilter(true)?;
    let command = ["dockerd", "-H", "unix:///run/docker.sock", "--storage-driver", "vfs"];
    stage.daemon("dockerd", &[environment, &command].concat(), &["docker", "version"])
}

/// Waits until Docker has put its rules back, which it does when firewalld says that it has reloaded.
///
/// # Errors
///
/// When it does not.
pub fn wait_for_rules(stage: &Stage) -> Result<()> {
    let port = format!("--dport {PUBLISHED} ");
    let are_back = || {
        let nat = stage.run(&["iptables", "-t", "nat", "-S"])?;
        let filter = stage.run(&["iptables", "-S"])?;
        let forwards = filter.contains("-A FORWARD -i docker0 ! -o docker0 -j ACCEPT");
        Ok(nat.contains(&port)
            && nat.contains("-j MASQUERADE")
            && forwards
            && filter.contains("-A DOCKER -d "))
    };
    wait_until("Docker's rules are back", Duration::from_secs(20), are_back)
}

/// Runs a container that serves a page on a published port. Its image is made here: no registry is asked.
///
/// # Errors
///
/// When Docker refuses.
pub fn publish(stage: &mut Stage) -> Result<()> {
    stage.write("/tmp/image/www/index.html", PAGE)?;
    stage.run(&["mkdir", "-p", "/tmp/image/bin"])?;
    stage.run(&["cp", "/bin/busybox", "/tmp/image/bin/"])?;
    stage.run(&["tar", "-C", "/tmp/image", "-cf", "/tmp/image.tar", "."])?;
    stage.run(&["docker", "import", "/tmp/image.tar", "local/web"])?;
    let port = format!("{PUBLISHED}:80");
    let run = ["docker", "run", "-d", "--name", "web", "-p", &port, "local/web"];
    let serve = ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"];
    stage.run(&[&run[..], &serve].concat())?;
    stage.has_container = true;
    Ok(())
}
