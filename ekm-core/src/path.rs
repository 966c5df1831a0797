//! Key paths: what a Cloud KMS key version stores as its external key URI, without scheme and host.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The longest path that is stored or looked up, in bytes.
const MAX_BYTES: usize = 512;

/// A normalised path of a key or crypto space, such as `v0/keys/demo`: no leading slash, one form per path.
///
/// Segments are 1 or more of `A-Z a-z 0-9 - _ . ~ @ + =`, never `.` or `..`, case-sensitive. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyPath(Arc<str>);

/// Why a text is no [`KeyPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// Longer than 512 bytes.
    #[error("a key path has at most {MAX_BYTES} bytes")]
    TooLong,
    /// Two slashes in a row, or a slash at the end, or nothing at all.
    #[error("a key path has no empty segment")]
    EmptySegment,
    /// `.` or `..`.
    #[error("a key path has no segment '.' or '..'")]
    DotSegment,
    /// Anything outside the grammar, also when percent-encoded.
    #[error("a key path consists of A-Z a-z 0-9 - _ . ~ @ + = and /")]
    Character,
}

impl KeyPath {
    /// Parses a path in its normal form, as in a catalog or on a command line. A leading slash is dropped.
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        let text = text.strip_prefix('/').unwrap_or(text);
        if text.len() > MAX_BYTES {
            return Err(InvalidPath::TooLong);
        }
        for segment in text.split('/') {
            match segment {
                "" => return Err(InvalidPath::EmptySegment),
                "." | ".." => return Err(InvalidPath::DotSegment),
                _ if segment.bytes().all(is_path_byte) => {}
                _ => return Err(InvalidPath::Character),
            }
        }
        Ok(Self(text.into()))
    }

    /// Parses a path from a request line: percent-encoding is undone once (RFC 3986 §2.3), and only for characters that
    /// the grammar allows unencoded, so that `%2F`, `%2e%2e` followed by a slash, and double encodings name nothing.
    pub fn parse_encoded(encoded: &str) -> Result<Self, InvalidPath> {
        if !encoded.contains('%') {
            return Self::parse(encoded);
        }
        if encoded.len() > 3 * MAX_BYTES {
            return Err(InvalidPath::TooLong);
        }
        let mut decoded = String::with_capacity(encoded.len());
        let mut rest = encoded;
        while let Some((before, after)) = rest.split_once('%') {
            decoded.push_str(before);
            let byte = after.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
            match byte {
                Some(byte) if is_path_byte(byte) => decoded.push(char::from(byte)),
                _ => return Err(InvalidPath::Character),
            }
            rest = &after[2..];
        }
        decoded.push_str(rest);
        Self::parse(&decoded)
    }

    /// The path without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~@+=".contains(&byte)
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for KeyPath {
    type Error = InvalidPath;

    fn try_from(text: String) -> Result<Self, InvalidPath> {
        Self::parse(&text)
    }
}

impl From<KeyPath> for String {
    fn from(path: KeyPath) -> Self {
        path.as_str().to_owned()
    }
}

impl std::str::FromStr for KeyPath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_path_has_one_normal_form() {
        let plain = KeyPath::parse("v0/keys/demo").unwrap();
        assert_eq!(KeyPath::parse("/v0/keys/demo").unwrap(), plain);
        assert_eq!(KeyPath::parse_encoded("/v0/keys/d%65mo").unwrap(), plain);
        assert_ne!(KeyPath::parse("v0/keys/Demo").unwrap(), plain);
    }

    #[test]
    fn what_could_mean_two_things_names_nothing() {
        for text in [
            "",
            "/",
            "//v0",
            "v0//keys",
            "v0/keys/",
            "v0/../keys",
            "v0/./keys",
            "v0/%2e%2e/keys",
            "v0%2fkeys",
            "v0/%00",
            "v0/%",
            "v0/%4",
            "v0/%zz",
            "v0/%+1",
            "v0/%2561",
            "v0/%c0%af",
            "v0/key;a=b/x",
            "v0/ä",
            "v0/%é",
            "v0/a b",
            "v0/a:b",
        ] {
            assert!(KeyPath::parse_encoded(text).is_err(), "{text} was accepted");
        }
        assert_eq!(KeyPath::parse(&"a".repeat(513)), Err(InvalidPath::TooLong));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_a_parsed_path_parses_to_itself(text in ".{0,80}") {
            if let Ok(path) = KeyPath::parse_encoded(&text) {
                prop_assert_eq!(KeyPath::parse(path.as_str()), Ok(path.clone()));
                prop_assert_eq!(KeyPath::parse_encoded(path.as_str()), Ok(path));
            }
        }

        #[test]
        fn every_path_of_the_grammar_survives_percent_encoding(text in "[A-Za-z0-9_~@+=-]{1,20}(/[A-Za-z0-9_~@+=-]{1,20}){0,5}") {
            let encoded: String = text.bytes().map(|b| if b == b'/' { "/".into() } else { format!("%{b:02X}") }).collect();
            let path = KeyPath::parse_encoded(&encoded).unwrap();
            prop_assert_eq!(path.as_str(), text);
        }
    }
}
