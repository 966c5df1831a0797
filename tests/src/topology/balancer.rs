//! nginx and HAProxy with the configurations of `deploy/`, on machines of their own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::network::Node;
use super::replica::get;
use crate::template;

/// Where a load balancer runs, and how.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) node: &'a Node,
    /// Its files are below this directory.
    pub(super) within: &'a Path,
    /// How many times as long as in `deploy/` everything takes that has to fit into the 150 ms of Cloud KMS: as many as the caller's patience.
    pub(super) stretch: u64,
}

/// A load balancer; it ends when dropped.
pub(super) struct Balancer {
    process: Child,
    directory: PathBuf,
}

impl Balancer {
    /// nginx, from the template, with these variables besides those that are the same in all rigs.
    pub(super) fn nginx(place: Place<'_>, listen_port: u16, primary: &[String], backup: &[String]) -> Self {
        let variables: Value = json!({
            "listen_port": listen_port, "primary": primary, "backup": backup, "proxy_protocol": false,
            "connect_timeout_ms": 40, "worker_connections": 4096,
        });
        Self::start_nginx(place, &template::render(&deployed("nginx/stream.conf.tftpl"), &variables))
    }

    fn start_nginx(place: Place<'_>, text: &str) -> Self {
        let directory = place.directory();
        let file = directory.join("nginx.conf");
        let text = text.replace("/var/log/nginx", directory.to_str().expect("UTF-8"));
        fs::write(&file, place.stretched(&text)).expect("writable");
        let mut command = place.node.command("nginx");
        command.arg("-c").arg(&file);
        command.arg("-g").arg(format!("daemon off; pid {}/pid;", directory.display()));
        Self::start(command, place.node, directory)
    }

    /// nginx that ends TLS with the certificate in this directory of `ekm dev`, before these replicas.
    pub(super) fn nginx_https(place: Place<'_>, origin: &Path, hosts: &[String]) -> Self {
        let of_origin = |file: &str| origin.join("tls").join(file).to_str().expect("UTF-8").to_owned();
        let mut text = String::new();
        for line in deployed("nginx/https.conf").lines() {
            // Each list of servers begins with the first replica's; the others' lines go.
            match line.trim_start().strip_prefix("server 10.20.") {
                Some(rest) if rest.starts_with("1.11:") => {
                    let (_, rest) = rest.split_once(':').expect("a port");
                    text.extend(hosts.iter().map(|host| format!("server {host}:{rest}\n")));
                }
                Some(_) => {}
                None => text += &format!("{line}\n"),
            }
        }
        let text = text
            .replace("ekm.example.com", "localhost")
            .replace("/etc/nginx/ekm-ca.pem", &of_origin("certificate.pem"))
            .replace("/etc/nginx/tls/certificate.pem", &of_origin("certificate.pem"))
            .replace("/etc/nginx/tls/private-key.pem", &of_origin("private-key.pem"));
        Self::start_nginx(place, &text)
    }

    /// HAProxy, with a configuration that was made of the sample.
    pub(super) fn haproxy(place: Place<'_>, edit: impl FnOnce(String) -> String) -> Self {
        Self::start_haproxy(place, &edit(deployed("haproxy/tcp.cfg")))
    }

    /// HAProxy that ends TLS with the certificate in this directory of `ekm dev`, with a configuration that was made of the sample.
    pub(super) fn haproxy_https(place: Place<'_>, origin: &Path, edit: impl FnOnce(String) -> String) -> Self {
        let directory = place.directory();
        let certificate = directory.join("certificate.pem");
        for (file, copy) in [("certificate.pem", "certificate.pem"), ("private-key.pem", "certificate.pem.key")] {
            fs::copy(origin.join("tls").join(file), directory.join(copy)).expect("writable");
        }
        let certificate = certificate.to_str().expect("UTF-8");
        let text = edit(deployed("haproxy/https.cfg"))
            .replace("ekm.example.com", "localhost")
            .replace("/etc/haproxy/ekm-ca.pem", certificate)
            .replace("/etc/haproxy/tls/certificate.pem", certificate);
        Self::start_haproxy(place, &text)
    }

    fn start_haproxy(place: Place<'_>, text: &str) -> Self {
        let directory = place.directory();
        let file = directory.join("haproxy.cfg");
        // As many file descriptors as that needs are not given to everybody.
        let text = text.replace("maxconn 16384", "maxconn 2048");
        fs::write(&file, place.stretched(&text)).expect("writable");
        let mut command = place.node.command("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        Self::start(command, place.node, directory)
    }

    fn start(mut command: std::process::Command, node: &Node, directory: PathBuf) -> Self {
        let log = File::options().append(true).create(true).open(directory.join("access.log")).expect("writable");
        let errors = File::options().append(true).create(true).open(directory.join("stderr.log")).expect("writable");
        let process = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().expect("nsenter starts");
        let mut balancer = Self { process, directory };
        let begun = Instant::now();
        while get(&format!("{}:8080", node.address), "/readyz", Duration::from_secs(1)) != Some(200) {
            let ended = balancer.process.try_wait().expect("a child").is_some();
            assert!(
                !ended && begun.elapsed() < Duration::from_secs(30),
                "{} is not ready: {}",
                node.name,
                balancer.log()
            );
            sleep(Duration::from_millis(50));
        }
        balancer
    }

    fn log(&self) -> String {
        let logs = ["stderr.log", "error.log"].map(|name| fs::read_to_string(self.directory.join(name)));
        logs.into_iter().map(Result::unwrap_or_default).collect()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // nginx ends its workers on SIGTERM, and not when it is killed.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.process),
            rustix::process::Signal::TERM,
        );
        let _ = self.process.wait();
    }
}

impl Place<'_> {
    fn directory(self) -> PathBuf {
        let directory = self.within.join(format!("balancer-{}", self.node.name));
        fs::create_dir_all(&directory).expect("writable");
        directory
    }

    /// A configuration whose times up to 150 ms take longer.
    fn stretched(self, text: &str) -> String {
        let stretched = text.split_inclusive([' ', '\n']).map(|word| {
            let end = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
            match word[..end].parse::<u64>() {
                Ok(time_ms) if time_ms <= 150 && word[end..].starts_with("ms") => {
                    format!("{}{}", time_ms * self.stretch, &word[end..])
                }
                _ => word.to_owned(),
            }
        });
        stretched.collect()
    }
}

fn deployed(file: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").join("deploy");
    fs::read_to_string(directory.join(file)).expect("it is in the repository")
}
