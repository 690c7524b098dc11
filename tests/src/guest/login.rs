//! Logging in to the guest with a real ssh: keys made for one lab, and commands run through port forwards.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::FOLDER;
use crate::lab::{Lab, namespace::Namespace};

/// By this name the client knows the guest's host key, whichever address and port lead there.
const ALIAS: &str = "guest";

/// The keys of both sides. Their files lie in the lab's own `/run` and go with it.
#[derive(Debug)]
pub struct Login {
    /// The guest's private key.
    pub(super) host_key: String,
    /// The line that lets the user in.
    pub(super) authorized_key: String,
}

impl Login {
    /// Makes a key for the guest and one for its user.
    ///
    /// # Errors
    ///
    /// When ssh-keygen is missing.
    pub fn new(lab: &Lab) -> Result<Self> {
        fs::create_dir_all(FOLDER)?;
        for key in ["host_key", "user_key"] {
            let file = format!("{FOLDER}/{key}");
            lab.host
                .exec(&["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &file])
                .context("install it with `apt-get install openssh-client`")?;
        }
        let read = |file: &str| fs::read_to_string(Path::new(FOLDER).join(file));
        fs::write(Path::new(FOLDER).join("known_hosts"), format!("{ALIAS} {}", read("host_key.pub")?))?;
        Ok(Self { host_key: read("host_key")?, authorized_key: read("user_key.pub")? })
    }

    /// Runs a command in the guest, by way of `address` and `port`, with `input`, and returns what it printed. Only the
    /// guest's own key is accepted, so an answer proves who gave it.
    ///
    /// # Errors
    ///
    /// When the guest is out of reach, or the command fails.
    pub fn run(
        &self,
        from: &Namespace,
        address: &str,
        port: u16,
        command: &str,
        input: &[u8],
    ) -> Result<Vec<u8>> {
        let settings = [
            format!("HostKeyAlias={ALIAS}"),
            format!("UserKnownHostsFile={FOLDER}/known_hosts"),
            format!("IdentityFile={FOLDER}/user_key"),
            format!("Port={port}"),
            "StrictHostKeyChecking=yes".to_owned(),
            "ConnectTimeout=10".to_owned(),
            // Nothing of the user that runs the test: no agent, no question.
            "IdentitiesOnly=yes".to_owned(),
            "BatchMode=yes".to_owned(),
        ];
        let mut words = vec!["ssh", "-F", "none"];
        words.extend(settings.iter().flat_map(|setting| ["-o", setting]));
        let user = format!("root@{address}");
        words.extend([&user, command]);
        let output = from.output(&words, input)?;
        ensure!(
            output.status.success(),
            "`{command}` from {} by ssh to {address}:{port} ended with {}: {}",
            from.name(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(output.stdout)
    }
}
