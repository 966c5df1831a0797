//! PostgreSQL as a child process: TLS, passwords with SCRAM, a database for every test.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::authority::Authority;
use crate::guardian::Guardian;

/// How long anything may take on a loaded machine before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The cluster that the tests of one process share; it ends with the process. Its data need not survive a power cut.
static SHARED: LazyLock<Cluster> =
    LazyLock::new(|| Cluster::start_own_with(&["fsync = off", "full_page_writes = off"]));

/// Where to find a database, and as whom.
#[derive(Clone, Debug)]
pub struct Database {
    /// `host:port`, more than one for a cluster with followers.
    pub hosts: Vec<String>,
    /// The database's name.
    pub name: String,
    /// The user, who owns the database.
    pub user: String,
    /// The password.
    pub password: String,
    /// The same in a file, without a line feed.
    pub password_file: PathBuf,
    /// The authority that signed the servers' certificates.
    pub ca_file: PathBuf,
}

/// A running cluster ("cluster" in PostgreSQL's sense: one server with its databases). It and its directory vanish when dropped.
pub struct Cluster {
    postmaster: Option<Child>,
    port: u16,
    authority: Arc<Authority>,
    guardian: Guardian,
    databases: AtomicU32,
}

/// A new database in the cluster that all tests of the process share.
pub fn database() -> Database {
    SHARED.database()
}

/// The directory of the newest installed PostgreSQL's programs.
pub fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let versions = versions.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let newest: Option<u32> = versions.max();
    let newest = newest.expect("PostgreSQL is not installed: run 'sh scripts/setup.sh test', or 'make test'");
    format!("/usr/lib/postgresql/{newest}/bin").into()
}

/// The user and group ids to run databases with, if this is root, whom PostgreSQL refuses.
pub fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("readable");
    let user = users.lines().find_map(|line| line.strip_prefix("postgres:")).expect("the package makes a user");
    let mut ids = user.split(':').skip(1).map(|id| id.parse().expect("a number"));
    Some((ids.next().expect("a user"), ids.next().expect("a group")))
}

/// A port on loopback that was free just now, and below those that the kernel gives to outgoing connections.
pub fn free_port() -> u16 {
    loop {
        let random = RandomState::new().build_hasher().finish() % 12_000;
        let port = 20_000 + u16::try_from(random).expect("small");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A directory or file for the user that databases run as.
pub(crate) fn give_away(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    if let Some((user, group)) = unprivileged() {
        std::os::unix::fs::chown(path, Some(user), Some(group)).expect("this is root");
    }
}

/// A command to run as the user that databases run as, in this directory, by which the guardian knows it.
fn command(program: impl AsRef<std::ffi::OsStr>, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env("HOME", directory).stdin(Stdio::null());
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group);
    }
    command
}

/// Runs a command to its end, with its standard output, or its standard error if it failed.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().expect("the program is installed");
    let text = |bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Has `psql` run these statements, each in a transaction of its own, and print columns separated by `|`.
fn statements<'a>(psql: &'a mut Command, sql: &str) -> &'a mut Command {
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
    psql.args(sql.split_inclusive(';').flat_map(|statement| ["-c", statement]))
}

impl Cluster {
    /// A cluster for a test that stops, kills or floods it.
    pub fn start_own() -> Self {
        Self::start_own_with(&[])
    }

    /// The same with further lines for `postgresql.conf`.
    pub fn start_own_with(settings: &[&str]) -> Self {
        let guardian = Guardian::new("postgres");
        let authority = Arc::new(Authority::new(guardian.directory()));
        give_away(guardian.directory(), 0o755);
        let data = guardian.directory().join("data");
        let mut initdb = command(programs().join("initdb"), guardian.directory());
        initdb.args(["--no-sync", "--no-locale", "--encoding=UTF8", "--auth=trust", "--username=postgres"]);
        run(initdb.arg("--pgdata").arg(&data)).expect("initdb");
        // Others reach the socket's directory, but it is writable by one user; so `trust` is for the test alone.
        let access = "local all all trust\nlocal replication all trust\n\
                      hostssl all all 127.0.0.1/32 scram-sha-256\nhostssl replication all 127.0.0.1/32 scram-sha-256\n";
        fs::write(data.join("pg_hba.conf"), access).expect("writable");
        Self::start_on(guardian, authority, settings)
    }

    /// Starts on a data directory that is there.
    fn start_on(guardian: Guardian, authority: Arc<Authority>, settings: &[&str]) -> Self {
        let (certificate, key) = authority.issue(guardian.directory(), "server", &["localhost", "127.0.0.1"]);
        give_away(&certificate, 0o644);
        give_away(&key, 0o600);
        let sockets = guardian.directory().join("sockets");
        fs::create_dir(&sockets).expect("writable");
        give_away(&sockets, 0o700);
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n\
             ssl_ca_file = '{}'\nmax_connections = 200\nshared_buffers = 32MB\nmax_wal_size = 256MB\njit = off\n\
             dynamic_shared_memory_type = mmap # files in the directory, gone with it\n{}\n",
            sockets.display(),
            certificate.display(),
            key.display(),
            authority.ca_file.display(),
            settings.join("\n"),
        );
        fs::write(guardian.directory().join("data/postgresql.auto.conf"), settings).expect("writable");
        let mut cluster = Self { postmaster: None, port: 0, authority, guardian, databases: AtomicU32::new(0) };
        // Another process may take the port first.
        for _ in 0..10 {
            cluster.port = free_port();
            if cluster.try_start().is_ok() {
                return cluster;
            }
        }
        panic!("PostgreSQL does not start:\n{}", cluster.log());
    }

    fn try_start(&mut self) -> Result<(), String> {
        assert!(self.postmaster.is_none(), "it runs already");
        let mut postgres = command(programs().join("postgres"), self.guardian.directory());
        let log = File::options().append(true).create(true).open(self.guardian.directory().join("log"));
        let log = log.expect("writable");
        postgres.arg("-D").arg(self.data()).arg("-p").arg(self.port.to_string());
        postgres.stdout(Stdio::null()).stderr(log).process_group(0); // not in the group that Ctrl-C ends
        let mut postmaster = postgres.spawn().expect("PostgreSQL is installed");
        let begun = Instant::now();
        while !self.is_ready(postmaster.id()) {
            if postmaster.try_wait().expect("a child").is_some() || begun.elapsed() > PATIENCE {
                let _ = postmaster.kill();
                let _ = postmaster.wait();
                return Err(format!("PostgreSQL does not start:\n{}", self.log()));
            }
            sleep(Duration::from_millis(5));
        }
        self.postmaster = Some(postmaster);
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.guardian.directory().join("data")
    }

    /// Whether the file that this process writes about itself says so.
    fn is_ready(&self, id: u32) -> bool {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines();
        lines.next() == Some(&id.to_string()) && lines.nth(6).is_some_and(|line| line.starts_with("ready"))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.guardian.directory().join("log")).unwrap_or_default()
    }

    /// The port on loopback, the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority that its clients trust.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A new, empty database, with a user of its own who owns it.
    pub fn database(&self) -> Database {
        let name = format!("ekm{}", self.databases.fetch_add(1, Ordering::Relaxed) + 1);
        let password = format!("{:016x}", RandomState::new().build_hasher().finish());
        self.psql("postgres", &format!("CREATE ROLE {name} LOGIN PASSWORD '{password}'"));
        self.psql("postgres", &format!("CREATE DATABASE {name} OWNER {name} TEMPLATE template0"));
        let password_file = self.guardian.directory().join(format!("{name}.password"));
        fs::write(&password_file, &password).expect("writable");
        fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600)).expect("it is ours");
        Database {
            hosts: vec![format!("127.0.0.1:{}", self.port)],
            user: name.clone(),
            name,
            password,
            password_file,
            ca_file: self.authority.ca_file.clone(),
        }
    }

    /// The same database, as this follower or leader shows it.
    pub fn showing(&self, database: &Database) -> Database {
        Database { hosts: vec![format!("127.0.0.1:{}", self.port)], ..database.clone() }
    }

    /// Runs SQL as the superuser, each statement in a transaction of its own, and returns what it printed, columns separated by `|`.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let mut psql = command(programs().join("psql"), self.guardian.directory());
        psql.args(["-U", "postgres", "-d", database, "-h"]);
        psql.arg(self.guardian.directory().join("sockets")).arg("-p").arg(self.port.to_string());
        run(statements(&mut psql, sql)).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Stops it in an orderly way, closing its connections.
    pub fn stop(&mut self) {
        self.signal(Signal::INT);
        self.wait();
    }

    /// Starts it again, on the same port.
    pub fn start(&mut self) {
        let begun = Instant::now();
        // After a kill, its last processes may still be ending.
        while let Err(error) = self.try_start() {
            assert!(begun.elapsed() < PATIENCE, "{error}");
            sleep(Duration::from_millis(100));
        }
    }

    /// Kills the postmaster; its other processes notice and end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// Freezes all its processes: connections stay open, and nothing answers.
    pub fn pause(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.signal_all(Signal::CONT);
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.postmaster.as_ref().expect("it runs"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it is there");
    }

    /// The postmaster first, so that no child is new while they are listed.
    fn signal_all(&self, signal: Signal) {
        self.signal(signal);
        let pid = self.pid().as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("readable");
        for child in children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?)) {
            let _ = kill_process(child, signal); // it may have ended by itself
        }
    }

    fn wait(&mut self) {
        let mut postmaster = self.postmaster.take().expect("it runs");
        let begun = Instant::now();
        while postmaster.try_wait().expect("a child").is_none() {
            assert!(begun.elapsed() < PATIENCE, "PostgreSQL does not end:\n{}", self.log());
            sleep(Duration::from_millis(5));
        }
    }

    /// A follower of this one, by streaming replication, not synchronous. Its clients trust the same authority, while this one is there.
    pub fn follower(&self) -> Self {
        let guardian = Guardian::new("postgres");
        give_away(guardian.directory(), 0o755);
        let mut copy = command(programs().join("pg_basebackup"), guardian.directory());
        copy.args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf", "-U", "postgres"]);
        copy.arg("-h").arg(self.guardian.directory().join("sockets")).arg("-p").arg(self.port.to_string());
        run(copy.arg("-D").arg(guardian.directory().join("data"))).expect("pg_basebackup");
        // What it wrote for itself goes before what `start_on` writes.
        let settings = fs::read_to_string(guardian.directory().join("data/postgresql.auto.conf")).expect("readable");
        let upstream = settings.lines().rfind(|line| line.starts_with("primary_conninfo")).expect("it was written");
        Self::start_on(guardian, Arc::clone(&self.authority), &["hot_standby = on", upstream])
    }

    /// Makes a follower a leader.
    pub fn promote(&self) {
        assert_eq!(self.psql("postgres", "SELECT pg_promote(true, 60)"), "t");
    }

    /// Waits until this follower has everything that its leader has now.
    pub fn catch_up_with(&self, leader: &Self) {
        let target = leader.psql("postgres", "SELECT pg_current_wal_lsn()");
        let begun = Instant::now();
        while self.psql("postgres", &format!("SELECT pg_last_wal_replay_lsn() >= '{target}'")) != "t" {
            assert!(begun.elapsed() < PATIENCE, "the follower does not follow:\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }
}

impl Database {
    /// Everything that `psql` and other programs of PostgreSQL need to know; the server's certificate is verified.
    /// With more than one host, the one that takes writes.
    pub fn url(&self) -> String {
        let Self { hosts, name, user, password, ca_file, .. } = self;
        let (hosts, ca_file) = (hosts.join(","), ca_file.display());
        format!(
            "postgresql://{user}:{password}@{hosts}/{name}?sslmode=verify-full&sslrootcert={ca_file}\
             &target_session_attrs={}",
            if self.hosts.len() > 1 { "read-write" } else { "any" }
        )
    }

    /// Runs SQL, each statement in a transaction of its own, and returns what it printed, columns separated by `|`; or the error.
    pub fn try_psql(&self, sql: &str) -> Result<String, String> {
        let mut psql = Command::new(programs().join("psql"));
        psql.arg("-d").arg(self.url()).env("PGCONNECT_TIMEOUT", "10").stdin(Stdio::null());
        run(statements(&mut psql, sql))
    }

    /// The same for SQL that must work.
    pub fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Everything in it, as text.
    pub fn dump(&self) -> String {
        let mut dump = Command::new(programs().join("pg_dump"));
        run(dump.arg("--dbname").arg(self.url()).stdin(Stdio::null())).expect("pg_dump")
    }
}

/// pgbouncer in front of a database, pooling transactions, with TLS on both sides. It ends when dropped.
pub struct PgBouncer {
    child: Child,
    /// The database, through it.
    pub database: Database,
    _guardian: Guardian,
}

impl PgBouncer {
    /// In front of this database's first host.
    pub fn before(database: &Database) -> Self {
        for _ in 0..10 {
            if let Some(bouncer) = Self::try_before(database) {
                return bouncer;
            }
        }
        panic!("pgbouncer does not start");
    }

    fn try_before(database: &Database) -> Option<Self> {
        let guardian = Guardian::new("pgbouncer");
        let directory = guardian.directory();
        let authority = Authority::new(directory);
        let (certificate, key) = authority.issue(directory, "bouncer", &["localhost", "127.0.0.1"]);
        let (host, server_port) = database.hosts[0].split_once(':').expect("host:port");
        let Database { name, user, password, .. } = database;
        let (users, config, port) = (directory.join("users"), directory.join("pgbouncer.ini"), free_port());
        fs::write(&users, format!("\"{user}\" \"{password}\"\n")).expect("writable");
        let settings = format!(
            "[databases]\n{name} = host={host} port={server_port} dbname={name}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\npool_mode = transaction\n\
             auth_type = scram-sha-256\nauth_file = {}\nclient_tls_sslmode = require\nclient_tls_cert_file = {}\n\
             client_tls_key_file = {}\nserver_tls_sslmode = verify-full\nserver_tls_ca_file = {}\n",
            users.display(),
            certificate.display(),
            key.display(),
            database.ca_file.display(),
        );
        fs::write(&config, settings).expect("writable");
        for file in [&users, &config, &certificate, &key] {
            give_away(file, 0o600);
        }
        let mut bouncer = command("/usr/sbin/pgbouncer", directory);
        bouncer.arg("-q").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let child =
            bouncer.spawn().expect("pgbouncer is not installed: run 'sh scripts/setup.sh test', or 'make test'");
        let hosts = vec![format!("127.0.0.1:{port}")];
        let through = Database { hosts, ca_file: authority.ca_file, ..database.clone() };
        let mut bouncer = Self { child, database: through, _guardian: guardian };
        let begun = Instant::now();
        while bouncer.child.try_wait().expect("a child").is_none() && begun.elapsed() < PATIENCE {
            if bouncer.database.try_psql("SELECT 1").is_ok() {
                return Some(bouncer);
            }
            sleep(Duration::from_millis(20));
        }
        None
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut postmaster) = self.postmaster.take() {
            // Killed, it would leave a segment of shared memory; frozen, it would not hear.
            for signal in [Signal::QUIT, Signal::CONT] {
                let _ = kill_process(Pid::from_child(&postmaster), signal);
            }
            let _ = postmaster.wait();
        }
    }
}
