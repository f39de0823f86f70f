CREATE TABLE vms (
    id       TEXT PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE,
    state    TEXT NOT NULL,
    document BLOB NOT NULL
) STRICT;

CREATE TABLE operations (
    id          TEXT PRIMARY KEY,
    kind        TEXT NOT NULL,
    target      TEXT NOT NULL,
    state       TEXT NOT NULL,
    created_at  REAL NOT NULL,
    finished_at REAL,
    result      BLOB,
    error       BLOB
) STRICT;
CREATE INDEX operations_by_age ON operations (created_at);
CREATE INDEX operations_by_state ON operations (state);

CREATE TABLE events (
    operation TEXT NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    seq       INTEGER NOT NULL,
    at        REAL NOT NULL,
    kind      TEXT NOT NULL,
    data      BLOB NOT NULL,
    PRIMARY KEY (operation, seq)
) STRICT, WITHOUT ROWID;
