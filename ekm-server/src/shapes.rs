//! `ekm serve --record-shapes`: how requests look, never what they say. For a first live run against Google, whose protocol is not
//! published: it shows which names of [`crate::dialect`] are right.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use ekm_core::policy::Verb;
use http::request::Parts;
use serde_json::{Value, json};

/// So many different ones: more are somebody playing.
const MAX_SHAPES: usize = 1000;
/// A name longer than that is cut.
const MAX_NAME_BYTES: usize = 64;
/// Nesting deeper than that is left out.
const MAX_DEPTH: usize = 8;

/// Where they are written: one JSON object a line, each shape once.
pub struct Shapes {
    file: Arc<Mutex<File>>,
    seen: Mutex<HashSet<String>>,
}

impl Shapes {
    /// Appends to a file.
    pub fn open(file: &Path) -> std::io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(file)?;
        Ok(Self { file: Arc::new(Mutex::new(file)), seen: Mutex::default() })
    }

    /// Remembers how an authenticated request looks. Whatever cannot be parsed is told as such.
    pub fn record(&self, head: &Parts, verb: Verb, body: &[u8]) {
        let body = serde_json::from_slice(body).map_or(Value::from("no JSON"), |body| shape(&body, 0));
        let mut headers: Vec<_> = head.headers.keys().map(|name| cut(name.as_str())).collect();
        headers.sort_unstable();
        headers.dedup();
        let line = json!({
            "method": head.method.as_str(),
            "verb": verb.name(),
            "path_segments": head.uri.path().split('/').count() - 1,
            "version": format!("{:?}", head.version),
            "headers": headers,
            "body": body,
        });
        let line = line.to_string() + "\n";
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MAX_SHAPES || !seen.insert(line.clone()) {
            return;
        }
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || {
            let written = file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
            if let Err(error) = written {
                tracing::warn!(%error, "a request's shape was not recorded");
            }
        });
    }
}

/// Names and types. Enumerations are texts here, too: their names are values.
fn shape(value: &Value, depth: usize) -> Value {
    match value {
        _ if depth > MAX_DEPTH => "…".into(),
        Value::Null => "null".into(),
        Value::Bool(_) => "boolean".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(items) => items.first().map_or(json!([]), |item| json!([shape(item, depth + 1)])),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(name, field)| (cut(name), shape(field, depth + 1))).collect())
        }
    }
}

fn cut(name: &str) -> String {
    name[..name.floor_char_boundary(MAX_NAME_BYTES)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_has_names_and_types_and_no_values() {
        let body = json!({
            "plaintext": "c2VjcmV0", "n": 5, "list": ["a", "b"], "none": [], "nothing": null, "yes": true,
            "additionalContext": {"accessReasonContext": {"reason": "CUSTOMER_INITIATED_ACCESS"}},
        });
        let expected = json!({
            "plaintext": "string", "n": "number", "list": ["string"], "none": [], "nothing": "null", "yes": "boolean",
            "additionalContext": {"accessReasonContext": {"reason": "string"}},
        });
        assert_eq!(shape(&body, 0), expected);
        let deep = (0..20).fold(json!(1), |inner, _| json!({"a": inner}));
        assert!(shape(&deep, 0).to_string().contains('…'));
    }
}
