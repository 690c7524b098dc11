//! `--mode-hook NAME=SCRIPT`: any other NAT, set up by an operator's script in the rig's host.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use vmnat_tests::lab::{EXTERNAL, GATEWAY, ROUTER, namespace::Namespace, octets};

/// A way to forward that a script sets up and takes down.
#[derive(Debug, PartialEq, Eq)]
pub struct ModeHook {
    /// What tables call it.
    pub name: String,
    script: PathBuf,
}

impl ModeHook {
    /// Reads `NAME=SCRIPT`. It lives as long as the process: every rig refers to it.
    pub fn parse(text: &str) -> Result<&'static Self> {
        let (name, script) = text.split_once('=').context("write NAME=SCRIPT")?;
        ensure!(!name.is_empty(), "\"{text}\" names no mode: write NAME=SCRIPT");
        let script = Path::new(script);
        let script = script.canonicalize().with_context(|| format!("the script {}", script.display()))?;
        Ok(Box::leak(Box::new(Self { name: name.to_owned(), script })))
    }

    /// Calls the script in the host's network namespace, with `up` or `down`, and the interfaces' names in the environment.
    pub fn call(&self, host: &Namespace, verb: &str) -> Result<()> {
        let gateway = octets(GATEWAY)?;
        let [a, b, c, _] = gateway;
        let facts = [
            ("BRIDGE", "virbr0".to_owned()),
            ("PORT", "vnet1".to_owned()),
            ("UPLINK", "enp3s0".to_owned()),
            ("GATEWAY", GATEWAY.to_owned()),
            ("NETWORK", format!("{a}.{b}.{c}.0/24")),
            ("EXTERNAL", EXTERNAL.to_owned()),
            ("ROUTER", ROUTER.to_owned()),
        ];
        let facts = facts.map(|(name, value)| format!("VMNAT_BENCH_{name}={value}"));
        let script = self.script.to_str().context("a path that is no text")?;
        let mut command = vec!["env"];
        command.extend(facts.iter().map(String::as_str));
        command.extend([script, verb]);
        host.exec(&command).with_context(|| format!("--mode-hook {}", self.name)).map(drop)
    }
}
