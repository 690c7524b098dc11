//! What the netns tier needs in the machine and its distribution lacks: itself, vmnat, and programs of the lab.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{boot, lab::vmnat, packages::made::run};

/// Names the netns tier's test program.
const TESTS: &str = "VMNAT_NETNS_BIN";

/// Folders of programs that the lab runs without installing them, by the variables that name them.
const FOLDERS: [(&str, &str); 2] = [("VMNAT_DNSMASQ_DIR", "dnsmasq"), ("VMNAT_STUN_DIR", "stun")];

/// Programs of the lab that the trees of the hosts tier do not have.
const PROGRAMS: [&str; 2] = ["ethtool", "iperf3"];

/// Of the C library, which is the machine's own.
const OF_THE_SYSTEM: [&str; 7] =
    ["ld-linux-x86-64.so", "libc.so", "libm.so", "libpthread.so", "libdl.so", "librt.so", "libresolv.so"];

/// A folder that becomes `/stage` of the machine. It is removed with its value.
#[derive(Debug)]
pub(super) struct Stage {
    folder: PathBuf,
}

impl Stage {
    /// Fills a folder of its own.
    ///
    /// # Errors
    ///
    /// When something is missing; the message says which and how to get it.
    pub(super) fn make(suite: &str) -> Result<Self> {
        let folder = env::temp_dir().join(format!("vmnat-kernels-{suite}-{}", std::process::id()));
        fs::create_dir_all(folder.join("bin"))?;
        let stage = Self { folder };
        stage.fill()?;
        Ok(stage)
    }

    /// Where it lies.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn fill(&self) -> Result<()> {
        let place = |variable: &str| {
            let found = env::var_os(variable).map(PathBuf::from).filter(|path| path.exists());
            found.with_context(|| {
                format!("{variable} is unset or leads nowhere; `./dev test kernels` makes it and sets it")
            })
        };
        let mut environment =
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/stage/bin \
             HOME=/root RUST_BACKTRACE=0 VMNAT_BIN=/stage/vmnat\n"
                .to_owned();
        self.bring(&vmnat::program()?, "vmnat")?;
        self.bring(&place(TESTS)?, "netns")?;
        for (variable, name) in FOLDERS {
            run(Command::new("cp").arg("--archive").arg(place(variable)?).arg(self.folder.join(name)))?;
            environment.push_str(&format!("export {variable}=/stage/{name}\n"));
        }
        for program in PROGRAMS {
            self.bring_with_libraries(program)?;
        }
        Ok(fs::write(self.folder.join("environment"), environment)?)
    }

    fn bring(&self, source: &Path, name: &str) -> Result<()> {
        let place = self.folder.join(name);
        fs::copy(source, &place).with_context(|| format!("copy {}", source.display())).map(drop)
    }

    /// A program of this machine with its libraries, and a script that starts it with them.
    fn bring_with_libraries(&self, name: &str) -> Result<()> {
        let path = env::var_os("PATH").unwrap_or_default();
        let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(Into::into));
        let source = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
        let source = source.with_context(|| format!("no {name} here: `./dev setup` installs it"))?;
        let own = format!("lib/{name}");
        fs::create_dir_all(self.folder.join(&own))?;
        self.bring(&source, &format!("{own}/{name}"))?;
        for library in boot::libraries_of(&source)? {
            let file = library.rsplit('/').next().unwrap_or_default();
            ensure!(!file.is_empty(), "{name} needs {library}");
            if !OF_THE_SYSTEM.iter().any(|system| file.starts_with(system)) {
                self.bring(Path::new(&library), &format!("{own}/{file}"))?;
            }
        }
        let script = format!("#!/bin/sh\nLD_LIBRARY_PATH=/stage/{own} exec /stage/{own}/{name} \"$@\"\n");
        let starter = self.folder.join("bin").join(name);
        fs::write(&starter, script)?;
        Ok(fs::set_permissions(&starter, fs::Permissions::from_mode(0o755))?)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
