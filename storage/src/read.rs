//! Reading the catalog.

use ekm_core::catalog::{SealedChange, SealedHead, SealedRow};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::connection::{Begin, Connection, Row, Value};
use crate::{CatalogStore, Lease, StorageError, statements};

/// How many changes one page of the log has at most.
pub(crate) const LOG_PAGE: u64 = 1000;
/// More rows than that are no delta: the whole catalog is read instead.
const DELTA_ROWS: usize = 2000;

/// A frontend as it has said last that it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// One process.
    pub instance: String,
    /// Its host.
    pub name: String,
    /// Its program's version.
    pub version: String,
    /// The revision that it serves from.
    pub revision: u64,
    /// When it said so, by its own clock.
    pub seen_at: OffsetDateTime,
    /// What it finds wrong with itself; mostly empty.
    pub unfit: String,
}

impl CatalogStore {
    /// The head as it is now; `None` if the database holds no catalog yet.
    pub async fn head(&self) -> Result<Option<SealedHead>, StorageError> {
        self.read(async |connection| head(connection).await).await
    }

    /// Every wrapped form of the catalog key, by what wraps it: `hsm` before `file`.
    pub async fn catalog_keys(&self) -> Result<Vec<(String, Vec<u8>)>, StorageError> {
        let rows = self.read(async |connection| connection.rows(&statements::CATALOG_KEYS, &[]).await).await?;
        rows.into_iter().map(|row| Ok((text(&row, 0)?.to_owned(), bytes(&row, 1)?.to_owned()))).collect()
    }

    /// Adds a wrapped form of the catalog key, or puts another in its place.
    pub async fn put_catalog_key(&self, wrapped_by: &str, wrapped: &[u8]) -> Result<(), StorageError> {
        let parameters = [wrapped_by.into(), wrapped.into()];
        self.note(async |connection| connection.execute(&statements::PUT_CATALOG_KEY, &parameters).await.map(drop))
            .await
    }

    /// The whole catalog in one consistent state, page by page.
    pub async fn read_all(
        &self,
        mut page: impl AsyncFnMut(Vec<SealedRow>) -> Result<(), StorageError>,
    ) -> Result<SealedHead, StorageError> {
        self.read(async |connection| {
            let head = head(connection).await?.ok_or(StorageError::Empty)?;
            let mut read = connection.records(&statements::RECORDS, &["".into(), "".into()]).await?;
            while let Some(last) = read.last {
                // The database looks for the next page while this one is worked on.
                let next = connection.records(&statements::RECORDS, &last);
                (read, ()) = tokio::try_join!(biased; next, page(read.rows))?;
            }
            Ok(head)
        })
        .await
    }

    /// The rows that are newer than a revision, and the head that goes with them; `None` if there are too many.
    pub async fn read_since(&self, revision: u64) -> Result<Option<(SealedHead, Vec<SealedRow>)>, StorageError> {
        self.read(async |connection| {
            let head = head(connection).await?.ok_or(StorageError::Empty)?;
            let rows = connection.records(&statements::RECORDS_SINCE, &[revision.into()]).await?.rows;
            if rows.len() > DELTA_ROWS {
                return Ok(None);
            }
            Ok(Some((head, rows)))
        })
        .await
    }

    /// A page of the log after a revision.
    pub async fn changes(&self, after: u64, limit: u64) -> Result<Vec<SealedChange>, StorageError> {
        self.read(async |connection| changes(connection, after, limit).await).await
    }

    /// The newest page of the log before a revision, newest first.
    pub async fn changes_before(&self, before: u64, limit: u64) -> Result<Vec<SealedChange>, StorageError> {
        let parameters = [before.into(), limit.min(LOG_PAGE).into()];
        let rows =
            self.newest(async |connection| connection.rows(&statements::CHANGES_BEFORE, &parameters).await).await?;
        rows.into_iter().map(sealed_change).collect()
    }

    /// One row, as new as it gets.
    pub async fn row(&self, kind: &str, id: Uuid) -> Result<Option<SealedRow>, StorageError> {
        self.newest(async |connection| row(connection, kind, id).await).await
    }

    /// A page of the rows of one kind, in the order of their ids.
    pub async fn rows(&self, kind: &str, after: Option<Uuid>, limit: u64) -> Result<Vec<SealedRow>, StorageError> {
        let after = after.map_or(String::new(), |id| id.to_string());
        let parameters = [kind.into(), after.into(), limit.into()];
        let page =
            self.newest(async |connection| connection.records(&statements::RECORDS_OF_KIND, &parameters).await).await?;
        Ok(page.rows)
    }

    /// What a path or name belongs to.
    pub async fn id_of(&self, kind: &str, name: &str) -> Result<Option<Uuid>, StorageError> {
        self.newest(async |connection| id_of(connection, kind, name).await).await
    }

    /// A page of the names of a kind after one, in their order, with what they belong to.
    pub async fn names(&self, kind: &str, after: &str, limit: u64) -> Result<Vec<(String, Uuid)>, StorageError> {
        let parameters = [kind.into(), after.into(), limit.into()];
        let rows = self.newest(async |connection| connection.rows(&statements::NAMES, &parameters).await).await?;
        rows.into_iter().map(|row| Ok((text(&row, 0)?.to_owned(), uuid("names", &row, 1)?))).collect()
    }

    /// What a request that was carried out already has answered.
    pub async fn request(&self, id: &str) -> Result<Option<(u64, Vec<u8>)>, StorageError> {
        self.newest(async |connection| request(connection, id).await).await
    }

    /// What has to be looked at by now, as kind and id.
    pub async fn due(&self, now: OffsetDateTime) -> Result<Vec<(String, Uuid)>, StorageError> {
        let parameters = [time_text(now).into()];
        let rows = self.newest(async |connection| connection.rows(&statements::DUE, &parameters).await).await?;
        // A row that makes no sense was not written by us, and must not keep the others waiting.
        Ok(rows.iter().filter_map(|row| Some((text(row, 0).ok()?.to_owned(), uuid("due", row, 1).ok()?))).collect())
    }

    /// What the database's clock says; `None` for SQLite, whose clock is this process's.
    pub async fn clock(&self) -> Result<Option<OffsetDateTime>, StorageError> {
        let row =
            self.newest(async |connection| {
                if connection.is_postgres() { connection.row(&statements::CLOCK, &[]).await } else { Ok(None) }
            })
            .await?;
        let seconds = row.map(|row| number(&row, 0)).transpose()?;
        Ok(seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds.cast_signed()).ok()))
    }

    /// Every frontend that has been there lately.
    pub async fn frontends(&self) -> Result<Vec<Frontend>, StorageError> {
        let rows = self.newest(async |connection| connection.rows(&statements::FRONTENDS, &[]).await).await?;
        let frontend = |row: &Row| {
            Some(Frontend {
                instance: text(row, 0).ok()?.to_owned(),
                name: text(row, 1).ok()?.to_owned(),
                version: text(row, 2).ok()?.to_owned(),
                revision: number(row, 3).ok()?,
                seen_at: OffsetDateTime::parse(text(row, 4).ok()?, &Rfc3339).ok()?,
                unfit: text(row, 5).ok()?.to_owned(),
            })
        };
        // As for what is due: one that makes no sense is nobody.
        Ok(rows.iter().filter_map(frontend).collect())
    }

    /// Says that a frontend is there, and forgets those that have not been for a day.
    pub async fn report(&self, frontend: &Frontend) -> Result<(), StorageError> {
        let (instance, name, version) = (&frontend.instance, &frontend.name, &frontend.version);
        let parameters = [
            instance.as_str().into(),
            name.as_str().into(),
            version.as_str().into(),
            frontend.revision.into(),
            time_text(frontend.seen_at).into(),
            frontend.unfit.as_str().into(),
        ];
        let yesterday = [time_text(frontend.seen_at - time::Duration::DAY).into()];
        self.note(async |connection| {
            connection.execute(&statements::PUT_FRONTEND, &parameters).await?;
            connection.execute(&statements::DELETE_OLD_FRONTENDS, &yesterday).await.map(drop)
        })
        .await
    }

    /// Takes a frontend that goes down in an orderly way off the list.
    pub async fn sign_off(&self, instance: &str) -> Result<(), StorageError> {
        let parameters = [instance.into()];
        self.note(async |connection| connection.execute(&statements::DELETE_FRONTEND, &parameters).await.map(drop))
            .await
    }

    /// In one transaction, on whatever server answers.
    async fn read<T>(
        &self,
        call: impl AsyncFnOnce(&mut Connection) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        in_transaction(self.reader().await?, Begin::Read, call).await
    }

    /// In one transaction, on the server that takes changes.
    async fn newest<T>(
        &self,
        call: impl AsyncFnOnce(&mut Connection) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        in_transaction(self.writer().await?, Begin::Read, call).await
    }

    /// Writes what is no change of the catalog, and does no harm if it is written twice.
    async fn note(
        &self,
        call: impl AsyncFnOnce(&mut Connection) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        in_transaction(self.writer().await?, Begin::Write, call).await
    }

    /// The head on the server that takes changes.
    pub async fn newest_head(&self) -> Result<Option<SealedHead>, StorageError> {
        self.newest(async |connection| head(connection).await).await
    }

    /// Lets go of the server that is followed; the next call looks for the leader if `leader` says so, else for what is preferred.
    pub async fn look_again(&self, leader: bool) {
        self.leader_only.store(leader, std::sync::atomic::Ordering::Relaxed);
        *self.reader.lock().await = None;
    }
}

/// What is read and what is noted. No statement stands alone: behind a pooler it could come to stand in the middle of somebody else's
/// transaction.
async fn in_transaction<T>(
    mut lease: Lease<'_>,
    begin: Begin,
    call: impl AsyncFnOnce(&mut Connection) -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    let connection = lease.connection();
    connection.begin(begin).await?;
    let answer = call(connection).await?;
    connection.script("COMMIT").await?;
    lease.sound();
    Ok(answer)
}

pub(crate) async fn head(connection: &mut Connection) -> Result<Option<SealedHead>, StorageError> {
    connection.row(&statements::HEAD, &[]).await?.map(sealed_head).transpose()
}

pub(crate) async fn row(connection: &mut Connection, kind: &str, id: Uuid) -> Result<Option<SealedRow>, StorageError> {
    Ok(connection.records(&statements::RECORD, &[kind.into(), id.into()]).await?.rows.pop())
}

pub(crate) async fn id_of(connection: &mut Connection, kind: &str, name: &str) -> Result<Option<Uuid>, StorageError> {
    let row = connection.row(&statements::NAME, &[kind.into(), name.into()]).await?;
    row.map(|row| uuid("names", &row, 0)).transpose()
}

pub(crate) async fn changes(
    connection: &mut Connection,
    after: u64,
    limit: u64,
) -> Result<Vec<SealedChange>, StorageError> {
    let rows = connection.rows(&statements::CHANGES, &[after.into(), limit.min(LOG_PAGE).into()]).await?;
    rows.into_iter().map(sealed_change).collect()
}

pub(crate) async fn request(connection: &mut Connection, id: &str) -> Result<Option<(u64, Vec<u8>)>, StorageError> {
    let row = connection.row(&statements::REQUEST, &[id.into()]).await?;
    row.map(|row| Ok((number(&row, 0)?, bytes(&row, 1)?.to_owned()))).transpose()
}

pub(crate) fn sealed_head(row: Row) -> Result<SealedHead, StorageError> {
    Ok(SealedHead { catalog: uuid("head", &row, 0)?, revision: number(&row, 1)?, body: bytes(&row, 2)?.to_owned() })
}

fn sealed_change(row: Row) -> Result<SealedChange, StorageError> {
    Ok(SealedChange { revision: number(&row, 0)?, body: bytes(&row, 1)?.to_owned() })
}

/// Times as text that sorts: RFC 3339 in UTC, whole seconds.
pub(crate) fn time_text(time: OffsetDateTime) -> String {
    let time = time.to_offset(time::UtcOffset::UTC).truncate_to_second();
    time.format(&Rfc3339).expect("RFC 3339 has room for every time until the year 9999")
}

fn text(row: &Row, column: usize) -> Result<&str, StorageError> {
    match row.get(column) {
        Some(Value::Text(text)) => Ok(text),
        _ => Err(shape()),
    }
}

fn bytes(row: &Row, column: usize) -> Result<&[u8], StorageError> {
    match row.get(column) {
        Some(Value::Bytes(bytes)) => Ok(bytes),
        _ => Err(shape()),
    }
}

pub(crate) fn number(row: &Row, column: usize) -> Result<u64, StorageError> {
    match row.get(column) {
        Some(Value::Integer(number)) => {
            u64::try_from(*number).map_err(|_| refused("", row, &format!("the number {number} is negative")))
        }
        _ => Err(shape()),
    }
}

fn uuid(table: &'static str, row: &Row, column: usize) -> Result<Uuid, StorageError> {
    text(row, column)?.parse().map_err(|error: uuid::Error| refused(table, row, &error.to_string()))
}

fn refused(table: &'static str, row: &Row, problem: &str) -> StorageError {
    let row = row.iter().find_map(|value| match value {
        Value::Text(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Bytes(_) => None,
    });
    StorageError::Row { table, row: row.unwrap_or_default(), problem: problem.into() }
}

/// A statement says what its columns hold, so this cannot be.
fn shape() -> StorageError {
    StorageError::Database(sqlx::Error::Decode("a column does not hold what its statement says".into()))
}
