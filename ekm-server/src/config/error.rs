//! Errors in the configuration file: what, where, and what to write instead.

use std::fmt;
use std::ops::Range;
use std::path::Path;

/// A configuration that is refused. Displays as file, line, column, the line itself, and a remedy.
#[derive(Debug)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConfigError {}

/// Something wrong with a value that the syntax allows.
pub(super) struct Finding {
    pub(super) span: Range<usize>,
    pub(super) problem: String,
    pub(super) help: String,
}

impl Finding {
    pub(super) fn in_file(self, file: &Path, text: &str) -> ConfigError {
        ConfigError(render(file, text, self.span, &self.problem, Some(&self.help)))
    }
}

impl ConfigError {
    pub(super) fn unreadable(file: &Path, error: &std::io::Error) -> Self {
        let file = file.display();
        Self(format!(
            "cannot read {file}: {error}\n  = help: samples are in deploy/config/; 'ekm dev' writes one that works"
        ))
    }

    pub(super) fn syntax(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let message = error.message();
        Self(render(file, text, error.span().unwrap_or(0..0), message, suggestion(message).as_deref()))
    }
}

fn render(file: &Path, text: &str, span: Range<usize>, problem: &str, help: Option<&str>) -> String {
    let start = span.start.min(text.len());
    let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next().unwrap_or_default();
    let number = text[..line_start].matches('\n').count() + 1;
    let column = text[line_start..start].chars().count() + 1;
    let width = text.get(span).map_or(1, |marked| marked.lines().next().unwrap_or_default().chars().count().max(1));
    let gutter = " ".repeat(number.to_string().len());
    let mut out = format!(
        "{problem}\n{gutter}--> {file}:{number}:{column}\n{gutter} |\n{number} | {line}\n{gutter} | {}{}",
        " ".repeat(column - 1),
        "^".repeat(width),
        file = file.display(),
    );
    if let Some(help) = help {
        out.push_str(&format!("\n{gutter} = help: {help}"));
    }
    out
}

/// What to write instead; for a name that is not known the nearest of those that serde lists: "unknown field `modul`, expected one
/// of `module`, …".
fn suggestion(message: &str) -> Option<String> {
    if message.contains("socket address") {
        return Some("write an IP address and a port, such as \"0.0.0.0:8443\"".into());
    }
    if message.starts_with("missing field") {
        return Some("add it; the samples in deploy/config/ have every field, explained".into());
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let written = names.next()?;
    let known = names.collect::<Vec<_>>();
    if !message.starts_with("unknown") {
        return None;
    }
    let nearest = known.iter().max_by(|a, b| strsim::jaro(written, a).total_cmp(&strsim::jaro(written, b)))?;
    (strsim::jaro(written, nearest) > 0.7).then(|| format!("did you mean '{nearest}'?"))
}
