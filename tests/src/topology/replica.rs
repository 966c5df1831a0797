//! One frontend of the EKM on a machine of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::network::Node;
use crate::process::{Directory, ekm_binary};

/// How long it may take to become ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// A frontend, with a directory and keys of its own, which are the same as all others'.
pub struct Replica {
    pub(super) node: Node,
    directory: std::path::PathBuf,
    process: Child,
}

impl Replica {
    /// A copy of what `ekm dev` has set up, below this directory, with these lines for `[limits]`.
    pub(super) fn start(node: Node, origin: &Directory, within: &Path, limits: &str) -> Self {
        let directory = within.join(&node.name);
        let status = Command::new("cp").arg("-a").arg(origin.path()).arg(&directory).status();
        assert!(status.is_ok_and(|status| status.success()), "cp");
        let config = fs::read_to_string(directory.join("ekm.toml")).expect("ekm dev has been here");
        let config = config.replace("127.0.0.1:", "0.0.0.0:");
        fs::write(directory.join("serve.toml"), format!("{config}\n[limits]\n{limits}")).expect("writable");
        let process = spawn(&node, &directory);
        Self { node, directory, process }
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.node.address.parse().expect("an address"), 8443)
    }

    /// Waits until it wants traffic.
    pub fn wait_until_ready(&self) {
        let begun = Instant::now();
        while get(&format!("{}:9443", self.node.address), "/readyz", Duration::from_secs(1)) != Some(200) {
            let log = || fs::read_to_string(self.directory.join("stderr.log")).unwrap_or_default();
            assert!(begun.elapsed() < PATIENCE, "{} does not become ready:\n{}", self.name(), log());
            sleep(Duration::from_millis(50));
        }
    }

    /// Neither answers nor refuses: a cut cable.
    pub fn silence(&self) {
        self.node.silence();
    }

    /// Takes that back.
    pub fn heal(&self) {
        self.node.heal();
    }

    /// Sends its process a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it is there");
    }

    /// Waits until its process has ended.
    pub fn wait(&mut self) {
        let _ = self.process.wait();
    }

    /// Starts it again after its end.
    pub fn restart(&mut self) {
        self.process = spawn(&self.node, &self.directory);
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(node: &Node, directory: &Path) -> Child {
    let log = File::options().append(true).create(true).open(directory.join("stderr.log")).expect("writable");
    let mut command = node.command(ekm_binary().to_str().expect("UTF-8"));
    command.args(["serve", "--config"]).arg(directory.join("serve.toml"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("nsenter starts")
}

/// The status that a plain HTTP server answers with, if it does so in time.
pub(super) fn get(address: &str, path: &str, patience: Duration) -> Option<u16> {
    let mut stream = TcpStream::connect_timeout(&address.parse().expect("an address"), patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
    let mut start = [0; 12];
    stream.read_exact(&mut start).ok()?;
    std::str::from_utf8(&start[9..]).ok()?.parse().ok()
}
