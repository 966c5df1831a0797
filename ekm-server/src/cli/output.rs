//! What a command prints: tables for people, aligned columns for pipes, JSON for machines. Whatever comes from the catalog is
//! data: a control character in it does not reach the terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::IsTerminal;

use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::admin::api::FieldChange;
use crate::process::Output;

/// In columns of the terminal.
const NARROW: u16 = 80;

/// Rows under headings.
pub(super) struct Rows<const COLUMNS: usize> {
    headings: [&'static str; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Rows<COLUMNS> {
    pub(super) fn new(headings: [&'static str; COLUMNS]) -> Self {
        Self { headings, rows: Vec::new() }
    }

    /// Escapes every cell; an empty one becomes `-`, so that columns can be counted.
    pub(super) fn push(&mut self, row: [String; COLUMNS]) {
        self.rows.push(row.map(|cell| if cell.is_empty() { "-".into() } else { escape(&cell).into_owned() }));
    }

    /// A table with headings for a terminal; otherwise columns two blanks apart, without headings.
    pub(super) fn render(&self, terminal: bool) -> String {
        if terminal {
            let mut table = Table::new();
            table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
            table.set_header(self.headings.map(|heading| Cell::new(heading).add_attribute(Attribute::Bold)));
            table.add_rows(self.rows.clone());
            // Too narrow to wrap cells legibly: the terminal wraps the lines.
            if table.width().is_none_or(|width| width < NARROW) {
                table.set_content_arrangement(ContentArrangement::Disabled);
            }
            return table.to_string();
        }
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..COLUMNS).map(width).collect();
        let line = |row: &[String; COLUMNS]| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// Prints a list: a table, or as one JSON array.
pub(super) fn print_list<T: Serialize, const COLUMNS: usize>(
    output: Output,
    items: &[T],
    headings: [&'static str; COLUMNS],
    row: impl Fn(&T) -> [String; COLUMNS],
    none: &str,
) {
    match output {
        Output::Json => print_json(&items),
        Output::Text if items.is_empty() => eprintln!("{none}"),
        Output::Text => {
            let mut rows = Rows::new(headings);
            items.iter().for_each(|item| rows.push(row(item)));
            print(&rows.render(std::io::stdout().is_terminal()));
        }
    }
}

/// Names and values, one under the other; empty values are left out.
pub(super) fn fields(fields: &[(&str, String)]) -> String {
    let shown = || fields.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(name, _)| name.len()).max().unwrap_or(0);
    let line = |(name, value): &(&str, String)| format!("{name:width$}  {}", escape(value));
    shown().map(line).collect::<Vec<_>>().join("\n")
}

/// What changes, a line for each field: `  state: enabled → disabled`.
pub(super) fn diff(changes: &[FieldChange]) -> String {
    changes.iter().fold(String::new(), |mut text, change| {
        match &change.after {
            Value::Object(new) if change.field.is_empty() && change.before.is_null() => text += &made(new),
            _ => {
                let (before, after) = (value(&change.before), value(&change.after));
                let _ = write!(text, "\n  {}: {before} → {after}", escape(&change.field));
            }
        }
        text
    })
}

/// Something new: its fields, without the empty ones and those that nobody chose.
fn made(fields: &serde_json::Map<String, Value>) -> String {
    const NOT_CHOSEN: [&str; 7] =
        ["created_at", "id", "justifications", "primary_version", "revision", "versions", "warnings"];
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    let shown = fields.iter().filter(|(name, value)| !NOT_CHOSEN.contains(&name.as_str()) && !empty(value));
    shown.map(|(name, new)| format!("\n  {}: {}", escape(name), value(new))).collect()
}

fn value(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) if text.is_empty() => "\"\"".into(),
        Value::String(text) => escape(text).into_owned(),
        other => escape(&other.to_string()).into_owned(),
    }
}

/// Labels as they are given on the command line.
pub(super) fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// RFC 3339, to the second, UTC.
pub(super) fn time(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}

/// The text with control characters, and those that turn the direction of text, written out.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unprintable) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().flat_map(|c| {
        let (written, plain) = if is_unprintable(c) { (Some(c.escape_default()), None) } else { (None, Some(c)) };
        written.into_iter().flatten().chain(plain)
    });
    Cow::Owned(escaped.collect())
}

/// As [`escape`], line by line.
pub(super) fn escape_lines(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("\n")
}

fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// One JSON document, readable, and safe for a terminal: what JSON leaves as it is, is written as `\u….`
pub(super) fn json(document: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(document).expect("the API's types have only text as map keys");
    text.chars().fold(String::with_capacity(text.len()), |mut text, c| {
        if c != '\n' && is_unprintable(c) {
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
        text
    })
}

pub(super) fn print_json(document: &impl Serialize) {
    print(&json(document));
}

/// Standard output belongs to the answer. A reader that has gone away is no error.
pub(super) fn print(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pipe_gets_columns_without_borders_and_a_terminal_gets_a_table() {
        let mut rows = Rows::new(["PATH", "STATE"]);
        rows.push(["v0/keys/a".into(), "enabled".into()]);
        rows.push(["v0/keys/longer".into(), String::new()]);
        assert_eq!(rows.render(false), "v0/keys/a       enabled\nv0/keys/longer  -");
        let table = rows.render(true);
        assert!(table.contains("PATH") && table.contains("│ v0/keys/longer ┆ -"), "{table}");
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let evil = "a\u{1b}[2Jb\nc\u{9b}1m\u{202e}d";
        let mut rows = Rows::new(["PATH"]);
        rows.push([evil.into()]);
        let change = FieldChange { field: evil.into(), before: Value::Null, after: evil.into() };
        for text in [
            rows.render(false),
            rows.render(true),
            fields(&[("name", evil.into())]),
            diff(std::slice::from_ref(&change)),
            json(&change),
            escape_lines(evil),
        ] {
            assert_eq!(text.chars().find(|&c| c != '\n' && is_unprintable(c)), None, "{text:?}");
        }
        assert_eq!(escape(evil), "a\\u{1b}[2Jb\\nc\\u{9b}1m\\u{202e}d");
        assert_eq!(escape("ä → ü"), "ä → ü");
    }

    #[test]
    fn escaped_json_is_the_same_json() {
        let document = json!({"name": "a\u{1b}\u{9b}\u{202e}\u{7f}\nb"});
        let text = json(&document);
        assert!(!text.contains(['\u{9b}', '\u{202e}', '\u{7f}']), "{text:?}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), document);
    }

    #[test]
    fn a_diff_has_a_line_for_each_field() {
        let change = |field: &str, before, after| FieldChange { field: field.into(), before, after };
        let text = diff(&[
            change("state", json!("enabled"), json!("disabled")),
            change("rotation_days", Value::Null, json!(90)),
            change("description", json!(""), json!("x")),
        ]);
        assert_eq!(text, "\n  state: enabled → disabled\n  rotation_days: none → 90\n  description: \"\" → x");
    }

    #[test]
    fn something_new_is_told_by_the_fields_that_were_chosen() {
        let after = json!({"id": "7", "paths": ["v0/keys/a"], "description": "", "labels": {}, "state": "enabled"});
        let text = diff(&[FieldChange { field: String::new(), before: Value::Null, after }]);
        assert_eq!(text, "\n  paths: [\"v0/keys/a\"]\n  state: enabled");
    }

    #[test]
    fn empty_fields_are_left_out() {
        assert_eq!(fields(&[("a", "1".into()), ("long", String::new()), ("bc", "2".into())]), "a   1\nbc  2");
    }
}
