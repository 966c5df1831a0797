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

/// A load balancer; it ends when dropped.
pub(super) struct Balancer {
    process: Child,
    directory: PathBuf,
}

impl Balancer {
    /// nginx, from the template, with these variables besides those that are the same in all rigs.
    pub(super) fn nginx(node: &Node, within: &Path, listen_port: u16, primary: &[String], backup: &[String]) -> Self {
        let variables: Value = json!({
            "listen_port": listen_port, "primary": primary, "backup": backup, "proxy_protocol": false,
            "connect_timeout_ms": 40, "worker_connections": 4096,
        });
        let directory = directory(node, within);
        let text = template::render(&deployed("nginx/stream.conf.tftpl"), &variables);
        Self::start_nginx(node, directory, &text)
    }

    fn start_nginx(node: &Node, directory: PathBuf, text: &str) -> Self {
        let file = directory.join("nginx.conf");
        fs::write(&file, text.replace("/var/log/nginx", directory.to_str().expect("UTF-8"))).expect("writable");
        let mut command = node.command("nginx");
        command.arg("-c").arg(&file);
        command.arg("-g").arg(format!("daemon off; pid {}/pid;", directory.display()));
        Self::start(command, node, directory)
    }

    /// nginx that ends TLS with the certificate in this directory of `ekm dev`, before these replicas.
    pub(super) fn nginx_https(node: &Node, within: &Path, origin: &Path, hosts: &[String]) -> Self {
        let directory = directory(node, within);
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
        Self::start_nginx(node, directory, &text)
    }

    /// HAProxy, with a configuration that was made of the sample.
    pub(super) fn haproxy(node: &Node, within: &Path, edit: impl FnOnce(String) -> String) -> Self {
        let directory = directory(node, within);
        let file = directory.join("haproxy.cfg");
        // As many file descriptors as that needs are not given to everybody.
        let text = edit(deployed("haproxy/tcp.cfg")).replace("maxconn 16384", "maxconn 2048");
        fs::write(&file, text).expect("writable");
        let mut command = node.command("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        Self::start(command, node, directory)
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

fn directory(node: &Node, within: &Path) -> PathBuf {
    let directory = within.join(format!("balancer-{}", node.name));
    fs::create_dir_all(&directory).expect("writable");
    directory
}

fn deployed(file: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").join("deploy");
    fs::read_to_string(directory.join(file)).expect("it is in the repository")
}
