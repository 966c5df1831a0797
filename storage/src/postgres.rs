//! PostgreSQL: finding the leader among several hosts, TLS, and the hint that something has changed.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgSslMode};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::connection::{Begin, Connection, Value, bounded};
use crate::{CatalogStore, Engine, StorageError, statements};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How to reach a PostgreSQL catalog.
#[derive(Clone)]
pub struct PostgresOptions {
    /// Every server that may be or become the leader, as host and port.
    pub hosts: Vec<(String, u16)>,
    /// The database.
    pub database: String,
    /// The role to log in as.
    pub user: String,
    /// Its password; without one, the client certificate is what proves it.
    pub password: Option<SecretString>,
    /// How connections are protected.
    pub tls: Tls,
    /// Follow the catalog on a server that takes no changes, to spare the leader.
    pub prefer_follower: bool,
}

/// How connections to PostgreSQL are protected. There is nothing between the two: encryption without knowing to whom protects from
/// nobody.
#[derive(Clone)]
pub enum Tls {
    /// The server's certificate is checked, its name included.
    VerifyFull {
        /// PEM roots.
        ca_file: PathBuf,
        /// PEM certificate and key of this client.
        client: Option<(PathBuf, PathBuf)>,
    },
    /// Plain text, for trying things out.
    Off,
}

impl PostgresOptions {
    pub(crate) fn location(&self) -> String {
        let hosts: Vec<_> = self.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        format!("postgresql {}/{}", hosts.join(","), self.database)
    }

    fn options(&self, host: &str, port: u16) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass()
            .host(host)
            .port(port)
            .username(&self.user)
            .database(&self.database)
            .application_name("ekm")
            .extra_float_digits(None) // poolers refuse what they do not know
            .statement_cache_capacity(0)
            .disable_statement_logging();
        let options = match &self.password {
            Some(password) => options.password(password.expose_secret()),
            None => options,
        };
        match &self.tls {
            Tls::Off => options.ssl_mode(PgSslMode::Disable),
            Tls::VerifyFull { ca_file, client } => {
                let options = options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(ca_file);
                match client {
                    Some((certificate, key)) => options.ssl_client_cert(certificate).ssl_client_key(key),
                    None => options,
                }
            }
        }
    }

    /// A connection to the leader, or, if there is none and a follower will do, to whoever answers.
    pub(crate) async fn connect(&self, follower_will_do: bool, leader_only: bool) -> Result<Connection, StorageError> {
        let wants_follower = follower_will_do && self.prefer_follower && !leader_only;
        Ok(self.find(wants_follower, follower_will_do).await?.0)
    }

    /// Asks every server at once, and takes the first that is what is wanted: one that is gone holds nobody up. With `any` the others
    /// will do, if no such server answers in time.
    async fn find(&self, wants_follower: bool, any: bool) -> Result<(Connection, PgConnectOptions), StorageError> {
        let mut asked = tokio::task::JoinSet::new();
        for (host, port) in &self.hosts {
            let (options, name) = (self.options(host, *port), format!("{host}:{port}"));
            asked.spawn(async move {
                let connected = bounded(CONNECT_TIMEOUT, connect(options.clone())).await;
                connected
                    .map(|(connection, is_follower)| (connection, is_follower, options))
                    .map_err(|error| format!("{name}: {error}"))
            });
        }
        let (mut second_best, mut refusals) = (None, Vec::new());
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok((connection, is_follower, options))) if is_follower == wants_follower => {
                    return Ok((connection, options));
                }
                Ok(Ok((connection, _, options))) => second_best = Some((connection, options)),
                Ok(Err(refusal)) => refusals.push(refusal),
                Err(panicked) => refusals.push(panicked.to_string()),
            }
        }
        refusals.sort();
        match second_best {
            Some(found) if any => Ok(found),
            Some(_) => {
                refusals.push("the others only follow".into());
                Err(StorageError::NoLeader(refusals.join("; ")))
            }
            None => Err(StorageError::Unreachable(refusals.join("; "))),
        }
    }
}

async fn connect(options: PgConnectOptions) -> Result<(Connection, bool), StorageError> {
    let mut connection = Connection::Postgres(options.connect().await?);
    // In a transaction: outside of one a pooler may carry out another client's statement instead.
    connection.begin(Begin::Read).await?;
    let answer = connection.row(&statements::IS_FOLLOWER, &[]).await?;
    connection.rollback().await?;
    Ok((connection, answer == Some(vec![Value::Integer(1)])))
}

/// Hears that the catalog has changed. A hint only: what it misses, polling finds.
pub struct Listener(PgListener);

impl CatalogStore {
    /// Listens on the leader; followers refuse it. `None` for SQLite, which has nothing like it, and through a pooler: there it is the
    /// server's connection that would listen, and whoever gets it next would be told in the middle of something else.
    pub async fn listen(&self) -> Result<Option<Listener>, StorageError> {
        let Engine::Postgres(options) = &self.engine else { return Ok(None) };
        // Which of the hosts leads is found out by asking; the listener then needs a connection of its own.
        let (asked, leader) = options.find(false, false).await?;
        if bounded(CONNECT_TIMEOUT, is_pooled(&leader, asked)).await? {
            return Ok(None);
        }
        let listening = async {
            let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(leader);
            let mut listener = PgListener::connect_with(&pool).await?;
            // One that connects again by itself would find whoever is at that address, the leader or not.
            listener.ignore_pool_close_event(true);
            listener.eager_reconnect(false);
            listener.listen("ekm_catalog").await?;
            Ok(Some(Listener(listener)))
        };
        bounded(CONNECT_TIMEOUT, listening).await
    }
}

/// Whether two connections are ever served by one process of the server. A pooler gives the one that was used last, so a few attempts
/// are enough unless it is busy.
async fn is_pooled(options: &PgConnectOptions, mut one: Connection) -> Result<bool, StorageError> {
    let mut other = Connection::Postgres(options.connect().await?);
    let mut pooled = false;
    for _ in 0..5 {
        let [first, second] = [one.row(&statements::BACKEND, &[]).await?, other.row(&statements::BACKEND, &[]).await?];
        pooled |= first == second;
    }
    for connection in [one, other] {
        if let Connection::Postgres(connection) = connection {
            let _ = connection.close().await;
        }
    }
    Ok(pooled)
}

impl Listener {
    /// Waits for the next hint: the revision that there is now. An error means that the connection is gone, and hints with it.
    pub async fn changed(&mut self) -> Result<u64, StorageError> {
        match self.0.try_recv().await? {
            Some(hint) => Ok(hint.payload().parse().unwrap_or(u64::MAX)),
            None => Err(StorageError::Unreachable("the connection for notifications was lost".into())),
        }
    }
}
