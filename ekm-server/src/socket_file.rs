//! A Unix socket in the file system: for its owner only, and gone when its process is.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// What the kernel's address of a Unix socket has room for, without the closing zero.
pub const MAX_PATH_BYTES: usize = 107;

/// A listening socket, and the file that it is.
pub struct SocketFile {
    socket: UnixListener,
    file: PathBuf,
    /// Device and inode: whoever put another file there keeps it.
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens, with mode 0600. A file that a dead process has left is replaced; one that somebody listens on is not.
    pub async fn bind(file: &Path) -> io::Result<Self> {
        if file.as_os_str().len() > MAX_PATH_BYTES {
            let problem = format!("a Unix socket's name has room for {MAX_PATH_BYTES} bytes, and this one is longer");
            return Err(Error::new(ErrorKind::InvalidInput, problem));
        }
        remove_stale(file).await?;
        let socket = UnixSocket::new_stream()?;
        socket.bind(file)?;
        // Before it listens: until then nobody can connect.
        fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
        let identity = identity(file)?;
        Ok(Self { socket: socket.listen(128)?, file: file.to_owned(), identity })
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.socket.accept().await?.0)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.file).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.file);
        }
    }
}

fn identity(file: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(file)?;
    Ok((metadata.dev(), metadata.ino()))
}

async fn remove_stale(file: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::new(ErrorKind::AlreadyExists, "there is a file of this name, and it is no socket"));
    }
    match UnixStream::connect(file).await {
        Ok(_) => Err(Error::new(ErrorKind::AddrInUse, "another process listens on this socket")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(file),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_for_its_owner_replaces_a_dead_one_and_no_other_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("s");
        let first = SocketFile::bind(&file).await.unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(SocketFile::bind(&file).await.err().unwrap().kind(), ErrorKind::AddrInUse);
        drop(first);
        assert!(!file.exists());

        drop(std::os::unix::net::UnixListener::bind(&file).unwrap()); // leaves its file, as a killed process does
        let second = SocketFile::bind(&file).await.unwrap();
        fs::remove_file(&file).unwrap();
        fs::write(&file, "of somebody else").unwrap();
        drop(second);
        assert_eq!(SocketFile::bind(&file).await.err().unwrap().kind(), ErrorKind::AlreadyExists);
        assert!(file.exists());

        let long = directory.path().join("x".repeat(MAX_PATH_BYTES));
        assert!(SocketFile::bind(&long).await.err().unwrap().to_string().contains("107 bytes"));
    }
}
