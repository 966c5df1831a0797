-- The first catalog. Applied migrations are never changed: add another file.
-- Ids are UUIDs in text form; times are RFC 3339, UTC.

CREATE TABLE catalog (
    singleton  INTEGER PRIMARY KEY CHECK (singleton = 1),
    revision   BIGINT NOT NULL
);
INSERT INTO catalog (singleton, revision) VALUES (1, 0);

CREATE TABLE crypto_spaces (
    id         TEXT PRIMARY KEY,
    path       TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL
);

CREATE TABLE policies (
    id         TEXT PRIMARY KEY,
    document   TEXT NOT NULL
);

CREATE TABLE keys (
    id         TEXT PRIMARY KEY,
    space_id   TEXT NOT NULL REFERENCES crypto_spaces (id),
    policy_id  TEXT NOT NULL REFERENCES policies (id),
    purpose    TEXT NOT NULL,
    state      TEXT NOT NULL,
    primary_version BIGINT NOT NULL,
    created_at TEXT NOT NULL
);

-- Every path under which a key is or was known. A path is never given to another key.
CREATE TABLE key_aliases (
    path       TEXT PRIMARY KEY,
    key_id     TEXT NOT NULL REFERENCES keys (id)
);

CREATE TABLE key_versions (
    key_id     TEXT NOT NULL REFERENCES keys (id),
    number     BIGINT NOT NULL,
    custody    TEXT NOT NULL,
    wrapped_material BLOB,
    check_blob BLOB NOT NULL,
    created_at TEXT NOT NULL,
    PRIMARY KEY (key_id, number)
);
