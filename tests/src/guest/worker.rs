//! A guest that does what it is told, command by command: for what runs again and again in one guest.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{FOLDER, VirtualMachine, boot_guest_with, init};
use crate::{
    boot::{self, Kernel},
    lab::{Lab, wait_until},
};

/// With the driver of its line. By QEMU's serial port, a command now and then began only when the next one came.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_net", "virtio_console"];

/// What the guest says after each command, before the command's exit code.
const END: &str = "vm-has-done:";

/// A guest at work; it is switched off when the value goes.
#[derive(Debug)]
pub struct Worker {
    machine: VirtualMachine,
    line: UnixStream,
}

impl Worker {
    /// Starts the guest with these programs of this machine in its `/bin`, and waits until it can be told.
    ///
    /// # Errors
    ///
    /// As [`VirtualMachine::start`], and when it does not boot within `patience`.
    pub fn start(lab: &Lab, programs: &[&Path], patience: Duration) -> Result<Self> {
        let kernel = Kernel::find(&MODULES)?;
        let mut archive = boot::initramfs(&kernel, &init::worker())?;
        for program in programs {
            let name = program.file_name().with_context(|| format!("{} is no program", program.display()))?;
            archive.program(&format!("bin/{}", name.to_string_lossy()), program)?;
        }
        let socket = format!("{FOLDER}/line");
        let line = format!("socket,id=line,path={socket},server=on,wait=off");
        let port = ["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=line"];
        let machine = boot_guest_with(lab, &kernel, archive, &[&["-chardev", &line], &port[..]].concat())?;
        let line = connected(&socket)?;
        wait_until("the guest has booted", patience, || Ok(machine.said().contains("vm:worker ok")))
            .with_context(|| format!("all it said:\n{}", machine.said()))?;
        let mut worker = Self { machine, line };
        ensure!(worker.run("echo ready", patience)?.trim() == "ready", "the guest's shell does not answer");
        Ok(worker)
    }

    /// Runs a command in the guest and returns what it printed.
    ///
    /// # Errors
    ///
    /// When it fails, or does not end within `patience`.
    pub fn run(&mut self, command: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        self.line.write_all(format!("{command}; echo {END}$?\n").as_bytes())?;
        let (mut said, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let text = String::from_utf8_lossy(&said).replace('\r', "");
            if let Some((printed, code)) = text.split_once(END)
                && let Some((code, _)) = code.split_once('\n')
            {
                ensure!(code == "0", "`{command}` in the guest ended with {code}: {printed}");
                return Ok(printed.to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "`{command}` in the guest does not end; it printed {text:?}");
            self.line.set_read_timeout(Some(left))?;
            match self.line.read(&mut buffer) {
                Ok(0) => bail!("the guest has ended; all it said:\n{}", self.machine.said()),
                Ok(length) => said.extend(buffer.iter().take(length)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("the guest's line"),
            }
        }
    }
}

/// Connects as soon as QEMU listens.
fn connected(socket: &str) -> Result<UnixStream> {
    let mut line = None;
    wait_until("QEMU listens", Duration::from_secs(20), || {
        line = UnixStream::connect(socket).ok();
        Ok(line.is_some())
    })?;
    line.with_context(|| format!("{socket}: the guest's line"))
}
