//! Changing the catalog: one transaction a change, one writer at a time.

use ekm_core::catalog::{SealedChange, SealedHead, SealedRow};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::connection::Begin;
use crate::read::{LOG_PAGE, changes, id_of, number, request, row, sealed_head, time_text};
use crate::{CatalogStore, Lease, StorageError, statements};

/// A change under way: it holds the head's lock until it is committed or dropped, so everything that it reads stays so.
pub struct Write<'a> {
    lease: Lease<'a>,
    head: Option<SealedHead>,
}

/// What a change writes.
pub struct Commit<'a> {
    /// The head after it.
    pub head: &'a SealedHead,
    /// The rows, new and changed.
    pub rows: &'a [SealedRow],
    /// Paths and names that it gives out.
    pub names: &'a [Name<'a>],
    /// Its entry in the log.
    pub change: &'a SealedChange,
    /// When its rows have to be looked at again; `None` for never.
    pub due: &'a [(&'static str, Uuid, Option<OffsetDateTime>)],
    /// The request's id, and what to answer if it is repeated.
    pub request: Option<(&'a str, &'a [u8])>,
}

/// A path or name that is given out for ever.
pub struct Name<'a> {
    /// The kind of row that it belongs to.
    pub kind: &'static str,
    /// The path or name.
    pub name: &'a str,
    /// The row.
    pub id: Uuid,
}

impl CatalogStore {
    /// Begins a change: waits until nobody else is changing anything.
    pub async fn write(&self) -> Result<Write<'_>, StorageError> {
        let mut lease = self.writer().await?;
        let connection = lease.connection();
        connection.begin(Begin::Write).await?;
        let head = connection.row(&statements::LOCK_HEAD, &[]).await?.map(sealed_head).transpose()?;
        Ok(Write { lease, head })
    }
}

impl CatalogStore {
    /// Adds to how often key versions have wrapped, and says how often that is now, in the same order. Not a change of the catalog.
    pub async fn add_wraps(&self, wraps: &[(Uuid, u32, u64)]) -> Result<Vec<u64>, StorageError> {
        let mut lease = self.writer().await?;
        let connection = lease.connection();
        connection.begin(Begin::Write).await?;
        let mut totals = Vec::new();
        // In one order for all frontends, so that two do not wait for each other's rows.
        let mut order: Vec<usize> = (0..wraps.len()).collect();
        order.sort_by_key(|place| wraps[*place]);
        for place in &order {
            let (key, version, count) = wraps[*place];
            let parameters = [key.into(), u64::from(version).into(), count.into()];
            let row = connection.row(&statements::ADD_WRAPS, &parameters).await?;
            totals.push((*place, row.map_or(Ok(0), |row| number(&row, 0))?));
        }
        connection.commit().await?;
        lease.sound();
        totals.sort_unstable();
        Ok(totals.into_iter().map(|(_, total)| total).collect())
    }
}

impl Write<'_> {
    /// The head before the change; `None` if there is no catalog yet.
    pub fn head(&self) -> Option<&SealedHead> {
        self.head.as_ref()
    }

    /// One row.
    pub async fn row(&mut self, kind: &str, id: Uuid) -> Result<Option<SealedRow>, StorageError> {
        row(self.lease.connection(), kind, id).await
    }

    /// A page of the log after a revision.
    pub async fn changes(&mut self, after: u64) -> Result<Vec<SealedChange>, StorageError> {
        changes(self.lease.connection(), after, LOG_PAGE).await
    }

    /// What a path or name belongs to.
    pub async fn id_of(&mut self, kind: &str, name: &str) -> Result<Option<Uuid>, StorageError> {
        id_of(self.lease.connection(), kind, name).await
    }

    /// What a request that was carried out already has answered.
    pub async fn request(&mut self, id: &str) -> Result<Option<(u64, Vec<u8>)>, StorageError> {
        request(self.lease.connection(), id).await
    }

    /// Writes everything, and makes it last.
    pub async fn commit(mut self, commit: Commit<'_>) -> Result<(), StorageError> {
        let connection = self.lease.connection();
        let head = commit.head;
        match &self.head {
            Some(_) => {
                let parameters = [head.revision.into(), head.body.as_slice().into()];
                connection.execute(&statements::UPDATE_HEAD, &parameters).await?;
            }
            None => {
                let parameters = [head.catalog.into(), head.revision.into(), head.body.as_slice().into()];
                connection.execute(&statements::INSERT_HEAD, &parameters).await?;
            }
        }
        for name in commit.names {
            let parameters = [name.kind.into(), name.name.into(), name.id.into()];
            if connection.execute(&statements::INSERT_NAME, &parameters).await? == 0 {
                return Err(StorageError::Taken(name.name.into()));
            }
        }
        for row in commit.rows {
            let parameters = [row.kind.as_ref().into(), row.id.into(), row.revision.into(), row.body.as_slice().into()];
            connection.execute(&statements::PUT_RECORD, &parameters).await?;
        }
        for (kind, id, at) in commit.due {
            match at {
                Some(at) => {
                    let parameters = [(*kind).into(), (*id).into(), time_text(*at).into()];
                    connection.execute(&statements::PUT_DUE, &parameters).await?;
                }
                None => drop(connection.execute(&statements::DELETE_DUE, &[(*kind).into(), (*id).into()]).await?),
            }
        }
        let change = commit.change;
        let parameters = [change.revision.into(), change.body.as_slice().into()];
        connection.execute(&statements::INSERT_CHANGE, &parameters).await?;
        if let Some((id, body)) = commit.request {
            let parameters = [id.into(), change.revision.into(), body.into()];
            connection.execute(&statements::INSERT_REQUEST, &parameters).await?;
        }
        if connection.is_postgres() {
            connection.rows(&statements::NOTIFY, &[change.revision.to_string().into()]).await?;
        }
        connection.commit().await?;
        self.lease.sound();
        Ok(())
    }

    /// Takes everything back, in an orderly way. Dropping does so, too, at the price of the connection.
    pub async fn abandon(mut self) -> Result<(), StorageError> {
        self.lease.connection().rollback().await?;
        self.lease.sound();
        Ok(())
    }
}
