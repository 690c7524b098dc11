//! The printing of flows whose number is not known beforehand.

use std::collections::HashMap;

use anyhow::Result;

use super::{super::print, COLUMNS, Row, WIDTHS, cells};
use crate::{facts::interface_name, flows::Flow, report};

/// Names of interfaces, each asked for once.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<u32, String>);

impl Names {
    pub(super) fn of(&mut self, index: u32) -> &str {
        self.0.entry(index).or_insert_with(|| interface_name(index))
    }
}

/// Prints flows a part at a time, so that a million of them takes no more memory than a thousand: as one JSON document, or as a
/// table whose columns are as wide as what they usually hold.
#[derive(Debug)]
pub(super) struct Printer {
    json: bool,
    /// A part was printed.
    pub(super) has_begun: bool,
    has_rows: bool,
    names: Names,
}

impl Printer {
    pub(super) fn new(json: bool) -> Self {
        Self { json, has_begun: false, has_rows: false, names: Names::default() }
    }

    /// Prints a part; false when nobody reads any more.
    pub(super) fn print(&mut self, flows: &[Flow]) -> Result<bool> {
        let mut text = String::new();
        if !std::mem::replace(&mut self.has_begun, true) {
            text.push_str(&if self.json {
                report::json_begin("flows")
            } else {
                report::wide_head(&COLUMNS, &WIDTHS)
            });
        }
        for flow in flows {
            let name = self.names.of(flow.out_if);
            if self.json {
                if std::mem::replace(&mut self.has_rows, true) {
                    text.push(',');
                }
                text.push_str(&serde_json::to_string(&Row::new(flow, name))?);
            } else {
                text.push_str(&report::wide_row(&COLUMNS, &WIDTHS, &cells(flow, name)));
            }
        }
        print::is_written(&text)
    }

    pub(super) fn end(&self) -> Result<()> {
        if self.json { print::line(report::JSON_END) } else { Ok(()) }
    }
}
