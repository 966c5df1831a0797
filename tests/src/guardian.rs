//! A directory for daemons that nothing outlives: neither a panic, nor Ctrl-C, nor SIGKILL.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A directory, and a shell that waits for the end of a pipe from this process. However this process ends, the kernel closes the
/// pipe; the shell then ends the daemons that work in the directory, and removes it. Dropped, the same happens at once.
pub struct Guardian {
    directory: PathBuf,
    shell: Child,
}

impl Guardian {
    /// A new directory that others may enter: daemons run as other users.
    pub fn new(name: &str) -> Self {
        let prefix = format!("ekm-{name}-");
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary directory").keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("it is ours");
        let mut command = Command::new("sh");
        command.arg("-c").arg(include_str!("guardian.sh")).arg("guardian").arg(&directory);
        command.current_dir("/").process_group(0); // not in the group that Ctrl-C ends
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let shell = command.spawn().expect("sh starts");
        Self { directory, shell }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
