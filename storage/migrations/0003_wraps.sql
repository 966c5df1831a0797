-- How often each key version has wrapped, by all frontends together: a nonce of 96 random bits may be drawn 2^32 times. No part of the
-- catalog: it has no revision, and anybody who may connect may write it.
CREATE TABLE wraps (
    key_id      TEXT NOT NULL,
    version     BIGINT NOT NULL,
    count       BIGINT NOT NULL,
    PRIMARY KEY (key_id, version)
);
