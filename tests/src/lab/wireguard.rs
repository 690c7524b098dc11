//! `WireGuard` in user space between the host and the router, over the lab's own uplink.

use std::{env, fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{
    Lab,
    namespace::{Namespace, Process},
    wait_until,
};

/// The folder that `./dev setup` fills.
const VARIABLE: &str = "VMNAT_WIREGUARD_DIR";

/// The host's end; the router's is `wg1`.
pub const DEVICE: &str = "wg0";

/// A tunnel that ends with this value.
#[derive(Debug)]
pub struct WireGuard {
    _ends: [Process; 2],
}

impl WireGuard {
    /// Makes a tunnel that carries everything, without addresses; both ends are down.
    ///
    /// # Errors
    ///
    /// When the programs are not there; the message says how to get them.
    pub fn between_host_and_router(lab: &Lab) -> Result<Self> {
        let root = env::var_os(VARIABLE).map(PathBuf::from);
        let root = root.with_context(|| {
            format!("no WireGuard: {VARIABLE} is unset; `./dev test netns` fetches it and sets it")
        })?;
        let program = |name: &str| root.join("usr/bin").join(name).display().to_string();
        let (wireguard, wg) = (program("wireguard-go"), program("wg"));
        lab.lay_under()?;
        let start = |namespace: &Namespace, device: &str| {
            namespace.start(&["env", "WG_PROCESS_FOREGROUND=1", &wireguard, "-f", device])
        };
        let mut ends = [start(&lab.host, DEVICE)?, start(&lab.router, "wg1")?];
        for (namespace, device) in [(&lab.host, DEVICE), (&lab.router, "wg1")] {
            wait_until("WireGuard answers", Duration::from_secs(5), || {
                ensure!(ends.iter_mut().all(Process::is_running), "WireGuard has ended");
                Ok(namespace.exec(&[&wg, "show", device]).is_ok())
            })?;
        }
        let key = |name: &str| -> Result<(String, String)> {
            let private = lab.host.exec(&[&wg, "genkey"])?;
            let file = format!("/run/{name}.key");
            fs::write(&file, &private)?;
            Ok((file, lab.host.exec_with(&[&wg, "pubkey"], &private)?.trim().to_owned()))
        };
        let ((host_key, host), (router_key, router)) = (key("host")?, key("router")?);
        let everything = ["allowed-ips", "0.0.0.0/0"];
        let listens = [&wg, "set", "wg1", "listen-port", "51820", "private-key", &router_key, "peer", &host];
        lab.router.exec(&[&listens[..], &everything].concat())?;
        let calls = [&wg, "set", DEVICE, "private-key", &host_key, "peer", &router];
        lab.host.exec(&[&calls[..], &["endpoint", "192.0.2.1:51820"], &everything].concat())?;
        Ok(Self { _ends: ends })
    }
}
