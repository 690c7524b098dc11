//! What a virtual machine of the tests boots from: a distribution's kernel, and an initramfs made here.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// A kernel to boot, and the modules that were asked for, in the order of loading.
#[derive(Debug)]
pub struct Kernel {
    /// The image.
    pub image: PathBuf,
    modules: Vec<PathBuf>,
}

impl Kernel {
    /// The newest kernel below `VMNAT_GUEST_KERNEL_DIR`, or of the machine, with the modules of these names and what they
    /// need.
    ///
    /// # Errors
    ///
    /// When there is none, or it lacks a module; the message says what to install.
    pub fn find(modules: &[&str]) -> Result<Self> {
        let root = env::var_os("VMNAT_GUEST_KERNEL_DIR").map_or_else(|| PathBuf::from("/"), PathBuf::from);
        Self::below(&root, modules)
    }

    /// The newest kernel below a folder.
    ///
    /// # Errors
    ///
    /// As [`Kernel::find`].
    pub fn below(root: &Path, modules: &[&str]) -> Result<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir(root.join("boot")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(version) = name.strip_prefix("vmlinuz-") else { continue };
            let modules = root.join("lib/modules").join(version);
            if modules.join("modules.dep").is_file() {
                found.push((numbers(version), entry.path(), modules));
            }
        }
        let Some((_, image, folder)) = found.into_iter().max() else {
            bail!(
                "no kernel to boot a guest: {0}/boot/vmlinuz-* with {0}/lib/modules/*/modules.dep; \
                 install linux-image-cloud-amd64, or name a folder in VMNAT_GUEST_KERNEL_DIR",
                root.display()
            );
        };
        Ok(Self { image, modules: modules_of(&folder, modules)? })
    }
}

fn numbers(version: &str) -> Vec<u32> {
    version.split(|byte: char| !byte.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn modules_of(folder: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let dependencies = fs::read_to_string(folder.join("modules.dep"))?;
    let builtin = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
    let named = |path: &str, module: &str| {
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split('.').next().is_some_and(|stem| stem.replace('-', "_") == module)
    };
    let mut modules = Vec::new();
    for &module in wanted {
        if builtin.lines().any(|path| named(path, module)) {
            continue;
        }
        let mut rows = dependencies.lines().filter_map(|row| row.split_once(':'));
        let Some((path, needs)) = rows.find(|(path, _)| named(path, module)) else {
            bail!("the kernel of {} has no {module}", folder.display());
        };
        // modules.dep(5): what a module needs stands right of it, to be loaded from right to left.
        for needed in needs.split_whitespace().rev().chain([path]) {
            let needed = folder.join(needed);
            if !modules.contains(&needed) {
                modules.push(needed);
            }
        }
    }
    Ok(modules)
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let decompress = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return Ok(fs::read(path)?),
    };
    let output = Command::new(decompress).args(["-dc"]).arg(path).output();
    let output = output.with_context(|| format!("{} needs {decompress}", path.display()))?;
    ensure!(output.status.success(), "{decompress} cannot read {}", path.display());
    Ok(output.stdout)
}

/// The shared libraries of a program; none when it is static.
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(printed
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(Into::into)
        .collect())
}

/// The beginning of an initramfs: folders, busybox, the kernel's modules and `/init`.
///
/// # Errors
///
/// When busybox or a module cannot be read.
pub fn initramfs(kernel: &Kernel, init: &str) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["bin", "sbin", "mod", "www", "proc", "sys", "dev", "tmp", "run"] {
        archive.folder(folder);
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).is_file());
    let busybox = busybox.context("no busybox for the machine: `apt-get install busybox-static`")?;
    archive.program("bin/busybox", Path::new(busybox))?;
    for (number, module) in kernel.modules.iter().enumerate() {
        archive.file(&format!("mod/{number:02}.ko"), 0o644, &read_module(module)?);
    }
    archive.file("init", 0o755, init.as_bytes());
    Ok(archive)
}

/// A cpio archive in the "newc" form that the kernel unpacks (Documentation/driver-api/early-userspace).
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: Vec<String>,
    files: Vec<String>,
    entries: u32,
}

impl Archive {
    /// Adds a folder, and those above it.
    pub fn folder(&mut self, path: &str) {
        if !path.is_empty() && !self.folders.iter().any(|folder| folder == path) {
            if let Some((parent, _)) = path.rsplit_once('/') {
                self.folder(parent);
            }
            self.folders.push(path.to_owned());
            self.entry(path, 0o040_755, &[]);
        }
    }

    /// Adds a program of this machine, and the libraries that it is linked with.
    ///
    /// # Errors
    ///
    /// When one of them cannot be read.
    pub fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        self.copy(path, source)?;
        for library in libraries_of(source)? {
            self.copy(library.trim_start_matches('/'), Path::new(&library))?;
        }
        Ok(())
    }

    /// Adds an executable file of this machine, a library say, unless it is there.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn copy(&mut self, path: &str, source: &Path) -> Result<()> {
        if !self.files.iter().any(|file| file == path) {
            let content = fs::read(source).with_context(|| format!("read {}", source.display()))?;
            self.file(path, 0o755, &content);
            self.files.push(path.to_owned());
        }
        Ok(())
    }

    /// Adds a file, and the folders above it.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
        self.entry(path, 0o100_000 | mode, content);
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let name_size = path.len() + 1;
        let (number, size) = (self.entries, content.len());
        // Magic, inode, mode, owner, group, links, time, size, four device numbers, name's size, checksum.
        let head = format!(
            "070701{number:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0, 1
        );
        self.bytes.extend(head.as_bytes());
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The archive's bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
