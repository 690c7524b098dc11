//! A file of port forwards: one a line, with the options of the command line; `#` begins a comment.

use std::{fs, io::Read as _, path::Path};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser;

use super::Options;
use crate::{
    error::Error,
    forwards::{ForwardSpec, Request},
};

/// A line, as clap reads it.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_version_flag = true)]
struct Line {
    forward: String,
    #[command(flatten)]
    options: Options,
}

/// Reads a file, or standard input for `-`; what a line does not say is taken from `defaults`.
///
/// # Errors
/// When the file cannot be read, or [`Error::Usage`] with the first line that makes no sense.
pub(super) fn read(path: &Path, defaults: &Options) -> Result<Vec<Request>> {
    let is_input = path.as_os_str() == "-";
    let name = if is_input { "standard input".to_owned() } else { path.display().to_string() };
    let text = if is_input {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(path)
    };
    let text = text.with_context(|| format!("read {name}"))?;
    requests(&name, &text, defaults)
}

fn requests(name: &str, text: &str, defaults: &Options) -> Result<Vec<Request>> {
    let mut requests = Vec::new();
    for (number, line) in (1_usize..).zip(text.lines()) {
        let origin = || format!("{name}, line {number}");
        let words = words(line).with_context(origin)?;
        if words.is_empty() {
            continue;
        }
        let (spec, options) = understand(&words).with_context(origin)?;
        let (wish, steal) = options.or(defaults).wish(spec);
        requests.push(Request { wish, steal, origin: Some(origin()) });
    }
    Ok(requests)
}

/// Reads the text of a file, for the fuzz target.
///
/// # Errors
/// As [`read`].
#[cfg(any(test, fuzzing))]
pub(crate) fn any(text: &str) -> Result<Vec<Request>> {
    requests("list", text, &Options::default())
}

/// The words of a line, quotes respected.
fn words(line: &str) -> Result<Vec<String>, Error> {
    shlex::split(line).ok_or_else(|| Error::Usage(format!("a quote is not closed in {line:?}")))
}

fn understand(words: &[String]) -> Result<(ForwardSpec, Options)> {
    // Most lines are a forward alone, and clap is slow.
    if let [only] = words
        && !only.starts_with('-')
    {
        return Ok((only.parse()?, Options::default()));
    }
    let Line { forward, options } = Line::try_parse_from(words).map_err(|error| anyhow!(usage(&error)))?;
    Ok((forward.parse()?, options))
}

/// The sentence of clap's message, without its advice.
fn usage(error: &clap::Error) -> Error {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    Error::Usage(first.strip_prefix("error: ").unwrap_or(first).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::exit_of;

    fn read(text: &str) -> Result<Vec<Request>> {
        requests("list", text, &Options::default())
    }

    #[test]
    fn lines_have_options_quotes_and_comments() {
        let text = "# servers\n\n8080:web:80\n2222:web:22 --from 192.0.2.0/24 --comment 'the office' # here\n  53:ns:53/udp\n";
        let requests = read(text).unwrap();
        assert_eq!(requests.len(), 3);
        assert_eq!(requests[1].wish.comment.as_deref(), Some("the office"));
        assert_eq!(requests[1].wish.from.len(), 1);
        assert_eq!(requests[2].origin.as_deref(), Some("list, line 5"));
    }

    #[test]
    fn a_bad_line_is_named_with_its_reason() {
        for (line, reason) in [
            ("80:web", "three or four parts"),
            ("80:web:80 --from nowhere", "\"nowhere\" is no source"),
            ("80:web:80 --colour red", "unexpected argument '--colour'"),
            ("80:web:80 --comment 'open", "a quote is not closed"),
            ("80:web:80 81:web:80", "unexpected argument '81:web:80'"),
            ("--steal", "required"),
        ] {
            let error = read(&format!("1:web:1\n{line}\n")).unwrap_err();
            let text = format!("{error:#}");
            assert!(text.starts_with("list, line 2: ") && text.contains(reason), "{text}");
            assert_eq!(exit_of(&error), crate::exit::Exit::Usage, "{text}");
        }
    }
}
