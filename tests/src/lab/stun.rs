//! STUN: a server in the world, and two clients that know nothing of vmnat and say what kind of NAT is before them.

use std::{env, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    Lab, RESOLVER, SERVER,
    client::Asker,
    namespace::{Namespace, Process},
    wait_until,
};
use crate::guest::software::Software;

/// The folder that `./dev setup` fills.
const VARIABLE: &str = "VMNAT_STUN_DIR";

/// A binding request (RFC 5389 section 6).
const REQUEST: &[u8] = b"\0\x01\0\0\x21\x12\xa4\x42vmnat's lab.";

/// coturn's server at two addresses and two ports of the world, as discovery needs it (RFC 5780 section 5).
#[derive(Debug)]
pub struct Stun {
    software: Software,
    _server: Process,
}

impl Stun {
    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    ///
    /// When the programs are not there; the message says how to get them.
    pub fn serve(lab: &Lab) -> Result<Self> {
        let root = env::var_os(VARIABLE).map(PathBuf::from);
        let root = root.with_context(|| {
            format!("no STUN server: {VARIABLE} is unset; `./dev test netns` fetches it and sets it")
        })?;
        let place = root.display().to_string();
        let software = Software::below(root)
            .with_context(|| format!("no STUN server in {place}: `./dev setup` fetches it"))?;
        let mut command = software.start("usr/bin/turnserver");
        // Neither configuration nor relays nor an administrator's port; what it writes goes to the lab's own /run.
        let words = ["-n", "--stun-only", "--no-cli", "--no-tls", "--no-dtls", "--log-file", "/run/turn.log"];
        let files = ["--simple-log", "--pidfile", "/run/turn.pid", "--userdb", "/run/turn.db"];
        let addresses = ["--listening-ip", SERVER, "--listening-ip", RESOLVER];
        command.extend([&words[..], &files, &addresses].concat().into_iter().map(str::to_owned));
        let mut server = lab.world.start(&borrowed(&command))?;
        let asker = Asker::new(&lab.world, 0)?;
        wait_until("the STUN server answers", Duration::from_secs(10), || {
            ensure!(server.is_running(), "the STUN server has ended");
            asker.send(&format!("{SERVER}:3478"), REQUEST)?;
            Ok(asker.hears(Duration::from_millis(100)))
        })?;
        Ok(Self { software, _server: server })
    }

    /// What coturn's `turnutils_natdiscovery` finds out with these options, from `namespace`.
    ///
    /// # Errors
    ///
    /// When it fails.
    pub fn discovery(&self, namespace: &Namespace, options: &[&str]) -> Result<String> {
        let mut command = self.software.start("usr/bin/turnutils_natdiscovery");
        command.extend(options.iter().chain(&[SERVER]).map(|&word| word.to_owned()));
        namespace.exec(&borrowed(&command))
    }

    /// What Vovida's client (RFC 3489) says, from `namespace`. Its exit code is a part of its answer.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn classification(&self, namespace: &Namespace) -> Result<String> {
        let mut command = self.software.start("usr/bin/stun");
        command.push(SERVER.to_owned());
        let output = namespace.output(&borrowed(&command), "")?;
        Ok([output.stdout, output.stderr].iter().map(|text| String::from_utf8_lossy(text)).collect())
    }
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}
