//! What is wrong with a configuration: file, line, column, key and value, the line itself with carets, and what to do.

use std::{fmt, ops::Range};

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use crate::exit::Exit;

/// Faults that are told one by one.
const TOLD: usize = 20;

/// Characters of a line that are shown before and after what is meant.
const AROUND: usize = 80;

/// A file that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceText {
    /// Its path, or what else it is called in messages.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Where its lines begin, but for the first.
    lines: Vec<usize>,
}

impl SourceText {
    /// A text under a name.
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let lines = text.match_indices('\n').map(|(at, _)| at.saturating_add(1)).collect();
        Self { name: name.into(), text, lines }
    }

    /// The number of the line that holds a byte.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at).saturating_add(1)
    }
}

/// Where something is said: the number of the file, and the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which of the files.
    pub file: usize,
    /// Bytes of its text.
    pub span: Range<usize>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What, and why.
    pub what: String,
    /// Where, and what stands there; the first is meant, others belong to it.
    pub places: Vec<(Place, String)>,
    /// What to do.
    pub hint: Option<String>,
    /// The code that a command ends with.
    pub exit: Exit,
}

impl Fault {
    /// What is wrong at a place.
    #[must_use]
    pub fn at(place: Place, what: impl Into<String>) -> Self {
        Self { what: what.into(), places: vec![(place, String::new())], hint: None, exit: Exit::Usage }
    }

    /// What is wrong at no place of its own.
    #[must_use]
    pub fn nowhere(what: impl Into<String>) -> Self {
        Self { what: what.into(), places: Vec::new(), hint: None, exit: Exit::Usage }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds another place, and what stands there.
    #[must_use]
    pub fn and(mut self, place: Place, label: impl Into<String>) -> Self {
        self.places.push((place, label.into()));
        self
    }

    /// Adds the code that a command ends with.
    #[must_use]
    pub const fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

/// All that is wrong with a set of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    files: Vec<SourceText>,
    faults: Vec<Fault>,
}

impl Faults {
    /// Fails with these faults, if there are any.
    ///
    /// # Errors
    /// The faults, in the order of the files.
    pub fn check(files: &[SourceText], mut faults: Vec<Fault>) -> Result<(), Self> {
        if faults.is_empty() {
            return Ok(());
        }
        faults.sort_by_key(|fault| fault.places.first().map(|(place, _)| (place.file, place.span.start)));
        Err(Self { files: files.to_vec(), faults })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.faults.len()
    }

    /// The code that a command ends with: that of the first.
    #[must_use]
    pub fn exit(&self) -> Exit {
        self.faults.first().map_or(Exit::Usage, |fault| fault.exit)
    }

    /// The first in a line.
    #[must_use]
    pub fn brief(&self) -> String {
        let Some(Fault { what, places, .. }) = self.faults.first() else { return String::new() };
        let at = places.first().map_or_else(String::new, |(place, _)| format!("{}: ", self.name(place)));
        match self.faults.len() {
            1 => format!("{at}{}", one_line(what)),
            several => format!("{at}{} (and {} more)", one_line(what), several.saturating_sub(1)),
        }
    }

    /// File, line and column of a place.
    fn name(&self, place: &Place) -> String {
        let Some(file) = self.files.get(place.file) else { return String::new() };
        let (number, column, _) = line_of(file, place.span.start);
        format!("{}:{number}:{column}", file.name)
    }

    fn render(&self, fault: &Fault) -> String {
        let title = one_line(&fault.what);
        let views: Vec<(&str, View)> = fault
            .places
            .iter()
            .filter_map(|(place, label)| {
                let file = self.files.get(place.file)?;
                Some((file.name.as_str(), View::of(file, &place.span, label)))
            })
            .collect();
        let snippets = views.iter().enumerate().map(|(number, (name, view))| {
            let kind = if number == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
            let label = Some(view.label.as_str()).filter(|label| !label.is_empty());
            Snippet::source(view.line.as_str())
                .line_start(view.number)
                .path(*name)
                .annotation(kind.span(view.span.clone()).label(label))
        });
        let mut group = Level::ERROR.primary_title(title.as_str()).elements(snippets);
        let hint = fault.hint.as_deref().map(one_line);
        if let Some(hint) = &hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        Renderer::plain().render(&[group])
    }
}

/// A line with what is meant in it.
struct View {
    number: usize,
    line: String,
    span: Range<usize>,
    label: String,
}

impl View {
    fn of(file: &SourceText, span: &Range<usize>, label: &str) -> Self {
        let (number, _, line) = line_of(file, span.start);
        let whole = file.text.get(line.clone()).unwrap_or_default();
        let start = floor(whole, span.start.saturating_sub(line.start));
        // What goes over several lines is meant from its first.
        let end = whole.ceil_char_boundary(span.end.min(line.end).saturating_sub(line.start)).max(start);
        let from = floor(whole, start.saturating_sub(AROUND));
        let until = floor(whole, end.saturating_add(AROUND).min(whole.len()));
        let end = end.min(floor(whole, start.saturating_add(AROUND).min(whole.len())));
        let cut = whole.get(from..until.max(from)).unwrap_or_default();
        let shown = cut.replace(|c: char| c.is_control() && c != '\t', "?");
        // A control character may be longer than its stand-in.
        let exact = shown.len() == cut.len();
        let span = if exact { start.saturating_sub(from)..end.saturating_sub(from) } else { 0..shown.len() };
        Self { number, line: shown, span, label: one_line(label) }
    }
}

/// The largest place of a character that is not after `at`.
fn floor(text: &str, at: usize) -> usize {
    text.floor_char_boundary(at)
}

/// The number, column and bytes of the line that holds a byte.
fn line_of(file: &SourceText, at: usize) -> (usize, usize, Range<usize>) {
    let text = file.text.as_str();
    let at = floor(text, at);
    let before = text.get(..at).unwrap_or_default();
    let start = before.rfind('\n').map_or(0, |newline| newline.saturating_add(1));
    let rest = text.get(at..).unwrap_or_default();
    let mut end = rest.find('\n').map_or(text.len(), |newline| at.saturating_add(newline));
    if end > start && text.as_bytes().get(end.saturating_sub(1)) == Some(&b'\r') && end > at {
        end = end.saturating_sub(1);
    }
    let column = before.get(start..).unwrap_or_default().chars().count().saturating_add(1);
    (file.line(at), column, start..end)
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = match self.faults.len() {
            1 => "a fault".to_owned(),
            several => format!("{several} faults"),
        };
        write!(f, "{faults} in the configuration, and nothing was changed")?;
        for fault in self.faults.iter().take(TOLD) {
            write!(f, "\n\n{}", self.render(fault))?;
        }
        match self.faults.len().saturating_sub(TOLD) {
            0 => Ok(()),
            more => write!(f, "\n\nand {more} more"),
        }
    }
}

impl std::error::Error for Faults {}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str, span: Range<usize>) -> Faults {
        let files = [SourceText::new("vmnat.toml", text)];
        Faults::check(&files, vec![Fault::at(Place { file: 0, span }, "wrong").hint("mend it")]).unwrap_err()
    }

    #[test]
    fn a_fault_shows_its_line() {
        let told = faults("a = 1\nbee = 2\nc = 3\n", 12..13).to_string();
        let expected = "a fault in the configuration, and nothing was changed\n\n\
                        error: wrong\n \
                        --> vmnat.toml:2:7\n  \
                        |\n\
                        2 | bee = 2\n  \
                        |       ^\n  \
                        |\n  \
                        = help: mend it";
        assert_eq!(told, expected);
        assert_eq!(faults("a = 1\nbee = 2\n", 12..13).brief(), "vmnat.toml:2:7: wrong");
    }

    #[test]
    fn any_place_of_any_text_can_be_shown() {
        for text in ["", "\n", "a", "\r\n", "é = \u{1}\u{7f}\u{85}é", "\u{2028}x\ty\n", "日本語 = 1\r\nx"]
        {
            for start in 0..=text.len() + 1 {
                for end in start..=text.len() + 2 {
                    assert!(faults(text, start..end).to_string().contains("vmnat.toml"));
                }
            }
        }
        let long = "x".repeat(10_000);
        assert!(faults(&long, 5_000..9_000).to_string().len() < 1_000);
    }
}
