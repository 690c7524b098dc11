//! Writes what packages bring beside the program, made from the command line and the keys of files themselves: man pages and
//! completions.

use std::{env, fs, io, path::Path};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use vmnat_user::{cli::Cli, config};

/// Administration.
const SECTION: &str = "8";
/// The sections of vmnat(8) that the command line does not know.
const OVERVIEW: &str = include_str!("../../packaging/man/vmnat.8.in");
/// vmnat.toml(5), around what is said of each key.
const FILES: &str = include_str!("../../packaging/man/vmnat.toml.5.in");

fn main() -> Result<()> {
    let folder = env::args_os().nth(1).context("say where to write")?;
    let folder = Path::new(&folder);
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&man, &completions] {
        fs::create_dir_all(folder)?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "vmnat", &completions)?;
    }
    // `help` has no page.
    let mut command = without_help(Cli::command());
    command.build();
    write_pages(&command, &man, OVERVIEW)?;
    let page = FILES.replace("@VERSION@", env!("CARGO_PKG_VERSION")).replace("@KEYS@\n", &config::manual());
    fs::write(man.join("vmnat.toml.5"), page).context("write vmnat.toml.5")
}

fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

/// Writes the page of a command and those of its subcommands.
fn write_pages(command: &Command, folder: &Path, further: &str) -> Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut page = Vec::new();
    let man = Man::new(command.clone()).title(name.to_uppercase()).section(SECTION).manual("vmnat");
    render(&man, command, &mut page)?;
    page.extend(further.as_bytes());
    let path = folder.join(format!("{name}.{SECTION}"));
    fs::write(&path, page).with_context(|| format!("write {}", path.display()))?;
    let shown = |command: &&Command| !command.is_hide_set();
    command.get_subcommands().filter(shown).try_for_each(|command| write_pages(command, folder, ""))
}

fn render(man: &Man, command: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    if let Some(text) = command.get_after_long_help().or(command.get_after_help()) {
        render_verbatim(&text.to_string(), page);
    }
    Ok(())
}

/// The examples and tables below the help, line by line as they stand there.
fn render_verbatim(text: &str, page: &mut Vec<u8>) {
    let mut open = false;
    for line in text.lines() {
        let heading = line.strip_suffix(':').filter(|heading| !heading.starts_with(' '));
        if let Some(heading) = heading {
            if open {
                page.extend(b".fi\n");
            }
            page.extend(format!(".SH {}\n.nf\n", heading.to_uppercase()).as_bytes());
            open = true;
        } else if !line.is_empty() {
            // A line must begin neither with a request nor hold an escape.
            page.extend(format!("\\&{}\n", line.replace('\\', "\\e").replace('-', "\\-")).as_bytes());
        }
    }
    if open {
        page.extend(b".fi\n");
    }
}
