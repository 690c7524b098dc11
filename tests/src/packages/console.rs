//! A shell in the machine: a command goes in by a line, its output and its end come back in one.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// The machine's end. Lines are base64, so that nothing in them ends one.
pub(super) const SHELL: &str = r#"#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
for port in /dev/vport*p1; do exec 3<>"$port"; done
echo "up $(cat /proc/sys/kernel/random/boot_id)" >&3
while IFS= read -r line <&3; do
  printf %s "$line" | base64 -d >/run/shell-command
  bash /run/shell-command >/run/shell-output 2>&1 </dev/null
  end=$?
  echo "end $end $(base64 -w0 </run/shell-output)" >&3
done
"#;

/// systemd's unit for it.
pub(super) const UNIT: &str = "[Unit]\nDescription=The test's shell\nDefaultDependencies=no\nAfter=sysinit.target dbus.socket\n\
    [Service]\nExecStart=/bin/bash /etc/shell.sh\nKillMode=process\nSendSIGHUP=no\n[Install]\nWantedBy=sysinit.target\n";

/// The test's end.
#[derive(Debug)]
pub(super) struct Console {
    stream: BufReader<UnixStream>,
}

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code.
    pub code: i32,
    /// What it printed, both streams.
    pub text: String,
}

impl Output {
    /// What it printed, if it ended well.
    ///
    /// # Errors
    ///
    /// When it did not; the message has what it printed.
    pub(super) fn well(self, command: &str) -> Result<String> {
        ensure!(self.code == 0, "`{command}` ended with {}: {}", self.code, self.text);
        Ok(self.text)
    }
}

impl Console {
    /// Connects as soon as QEMU listens.
    pub(super) fn connect(socket: &Path, patience: Duration) -> Result<Self> {
        let since = Instant::now();
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Ok(Self { stream: BufReader::new(stream) }),
                Err(error) if since.elapsed() > patience => {
                    return Err(error).context("QEMU does not listen");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits until the machine's shell runs, after each boot.
    pub(super) fn await_boot(&mut self, patience: Duration) -> Result<()> {
        let line = self.line(patience).context("the machine's shell does not come up")?;
        ensure!(line.starts_with("up "), "the machine's shell says {line:?}");
        Ok(())
    }

    /// Runs a command to its end.
    pub(super) fn run(&mut self, command: &str, patience: Duration) -> Result<Output> {
        let line = format!("{}\n", STANDARD.encode(command));
        self.stream.get_mut().write_all(line.as_bytes())?;
        let answer = self.line(patience).with_context(|| format!("no end of `{command}`"))?;
        let mut words = answer.split(' ');
        let (Some("end"), Some(code), text) = (words.next(), words.next(), words.next()) else {
            bail!("`{command}` was answered by {answer:?}");
        };
        let text = String::from_utf8_lossy(&STANDARD.decode(text.unwrap_or_default())?).into_owned();
        Ok(Output { code: code.parse()?, text })
    }

    fn line(&mut self, patience: Duration) -> Result<String> {
        let since = Instant::now();
        let mut line = String::new();
        self.stream.get_ref().set_read_timeout(Some(Duration::from_millis(500)))?;
        loop {
            match self.stream.read_line(&mut line) {
                Ok(0) => bail!("the machine is gone"),
                Ok(_) if line.ends_with('\n') => return Ok(line.trim_end().to_owned()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
            ensure!(since.elapsed() < patience, "nothing for {patience:?}");
        }
    }
}
