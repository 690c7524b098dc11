//! Programs of an unpacked Debian, with the libraries of that Debian and not this machine's: the guest's servers, and what the
//! lab runs without installing it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::boot::Archive;

/// The folder that `./dev setup` fills.
const VARIABLE: &str = "VMNAT_GUEST_ROOT_DIR";
/// Where Debian keeps libraries, which moves from one to the other between releases.
const FOLDERS: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";

/// The unpacked packages.
#[derive(Debug)]
pub struct Software {
    root: PathBuf,
    loader: PathBuf,
}

impl Software {
    /// The packages below `VMNAT_GUEST_ROOT_DIR`.
    ///
    /// # Errors
    ///
    /// When there are none; the message says how to get them.
    pub fn find() -> Result<Self> {
        let Some(root) = env::var_os(VARIABLE).map(PathBuf::from) else {
            bail!(
                "no web server and sshd for the guest: {VARIABLE} is unset; `./dev test vm` fetches them and sets it"
            );
        };
        let place = root.display().to_string();
        Self::below(root).with_context(|| {
            format!("no web server and sshd for the guest in {place}: `./dev setup` fetches them")
        })
    }

    /// The packages below `root`; none when they are not there.
    #[must_use]
    pub fn below(root: PathBuf) -> Option<Self> {
        let mut loaders = FOLDERS.iter().map(|folder| root.join(folder).join(LOADER));
        let loader = loaders.find(|path| path.is_file())?;
        Some(Self { root, loader })
    }

    /// The words that start a program of the packages on this machine.
    #[must_use]
    pub fn start(&self, program: &str) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        let (loader, program) = (path(&self.loader), path(&self.root.join(program)));
        [&loader, "--inhibit-cache", "--library-path", &self.folders(), &program].map(str::to_owned).to_vec()
    }

    fn folders(&self) -> String {
        FOLDERS.map(|folder| self.root.join(folder).display().to_string()).join(":")
    }

    /// Adds a program to an archive, with its libraries, at the place where it lies in the packages.
    ///
    /// # Errors
    ///
    /// When it, or a library that it needs, is not among the packages.
    pub fn install(&self, archive: &mut Archive, program: &str) -> Result<()> {
        let source = self.root.join(program);
        ensure!(source.is_file(), "no {}: `./dev setup` fetches it into a fresh folder", source.display());
        archive.copy(program, &source)?;
        archive.copy(&format!("lib64/{LOADER}"), &self.loader)?;
        for library in self.libraries_of(&source)? {
            let name =
                library.file_name().and_then(|name| name.to_str()).context("a library without a name")?;
            archive.copy(&format!("{}/{name}", FOLDERS[0]), &library)?;
        }
        Ok(())
    }

    /// Adds every program of a folder whose name begins so; there may be none.
    ///
    /// # Errors
    ///
    /// As [`Software::install`].
    pub fn install_all(&self, archive: &mut Archive, folder: &str, beginning: &str) -> Result<()> {
        for entry in self.root.join(folder).read_dir().into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(beginning) {
                self.install(archive, &format!("{folder}/{name}"))?;
            }
        }
        Ok(())
    }

    /// The libraries of a program, found by the packages' own loader: this machine's may be older than they are.
    fn libraries_of(&self, program: &Path) -> Result<Vec<PathBuf>> {
        let mut list = Command::new(&self.loader);
        list.args(["--inhibit-cache", "--library-path", &self.folders(), "--list"]).arg(program);
        let output = list.output().with_context(|| format!("cannot start {}", self.loader.display()))?;
        ensure!(
            output.status.success(),
            "{}: {}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        // Lines are `NAME => PATH (ADDRESS)`; the kernel's own library has no path.
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let pairs = printed.lines().filter_map(|line| line.trim().split_once(" => "));
        pairs
            .map(|(name, found)| {
                let path = PathBuf::from(found.split(" (").next().unwrap_or_default());
                let is_ours = path.starts_with(&self.root);
                ensure!(is_ours, "{} needs {name}, which {} lacks", program.display(), self.root.display());
                Ok(path)
            })
            .collect()
    }
}
