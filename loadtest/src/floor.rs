//! The floor that requests are measured against: the service's own listener, TLS and HTTP, and a fixed answer. What a request costs above
//! this is ours.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use bytes::Bytes;
use ekm_server::config::Limits;
use ekm_server::connection::Drain;
use ekm_server::listener::Listener;
use ekm_server::metrics::Metrics;
use ekm_server::tls::{self, Certificate};
use http::header;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// As long as the answer to a wrap of 32 bytes.
const ANSWER: &str = r#"{"wrappedBlob":"AwGiBNXoI3Zvix4Kma4G2pUAAAABnn4rkqoCdvwZwC9pf2HjoiUbr8UhJ4Ru4ML3SVK5YQK+6D7oxskc4ZMMbF40AAAAAAAAAAAAAAAAAAAAAAAA"}"#;

/// A floor in a process of its own, ended when it is dropped.
pub struct Floor {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Floor {
    /// Starts this program anew, as the floor, with the certificate of a directory of `ekm dev`.
    pub fn start(directory: &Path) -> Result<Self> {
        Self::start_by(Command::new(std::env::current_exe()?), directory)
    }

    /// The same by a command that ends with this program.
    pub fn start_by(mut command: Command, directory: &Path) -> Result<Self> {
        let (certificate, key) = (directory.join("tls/certificate.pem"), directory.join("tls/private-key.pem"));
        let mut child = command.arg("--serve-floor").arg(certificate).arg(key).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        Ok(Self { child, address: line.trim().parse().context("the floor has not started")? })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is the floor, until somebody ends it. With as many threads as the service has.
#[expect(clippy::print_stdout, reason = "the address, for whoever started this")]
pub fn serve(certificate: &Path, key: &Path) -> Result<()> {
    let certificate = Arc::new(Certificate::load(certificate, key)?);
    let tls = TlsAcceptor::from(Arc::new(tls::server_config(certificate, None)?));
    let answer = async |_body: Bytes| ([(header::CONTENT_TYPE, "application/json")], ANSWER);
    let router = Router::new().fallback(answer);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let (metrics, address) = (Arc::new(Metrics::new("test", &[])), SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = Listener::bind("ekm", address, Some(tls), router, &Limits::default(), metrics)?;
        println!("{}", listener.address()?);
        let (_serving, drain) = watch::channel(Drain::Serving);
        listener.run(drain, Duration::ZERO).await;
        Ok(())
    })
}
