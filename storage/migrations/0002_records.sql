-- The catalog as sealed rows, the same for SQLite and PostgreSQL. BYTES stands for BLOB or BYTEA, NAME_TEXT for text that sorts by its bytes,
-- CLUSTERED for nothing or WITHOUT ROWID: SQLite would else read a catalog from all over the file.
-- What rows mean is in their bodies, which only ekm can open: see ekm-core/src/catalog/ledger.rs.
-- Ids are UUIDs in text form; times are RFC 3339, UTC.

-- One row: which catalog this is, and what its rows have to add up to.
CREATE TABLE head (
    singleton   INTEGER PRIMARY KEY CHECK (singleton = 1),
    catalog_id  TEXT NOT NULL,
    revision    BIGINT NOT NULL,
    body        BYTES NOT NULL
);

-- The catalog key, wrapped by the HSM's root key ('hsm') or by a key file ('file').
CREATE TABLE catalog_keys (
    wrapped_by  TEXT PRIMARY KEY,
    wrapped     BYTES NOT NULL
);

CREATE TABLE records (
    kind        TEXT NOT NULL,
    id          TEXT NOT NULL,
    revision    BIGINT NOT NULL,
    body        BYTES NOT NULL,
    PRIMARY KEY (kind, id)
) CLUSTERED;
CREATE INDEX records_by_revision ON records (revision);

-- Paths of keys and crypto spaces, and names of policies: unique for ever, so that none is given out twice.
CREATE TABLE names (
    kind        TEXT NOT NULL,
    name        NAME_TEXT NOT NULL,
    id          TEXT NOT NULL,
    PRIMARY KEY (kind, name)
);

-- The log of changes, one for each revision, hash-chained.
CREATE TABLE changes (
    revision    BIGINT PRIMARY KEY,
    body        BYTES NOT NULL
);

-- Requests that were carried out, so that one that is repeated is not carried out twice.
CREATE TABLE requests (
    id          TEXT PRIMARY KEY,
    revision    BIGINT NOT NULL,
    body        BYTES NOT NULL
);

-- What has to be looked at without anybody asking: rotation, promotion, destruction, expiry.
CREATE TABLE due (
    kind        TEXT NOT NULL,
    id          TEXT NOT NULL,
    at          TEXT NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE INDEX due_by_time ON due (at);

-- Which frontend holds which revision. No part of the catalog: it has no revision, and anybody who may connect may write it.
CREATE TABLE frontends (
    instance    TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    version     TEXT NOT NULL,
    revision    BIGINT NOT NULL,
    seen_at     TEXT NOT NULL
);

-- Programs that know this schema version, or a later one, can use the tables as they are.
CREATE TABLE usable_from (
    schema_version BIGINT NOT NULL
);
INSERT INTO usable_from (schema_version) VALUES (2);
