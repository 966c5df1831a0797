//! Files and directories that only their owner may see.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::start_error::StartError;

/// Makes a directory and those above it.
pub(super) fn make_directory(directory: &Path) -> Result<(), StartError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(StartError::io(format!("cannot make the directory {}", directory.display())))
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_new(file: &Path, content: &str) -> Result<(), StartError> {
    let whole = file.with_extension("new");
    let open = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&whole);
    let written = open.and_then(|mut open| {
        open.write_all(content.as_bytes())?;
        open.sync_all()?;
        fs::rename(&whole, file)
    });
    written.map_err(StartError::io(format!("cannot write {}", file.display())))
}

/// As [`write_new`], but leaves a file alone that is there: with a key file that is replaced, every key under it is lost.
pub(super) fn write_missing(file: &Path, content: &str) -> Result<(), StartError> {
    if file.exists() { Ok(()) } else { write_new(file, content) }
}
