//! One connection to either engine, with the few things that a catalog asks of it. The statements are the same for both.

use std::time::Duration;

use ekm_core::catalog::{Kind, SealedRow};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Executor, Row as _};
use uuid::Uuid;

use crate::{CALL_TIMEOUT, StorageError};

/// A value of a parameter or a column.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Uuid> for Value {
    fn from(id: Uuid) -> Self {
        Self::Text(id.to_string())
    }
}

impl From<&[u8]> for Value {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// What a column holds.
#[derive(Clone, Copy)]
pub(crate) enum Column {
    Integer,
    Text,
    Bytes,
}

/// A row, by the columns that were asked for.
pub(crate) type Row = Vec<Value>;

/// A statement: valid in both engines, its parameters `$1`, `$2` …, and what its columns hold.
pub(crate) struct Statement {
    pub(crate) sql: &'static str,
    pub(crate) columns: &'static [Column],
}

pub(crate) enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// Binds the parameters of a query of either engine.
macro_rules! bound {
    ($statement:expr, $parameters:expr) => {
        // Not kept by the server: a pooler in front would give the next transaction another server connection.
        $parameters.iter().fold(sqlx::query($statement.sql).persistent(false), |query, value| match value {
            Value::Integer(number) => query.bind(*number),
            Value::Text(text) => query.bind(text.as_str()),
            Value::Bytes(bytes) => query.bind(bytes.as_slice()),
        })
    };
}

macro_rules! columns {
    ($row:expr, $columns:expr) => {
        $columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                Ok(match column {
                    Column::Integer => Value::Integer($row.try_get::<i64, _>(index)?),
                    Column::Text => Value::Text($row.try_get::<String, _>(index)?),
                    Column::Bytes => Value::Bytes($row.try_get::<Vec<u8>, _>(index)?),
                })
            })
            .collect::<Result<Row, sqlx::Error>>()
    };
}

/// A page of `records`.
pub(crate) struct Page {
    pub(crate) rows: Vec<SealedRow>,
    /// Kind and id of the last one, as they are written.
    pub(crate) last: Option<[Value; 2]>,
}

/// Rows of `kind, id, revision, body`, taken as they come: a whole catalog is read this way.
macro_rules! page {
    ($rows:expr) => {{
        let mut page = Page { rows: Vec::new(), last: None };
        let rows = $rows;
        for row in &rows {
            let (kind, id): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
            page.rows.push(sealed_row(kind, id, row.try_get(2)?, row.try_get(3)?));
            if page.rows.len() == rows.len() {
                page.last = Some([kind.into(), id.into()]);
            }
        }
        page
    }};
}

/// What makes no sense gets an id or a revision that no row of ours has, and is refused with its row where rows are verified: here it
/// would keep all others from being read.
fn sealed_row(kind: &str, written: &str, revision: i64, body: Vec<u8>) -> SealedRow {
    let kind = Kind::from_name(kind).map_or_else(|| kind.to_owned().into(), |kind| kind.name().into());
    // Written in another way, it would be a second row under the same id.
    let canonical = |id: &Uuid| id.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == written;
    let id = written.parse().ok().filter(canonical).unwrap_or(Uuid::max());
    SealedRow { kind, id, revision: revision.cast_unsigned(), body }
}

/// How a transaction begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    /// One consistent state, whatever others write meanwhile.
    Read,
    /// One writer at a time.
    Write,
}

impl Connection {
    /// Rows of a query.
    pub(crate) async fn rows(&mut self, statement: &Statement, parameters: &[Value]) -> Result<Vec<Row>, StorageError> {
        bounded(CALL_TIMEOUT, async {
            Ok(match self {
                Self::Sqlite(connection) => {
                    let rows = bound!(statement, parameters).fetch_all(connection).await?;
                    rows.iter().map(|row| columns!(row, statement.columns)).collect::<Result<_, _>>()?
                }
                Self::Postgres(connection) => {
                    let rows = bound!(statement, parameters).fetch_all(connection).await?;
                    rows.iter().map(|row| columns!(row, statement.columns)).collect::<Result<_, _>>()?
                }
            })
        })
        .await
    }

    /// As [`Self::rows`], for a query of `records`.
    pub(crate) async fn records(&mut self, statement: &Statement, parameters: &[Value]) -> Result<Page, StorageError> {
        bounded(CALL_TIMEOUT, async {
            Ok(match self {
                Self::Sqlite(connection) => page!(bound!(statement, parameters).fetch_all(connection).await?),
                Self::Postgres(connection) => page!(bound!(statement, parameters).fetch_all(connection).await?),
            })
        })
        .await
    }

    /// The first row of a query, if there is one.
    pub(crate) async fn row(
        &mut self,
        statement: &Statement,
        parameters: &[Value],
    ) -> Result<Option<Row>, StorageError> {
        Ok(self.rows(statement, parameters).await?.into_iter().next())
    }

    /// Carries out; returns how many rows it concerned.
    pub(crate) async fn execute(&mut self, statement: &Statement, parameters: &[Value]) -> Result<u64, StorageError> {
        bounded(CALL_TIMEOUT, async {
            Ok(match self {
                Self::Sqlite(connection) => bound!(statement, parameters).execute(connection).await?.rows_affected(),
                Self::Postgres(connection) => bound!(statement, parameters).execute(connection).await?.rows_affected(),
            })
        })
        .await
    }

    /// Statements without parameters, one after the other.
    pub(crate) async fn script(&mut self, sql: &'static str) -> Result<(), StorageError> {
        bounded(CALL_TIMEOUT, async {
            let carried_out = match self {
                Self::Sqlite(connection) => connection.execute(sqlx::raw_sql(sql)).await.map(|_| ()),
                Self::Postgres(connection) => connection.execute(sqlx::raw_sql(sql)).await.map(|_| ()),
            };
            Ok(carried_out?)
        })
        .await
    }

    /// Begins a transaction.
    pub(crate) async fn begin(&mut self, begin: Begin) -> Result<(), StorageError> {
        let sql = match (&self, begin) {
            (Self::Sqlite(_), Begin::Read) => "BEGIN",
            // A transaction that begins as a reader cannot wait for its turn to write.
            (Self::Sqlite(_), Begin::Write) => "BEGIN IMMEDIATE",
            (Self::Postgres(_), Begin::Read) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            // Here and not in the connection's options, which a pooler would refuse. The server gives up before the caller does.
            (Self::Postgres(_), Begin::Write) => {
                "BEGIN; SET LOCAL statement_timeout = '4s'; SET LOCAL lock_timeout = '3s'; \
                 SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL synchronous_commit = on"
            }
        };
        self.script(sql).await
    }

    /// Makes what was written last. When this fails nobody knows whether it did.
    pub(crate) async fn commit(&mut self) -> Result<(), StorageError> {
        self.script("COMMIT").await.map_err(|error| match error {
            // What the server says itself is certain.
            StorageError::Database(sqlx::Error::Database(said)) => StorageError::Database(sqlx::Error::Database(said)),
            other => StorageError::CommitUnknown(other.to_string()),
        })
    }

    /// Takes back what was not committed.
    pub(crate) async fn rollback(&mut self) -> Result<(), StorageError> {
        self.script("ROLLBACK").await
    }

    /// Whether a statement is valid, without carrying it out.
    #[cfg(test)]
    pub(crate) async fn prepare(&mut self, statement: &Statement) -> Result<usize, StorageError> {
        use sqlx::{SqlSafeStr, Statement as _};
        let sql = statement.sql.into_sql_str();
        Ok(match self {
            Self::Sqlite(connection) => connection.prepare(sql).await?.columns().len(),
            Self::Postgres(connection) => connection.prepare(sql).await?.columns().len(),
        })
    }

    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }
}

/// sqlx has no time-outs of its own: a server that went away without a word would be waited for for ever.
pub(crate) async fn bounded<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, StorageError>>,
) -> Result<T, StorageError> {
    tokio::time::timeout(limit, call).await.unwrap_or(Err(StorageError::Timeout(limit)))
}
