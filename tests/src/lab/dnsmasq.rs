//! dnsmasq as libvirt configures it: bound to the bridge as it comes and goes, and not to the loopback.

use std::{env, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    GATEWAY, Lab,
    client::{self, Transport},
    namespace::Process,
    wait_until,
};
use crate::guest::software::Software;

/// The folder that `./dev setup` fills.
const VARIABLE: &str = "VMNAT_DNSMASQ_DIR";

/// The name that it knows itself, and its address.
pub const NAME: (&str, [u8; 4]) = ("host.lab.test", [10, 1, 2, 3]);

/// Where it keeps its leases.
pub const LEASES: &str = "/var/lib/misc/dnsmasq.leases";

/// A running dnsmasq; it ends with this value.
#[derive(Debug)]
pub struct Dnsmasq {
    _process: Process,
}

impl Dnsmasq {
    /// Starts it on the lab's host, for names, and waits until it answers the host itself. `further` are lines of its
    /// configuration.
    ///
    /// # Errors
    ///
    /// When the program is not there; the message says how to get it.
    pub fn start(lab: &Lab, further: &str) -> Result<Self> {
        let root = env::var_os(VARIABLE).map(PathBuf::from);
        let root = root.with_context(|| {
            format!("no dnsmasq: {VARIABLE} is unset; `./dev test netns` fetches it and sets it")
        })?;
        let place = root.display().to_string();
        let software = Software::below(root)
            .with_context(|| format!("no dnsmasq in {place}: `./dev setup` fetches it"))?;
        let (name, address) = (NAME.0, NAME.1.map(|byte| byte.to_string()).join("."));
        let configuration = format!(
            "strict-order\nno-resolv\nno-hosts\nuser=root\ngroup=root\npid-file=\n\
             except-interface=lo\nbind-dynamic\ninterface=virbr0\naddress=/{name}/{address}\n{further}\n"
        );
        fs::create_dir_all("/var/lib/misc")?;
        fs::write("/run/dnsmasq.conf", configuration)?;
        let mut command = software.start("usr/sbin/dnsmasq");
        command.extend(["--keep-in-foreground", "--conf-file=/run/dnsmasq.conf"].map(str::to_owned));
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut process = lab.host.start(&command)?;
        let own = format!("{GATEWAY}:53");
        wait_until("dnsmasq answers the host", Duration::from_secs(10), || {
            ensure!(process.is_running(), "dnsmasq has ended");
            let patience = Duration::from_millis(200);
            Ok(client::resolve(&lab.host, Transport::Udp, &own, name, patience).is_ok())
        })?;
        Ok(Self { _process: process })
    }
}
