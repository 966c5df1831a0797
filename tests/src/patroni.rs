//! Three nodes of PostgreSQL under Patroni and three members of etcd, each pair on a network of its own, to be broken.
//! Only for a program that is in [namespaces](crate::namespaces) of its own.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::authority::Authority;
use crate::guardian::Guardian;
use crate::namespaces;
use crate::postgres::{Database, give_away, programs, unprivileged};

/// How long the cluster may take to come to rest after anything.
const PATIENCE: Duration = Duration::from_secs(120);

const NODES: [&str; 3] = ["node1", "node2", "node3"];

/// The cluster.
pub struct Patroni {
    nodes: Vec<Node>,
    /// The database made for the drill, on whichever node leads. Its user owns another one, `probe`, for what is no catalog's business.
    pub database: Database,
    _guardian: Guardian,
}

struct Node {
    name: &'static str,
    address: String,
    directory: PathBuf,
    etcd: Child,
    patroni: Option<Child>,
}

impl Patroni {
    /// Starts everything, and waits until all three nodes follow.
    pub fn start() -> Self {
        let guardian = Guardian::new("patroni");
        let authority = Authority::new(guardian.directory());
        ip("link add bridge type bridge");
        ip("address add 10.1.0.254/24 dev bridge");
        ip("link set bridge up");
        let nodes = NODES.into_iter().zip(1..).map(|(name, number)| Node::start(name, number, &guardian, &authority));
        let nodes = nodes.collect();
        let password_file = guardian.directory().join("password");
        fs::write(&password_file, PASSWORD).expect("writable");
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600)).expect("it is ours");
        let hosts = NODES.into_iter().zip(1..).map(|(_, number)| format!("{}:5432", address(number))).collect();
        let database = Database {
            hosts,
            name: "ekm".into(),
            user: "ekm".into(),
            password: PASSWORD.into(),
            password_file,
            ca_file: authority.ca_file,
        };
        let mut cluster = Self { nodes, database, _guardian: guardian };
        // Started before etcd answers, Patroni would wait for five seconds.
        let begun = Instant::now();
        while !cluster
            .nodes
            .iter()
            .all(|node| get(&node.address, 2379, "/health").is_some_and(|answer| answer.0 == 200))
        {
            assert!(begun.elapsed() < PATIENCE, "etcd does not come up:\n{}", cluster.logs());
            sleep(Duration::from_millis(50));
        }
        // A node that finds no cluster to follow looks again after ten seconds only: its settings are in the cluster.
        cluster.restart(0);
        cluster.wait_for_leader();
        cluster.start_databases();
        cluster.wait_healthy();
        let superuser = Database { name: "postgres".into(), user: "postgres".into(), ..cluster.database.clone() };
        superuser.psql(&format!("CREATE ROLE ekm LOGIN PASSWORD '{PASSWORD}'; CREATE DATABASE ekm OWNER ekm"));
        superuser.psql("CREATE DATABASE probe OWNER ekm");
        // A client gives up at a follower that does not know the database yet.
        for host in &cluster.database.hosts {
            let one = Database { hosts: vec![host.clone()], ..cluster.database.clone() };
            while one.try_psql("SELECT 1").is_err() {
                assert!(begun.elapsed() < PATIENCE, "{host} does not follow:\n{}", cluster.logs());
                sleep(Duration::from_millis(50));
            }
        }
        cluster
    }

    /// The node that leads, by the lock that it holds.
    pub fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(|node| get(&node.address, 8008, "/leader").is_some_and(|answer| answer.0 == 200))
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Waits for a leader; returns it.
    pub fn wait_for_leader(&self) -> usize {
        let begun = Instant::now();
        loop {
            if let Some(leader) = self.leader() {
                return leader;
            }
            assert!(begun.elapsed() < PATIENCE, "no node leads:\n{}", self.logs());
            sleep(Duration::from_millis(100));
        }
    }

    /// Waits until there is a leader, a synchronous follower, and a third node that follows as well, and no member of etcd lags; returns
    /// the leader.
    pub fn wait_healthy(&self) -> usize {
        self.wait_for_followers(2)
    }

    /// Waits until this many nodes follow a leader, one of them synchronously; returns the leader.
    pub fn wait_for_followers(&self, count: usize) -> usize {
        let begun = Instant::now();
        loop {
            if let Some(leader) = self.leader()
                && let Some(cluster) = self.cluster(leader)
                && follow(&cluster) >= count
                && (count < 2 || self.etcd_agrees())
            {
                return leader;
            }
            assert!(begun.elapsed() < PATIENCE, "the cluster does not come to rest:\n{}", self.logs());
            sleep(Duration::from_millis(100));
        }
    }

    /// Whether all members of etcd have the leader's newest sign of life, or nearly. One that was cut off lags for some seconds after it is
    /// back, and a Patroni that asks it takes the dead for living.
    fn etcd_agrees(&self) -> bool {
        let signs = self.nodes.iter().map(|node| {
            let (_, text) = get(&node.address, 2379, "/v2/keys/service/ekm/leader")?;
            let leader: Value = serde_json::from_str(&text).ok()?;
            leader["node"]["modifiedIndex"].as_u64()
        });
        let Some(signs) = signs.collect::<Option<Vec<_>>>() else { return false };
        // Others write in between, too.
        signs.iter().max().zip(signs.iter().min()).is_some_and(|(newest, oldest)| newest - oldest < 10)
    }

    /// Kills a node's Patroni and PostgreSQL, as a crash of the machine would.
    pub fn crash(&mut self, node: usize) {
        self.nodes[node].crash();
    }

    /// Starts a crashed node again.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].start_patroni();
    }

    /// Cuts a node off from the others, from etcd, and from the clients.
    pub fn partition(&self, node: usize) {
        ip(&format!("link set {} down", self.nodes[node].name));
    }

    /// Connects it again.
    pub fn heal(&self, node: usize) {
        ip(&format!("link set {} up", self.nodes[node].name));
    }

    /// Cuts every node off: nothing on the network answers.
    pub fn partition_all(&self) {
        (0..self.nodes.len()).for_each(|node| self.partition(node));
    }

    /// Connects them again.
    pub fn heal_all(&self) {
        (0..self.nodes.len()).for_each(|node| self.heal(node));
    }

    /// Cuts a node off from the others and from their etcd, but not from the clients.
    pub fn isolate(&self, node: usize) {
        self.route_to_others("add", node);
    }

    /// Connects it again.
    pub fn rejoin(&self, node: usize) {
        self.route_to_others("del", node);
    }

    fn route_to_others(&self, verb: &str, node: usize) {
        for other in self.nodes.iter().filter(|other| other.name != self.nodes[node].name) {
            ip(&format!("-n {} route {verb} blackhole {}/32", self.nodes[node].name, other.address));
        }
    }

    /// Stops a node's Patroni and PostgreSQL in an orderly way, as for maintenance. If it leads, the synchronous follower takes over, and the
    /// third node follows that one at once.
    pub fn stop(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        if let Some(mut patroni) = node.patroni.take() {
            kill_process(Pid::from_child(&patroni), Signal::TERM).expect("it is there");
            let _ = patroni.wait();
        }
    }

    /// Asks Patroni for an orderly change of the leader to the synchronous follower, and returns when it says that it was made. Under
    /// this order the old leader and the third node sleep for two seconds before they follow the new one (`demote` and
    /// `process_unhealthy_cluster` in Patroni's `ha.py`), and writes wait for the first that does.
    ///
    /// # Errors
    /// Patroni's answer, if it made none.
    pub fn switchover(&self) -> Result<(), String> {
        let leader = self.wait_for_leader();
        let cluster = self.cluster(leader).ok_or("the leader does not say who follows")?;
        let member = members(&cluster).iter().find(|member| member["role"] == "sync_standby");
        let candidate = member.ok_or("no node follows synchronously")?;
        let body = json!({"leader": self.nodes[leader].name, "candidate": candidate["name"]}).to_string();
        let request = format!("POST /switchover HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        match ask(&self.nodes[leader].address, 8008, &request, Duration::from_secs(60)) {
            Some((200, _)) => Ok(()),
            answer => Err(format!("no switchover: {answer:?}")),
        }
    }

    /// What a node knows of the cluster.
    fn cluster(&self, node: usize) -> Option<Value> {
        let (status, text) = get(&self.nodes[node].address, 8008, "/cluster")?;
        if status == 200 { serde_json::from_str(&text).ok() } else { None }
    }

    /// Freezes all members of etcd: what they are asked gets no answer.
    pub fn freeze_etcd(&self) {
        self.signal_etcd(Signal::STOP);
    }

    /// Lets them go on.
    pub fn thaw_etcd(&self) {
        self.signal_etcd(Signal::CONT);
    }

    fn signal_etcd(&self, signal: Signal) {
        for node in &self.nodes {
            kill_process(Pid::from_child(&node.etcd), signal).expect("it is there");
        }
    }

    /// Kills every database: there is none until they are started.
    pub fn kill_databases(&mut self) {
        for node in &mut self.nodes {
            node.crash();
        }
    }

    /// Starts every database that is not there.
    pub fn start_databases(&mut self) {
        for node in &mut self.nodes {
            node.start_patroni();
        }
    }

    /// Copies all nodes' logs into a directory.
    pub fn keep_logs(&self, directory: &Path) {
        for node in &self.nodes {
            for name in ["etcd.log", "patroni.log"] {
                let _ = fs::copy(node.directory.join(name), directory.join(format!("{}-{name}", node.name)));
            }
        }
    }

    /// The ends of all nodes' logs.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            for name in ["etcd.log", "patroni.log"] {
                let log = fs::read_to_string(node.directory.join(name)).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(30)..].join("\n");
                text += &format!("--- {} {name}\n{end}\n", node.name);
            }
        }
        text
    }
}

impl Node {
    fn start(name: &'static str, number: u8, guardian: &Guardian, authority: &Authority) -> Self {
        ip(&format!("netns add {name}"));
        ip(&format!("link add {name} type veth peer name eth0 netns {name}"));
        ip(&format!("link set {name} master bridge up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} address add {}/24 dev eth0", address(number)));
        ip(&format!("-n {name} link set eth0 up"));
        let (directory, address) = (guardian.directory().join(name), address(number));
        fs::create_dir(&directory).expect("writable");
        give_away(&directory, 0o700);
        let (certificate, key) = authority.issue(&directory, "server", &[&address]);
        give_away(&certificate, 0o644);
        give_away(&key, 0o600);
        let config = directory.join("patroni.yml");
        let settings = patroni_settings(name, &address, &directory, &authority.ca_file);
        fs::write(&config, settings.to_string()).expect("writable"); // JSON is YAML
        give_away(&config, 0o600);

        let mut etcd = on_node(name, "/usr/bin/etcd", &directory, "etcd.log");
        let (peer, client) = (format!("http://{address}:2380"), format!("http://{address}:2379"));
        let members: Vec<_> = NODES
            .into_iter()
            .zip(1..)
            .map(|(name, number)| format!("{name}=http://{}:2380", self::address(number)))
            .collect();
        etcd.args(["--name", name, "--data-dir"]).arg(directory.join("etcd"));
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--initial-cluster", &members.join(","), "--logger", "zap", "--log-level", "warn"]);
        etcd.arg("--enable-v2");
        if cfg!(target_arch = "aarch64") {
            etcd.env("ETCD_UNSUPPORTED_ARCH", "arm64"); // without it, Debian's refuses to run
        }
        let etcd = etcd.spawn().expect("nsenter starts");
        Self { name, address, directory, etcd, patroni: None }
    }

    fn start_patroni(&mut self) {
        if self.patroni.is_none() {
            let mut patroni = on_node(self.name, "/usr/bin/patroni", &self.directory, "patroni.log");
            patroni.arg(self.directory.join("patroni.yml"));
            self.patroni = Some(patroni.spawn().expect("nsenter starts"));
        }
    }

    fn crash(&mut self) {
        let Some(mut patroni) = self.patroni.take() else { return };
        let _ = patroni.kill();
        let _ = patroni.wait();
        let file = fs::read_to_string(self.directory.join("data/postmaster.pid")).unwrap_or_default();
        if let Some(postmaster) = file.lines().next().and_then(|id| Pid::from_raw(id.parse().ok()?)) {
            let _ = kill_process(postmaster, Signal::KILL);
        }
    }
}

/// One password for every user: nobody else gets at the network.
const PASSWORD: &str = "drill";

fn address(number: u8) -> String {
    format!("10.1.0.{number}")
}

fn patroni_settings(name: &str, address: &str, directory: &Path, ca_file: &Path) -> Value {
    let etcd: Vec<_> =
        NODES.into_iter().zip(1..).map(|(_, number)| format!("{}:2379", self::address(number))).collect();
    let user =
        |name: &str| json!({"username": name, "password": PASSWORD, "sslmode": "verify-full", "sslrootcert": ca_file});
    json!({
        "scope": "ekm",
        "name": name,
        "restapi": {"listen": format!("{address}:8008"), "connect_address": format!("{address}:8008")},
        // By etcd's older API: through the newer one Patroni 3.0.2 writes its leader key unconditionally when its lease has expired
        // (`_update_leader` in `dcs/etcd3.py`), and a leader that comes back from a partition takes the lock from the new one, with
        // every write since.
        "etcd": {"hosts": etcd},
        "bootstrap": {
            "dcs": {
                "ttl": 20,
                "loop_wait": 1, // a node that found the leader gone, and does not take over, looks again after this time
                "retry_timeout": 3,
                "master_start_timeout": 0,
                "synchronous_mode": true,
                "synchronous_mode_strict": true,
                "failsafe_mode": true,
                "postgresql": {
                    "use_pg_rewind": true,
                    // A new leader makes its followers' slots in its next round only, and writes would wait for that. Without slots, a
                    // follower that was away for longer than `wal_keep_size` is copied anew.
                    "use_slots": false,
                    "parameters": {
                        "max_connections": 100, "shared_buffers": "32MB", "jit": "off",
                        // A follower that found nobody leading asks again; writes wait for it. The default is five seconds.
                        "wal_retrieve_retry_interval": "100ms",
                        // The data directories are in memory.
                        "min_wal_size": "32MB", "max_wal_size": "64MB", "wal_keep_size": "32MB",
                    },
                },
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
        },
        "postgresql": {
            "listen": format!("{address}:5432"),
            "connect_address": format!("{address}:5432"),
            "data_dir": directory.join("data"),
            "bin_dir": programs(),
            "pgpass": directory.join("pgpass"),
            "authentication": {"superuser": user("postgres"), "replication": user("follower"), "rewind": user("rewind")},
            "parameters": {
                "unix_socket_directories": directory,
                "ssl": "on",
                "ssl_cert_file": directory.join("server.pem"),
                "ssl_key_file": directory.join("server-key.pem"),
                "ssl_ca_file": ca_file,
                "password_encryption": "scram-sha-256",
            },
            "pg_hba": [
                "hostssl all all 10.1.0.0/24 scram-sha-256",
                "hostssl replication follower 10.1.0.0/24 scram-sha-256",
            ],
        },
    })
}

fn members(cluster: &Value) -> &[Value] {
    cluster["members"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// How many nodes follow the leader, if one of them does so synchronously; else 0.
fn follow(cluster: &Value) -> usize {
    let members = members(cluster);
    let leader = members.iter().find(|member| member["role"] == "leader");
    let followers = members.iter().filter(|member| {
        let running = member["state"] == "running" || member["state"] == "streaming";
        running && member["role"] != "leader" && Some(&member["timeline"]) == leader.map(|leader| &leader["timeline"])
    });
    let synchronous = followers.clone().any(|member| member["role"] == "sync_standby");
    if synchronous { followers.count() } else { 0 }
}

/// A daemon on a node, as the user that databases run as, with its output in a file.
fn on_node(node: &str, program: &str, directory: &Path, log: &str) -> Command {
    let log = File::options().append(true).create(true).open(directory.join(log)).expect("writable");
    let (user, group) = unprivileged().expect("namespaces need root");
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{node}")).args(["-S", &user.to_string(), "-G", &group.to_string(), program]);
    command.current_dir(directory).env("HOME", directory);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
    command
}

fn ip(arguments: &str) {
    namespaces::run(Command::new("ip").args(arguments.split(' ')))
        .unwrap_or_else(|error| panic!("ip {arguments}: {error}"));
}

/// Status and body, if there is an answer at all within a second.
fn get(address: &str, port: u16, path: &str) -> Option<(u16, String)> {
    ask(address, port, &format!("GET {path} HTTP/1.0\r\n\r\n"), Duration::from_secs(1))
}

fn ask(address: &str, port: u16, request: &str, patience: Duration) -> Option<(u16, String)> {
    let address = SocketAddr::new(address.parse().expect("an address"), port);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

impl Drop for Patroni {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.crash();
            let _ = node.etcd.kill();
            let _ = node.etcd.wait();
        }
    }
}
