//! A file with an ID token.

use std::path::Path;

use secrecy::SecretString;

/// Reads a file that holds a token and nothing else.
pub(crate) fn read_token(file: &Path) -> Result<SecretString, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let text = text.trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{}: there is no ID token in it", file.display()));
    }
    Ok(text.into())
}
