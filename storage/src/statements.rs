//! Every statement, valid in both engines; a test prepares each on both.

use crate::connection::Column::{Bytes, Integer, Text};
use crate::connection::Statement;

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:literal => [$($column:ident),*];)*) => {
        $($(#[$doc])* pub(crate) const $name: Statement = Statement { sql: $sql, columns: &[$($column),*] };)*

        #[cfg(test)]
        pub(crate) const ALL: &[&Statement] = &[$(&$name),*];
    };
}

statements! {
    HEAD = "SELECT catalog_id, revision, body FROM head WHERE singleton = 1" => [Text, Integer, Bytes];
    /// Waits for its turn: the row's lock orders all changes, so that revisions have no gaps and are committed in their order.
    LOCK_HEAD = "UPDATE head SET revision = revision WHERE singleton = 1 RETURNING catalog_id, revision, body" => [Text, Integer, Bytes];
    INSERT_HEAD = "INSERT INTO head (singleton, catalog_id, revision, body) VALUES (1, $1, $2, $3)" => [];
    UPDATE_HEAD = "UPDATE head SET revision = $1, body = $2 WHERE singleton = 1" => [];

    CATALOG_KEYS = "SELECT wrapped_by, wrapped FROM catalog_keys ORDER BY wrapped_by DESC" => [Text, Bytes];
    PUT_CATALOG_KEY = "INSERT INTO catalog_keys (wrapped_by, wrapped) VALUES ($1, $2)
        ON CONFLICT (wrapped_by) DO UPDATE SET wrapped = excluded.wrapped" => [];

    /// A page of everything, in the order of the primary key.
    RECORDS = "SELECT kind, id, revision, body FROM records WHERE (kind, id) > ($1, $2) ORDER BY kind, id LIMIT 2000"
        => [Text, Text, Integer, Bytes];
    RECORDS_SINCE = "SELECT kind, id, revision, body FROM records WHERE revision > $1 ORDER BY revision, kind, id LIMIT 2001"
        => [Text, Text, Integer, Bytes];
    RECORD = "SELECT kind, id, revision, body FROM records WHERE kind = $1 AND id = $2" => [Text, Text, Integer, Bytes];
    RECORDS_OF_KIND = "SELECT kind, id, revision, body FROM records WHERE kind = $1 AND id > $2 ORDER BY id LIMIT $3"
        => [Text, Text, Integer, Bytes];
    PUT_RECORD = "INSERT INTO records (kind, id, revision, body) VALUES ($1, $2, $3, $4)
        ON CONFLICT (kind, id) DO UPDATE SET revision = excluded.revision, body = excluded.body" => [];

    NAME = "SELECT id FROM names WHERE kind = $1 AND name = $2" => [Text];
    NAMES = "SELECT name, id FROM names WHERE kind = $1 AND name > $2 ORDER BY name LIMIT $3" => [Text, Text];
    INSERT_NAME = "INSERT INTO names (kind, name, id) VALUES ($1, $2, $3) ON CONFLICT (kind, name) DO NOTHING" => [];

    CHANGES = "SELECT revision, body FROM changes WHERE revision > $1 ORDER BY revision LIMIT $2" => [Integer, Bytes];
    CHANGES_BEFORE = "SELECT revision, body FROM changes WHERE revision < $1 ORDER BY revision DESC LIMIT $2" => [Integer, Bytes];
    INSERT_CHANGE = "INSERT INTO changes (revision, body) VALUES ($1, $2)" => [];

    REQUEST = "SELECT revision, body FROM requests WHERE id = $1" => [Integer, Bytes];
    INSERT_REQUEST = "INSERT INTO requests (id, revision, body) VALUES ($1, $2, $3)" => [];

    DUE = "SELECT kind, id FROM due WHERE at <= $1 ORDER BY at LIMIT 100" => [Text, Text];
    PUT_DUE = "INSERT INTO due (kind, id, at) VALUES ($1, $2, $3) ON CONFLICT (kind, id) DO UPDATE SET at = excluded.at" => [];
    DELETE_DUE = "DELETE FROM due WHERE kind = $1 AND id = $2" => [];

    PUT_FRONTEND = "INSERT INTO frontends (instance, name, version, revision, seen_at, unfit) VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (instance) DO UPDATE SET revision = excluded.revision, seen_at = excluded.seen_at, unfit = excluded.unfit" => [];
    FRONTENDS = "SELECT instance, name, version, revision, seen_at, unfit FROM frontends ORDER BY name, instance"
        => [Text, Text, Text, Integer, Text, Text];
    DELETE_OLD_FRONTENDS = "DELETE FROM frontends WHERE seen_at < $1" => [];

    DELETE_FRONTEND = "DELETE FROM frontends WHERE instance = $1" => [];

    ADD_WRAPS = "INSERT INTO wraps (key_id, version, count) VALUES ($1, $2, $3)
        ON CONFLICT (key_id, version) DO UPDATE SET count = wraps.count + excluded.count RETURNING count" => [Integer];

    SCHEMA_VERSION = "SELECT MAX(version) FROM _sqlx_migrations WHERE success" => [Integer];
    USABLE_FROM = "SELECT schema_version FROM usable_from" => [Integer];
}

/// PostgreSQL only.
pub(crate) const NOTIFY: Statement =
    Statement { sql: "SELECT CAST(pg_notify('ekm_catalog', $1) AS TEXT)", columns: &[Text] };
/// PostgreSQL only: a follower does not take changes.
pub(crate) const IS_FOLLOWER: Statement =
    Statement { sql: "SELECT CASE WHEN pg_is_in_recovery() THEN 1::BIGINT ELSE 0::BIGINT END", columns: &[Integer] };
/// PostgreSQL only: the process that serves this connection.
pub(crate) const BACKEND: Statement = Statement { sql: "SELECT CAST(pg_backend_pid() AS BIGINT)", columns: &[Integer] };
/// PostgreSQL only: what its clock says.
pub(crate) const CLOCK: Statement =
    Statement { sql: "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS BIGINT)", columns: &[Integer] };
