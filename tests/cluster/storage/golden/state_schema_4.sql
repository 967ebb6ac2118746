-- application_id 1383362156

-- user_version 4

-- page_size 16384

-- encoding UTF-8

-- journal_mode delete

CREATE TABLE cluster (
    cluster_id TEXT NOT NULL,
    format_version INTEGER NOT NULL,
    applied_index INTEGER NOT NULL,
    applied_term INTEGER NOT NULL,
    digest INTEGER NOT NULL,
    seal INTEGER NOT NULL
);

CREATE TABLE meta (
    version INTEGER NOT NULL,
    applied_index INTEGER NOT NULL,
    term INTEGER NOT NULL,
    now_ms INTEGER NOT NULL,
    horizon TEXT NOT NULL,
    last_session_id INTEGER NOT NULL,
    key_epoch INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    limits TEXT NOT NULL
);

CREATE TABLE themes (
    theme_id INTEGER PRIMARY KEY,
    policy TEXT NOT NULL,
    paused INTEGER NOT NULL,
    served INTEGER NOT NULL
);

CREATE TABLE consumers (
    consumer_id BLOB PRIMARY KEY,
    seen_ms INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE windows (
    proposer TEXT PRIMARY KEY,
    incarnation INTEGER NOT NULL,
    floor INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE answers (
    proposer TEXT,
    sequence INTEGER,
    results BLOB NOT NULL,
    failure BLOB,
    PRIMARY KEY (proposer, sequence)
) WITHOUT ROWID;

CREATE TABLE receipts (
    key BLOB PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    expires_ms INTEGER NOT NULL,
    result BLOB,
    unused_id INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE sessions (
    session_id INTEGER PRIMARY KEY,
    theme_id INTEGER NOT NULL,
    key BLOB,
    phase INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    updated_ms INTEGER NOT NULL,
    due_ms INTEGER NOT NULL,
    touched_ms INTEGER NOT NULL,
    lease_ms INTEGER NOT NULL,
    progress_ms INTEGER NOT NULL,
    consumer_id BLOB,
    trace BLOB NOT NULL,
    history TEXT NOT NULL,
    chunk_count INTEGER NOT NULL
);

CREATE TABLE chunks (
    session_id INTEGER,
    position INTEGER,
    data BLOB NOT NULL,
    PRIMARY KEY (session_id, position)
) WITHOUT ROWID;
