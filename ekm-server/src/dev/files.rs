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

/// Writes a file that only its owner may read; what an interrupted set-up left behind is replaced.
pub(super) fn write_new(file: &Path, content: &str) -> Result<(), StartError> {
    let open = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file);
    let written = open.and_then(|mut open| {
        open.write_all(content.as_bytes())?;
        open.sync_all()
    });
    written.map_err(StartError::io(format!("cannot write {}", file.display())))
}
