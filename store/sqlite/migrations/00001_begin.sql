-- Every table is WITHOUT ROWID: a hidden row number would tell the order in
-- which rows were made. Dates are days since 1970-01-01.

-- +goose Up
CREATE TABLE account (
    id TEXT NOT NULL PRIMARY KEY,
    email TEXT NOT NULL UNIQUE,
    password TEXT NOT NULL,
    disabled BOOLEAN NOT NULL,
    plan TEXT NOT NULL,
    devices INTEGER NOT NULL,
    paid_until INTEGER NOT NULL CHECK (paid_until BETWEEN 0 AND 65535),
    licence_disabled BOOLEAN NOT NULL,
    vpn_username BYTEA NOT NULL,
    vpn_password BYTEA NOT NULL,
    app_os TEXT NOT NULL,
    app_version TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE token (
    hash BYTEA NOT NULL PRIMARY KEY,
    account TEXT NOT NULL REFERENCES account (id) ON DELETE CASCADE,
    expires INTEGER NOT NULL CHECK (expires BETWEEN 0 AND 65535)
) WITHOUT ROWID;
CREATE INDEX token_account ON token (account);
CREATE INDEX token_expires ON token (expires);

-- What the publisher has not published yet: the present state of an account,
-- or the sealed user name of a credential that is gone.
CREATE TABLE change (
    sequence BIGINT NOT NULL PRIMARY KEY,
    account TEXT UNIQUE REFERENCES account (id) ON DELETE CASCADE,
    vpn_username BYTEA,
    CHECK ((account IS NULL) <> (vpn_username IS NULL))
) WITHOUT ROWID;

CREATE TABLE location (
    id INTEGER NOT NULL PRIMARY KEY,
    code TEXT NOT NULL UNIQUE,
    country TEXT NOT NULL,
    city TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE server (
    id TEXT NOT NULL PRIMARY KEY,
    location INTEGER NOT NULL REFERENCES location (id),
    addresses TEXT NOT NULL,
    endpoints TEXT NOT NULL,
    ca TEXT NOT NULL,
    tls_crypt TEXT NOT NULL,
    enabled BOOLEAN NOT NULL
) WITHOUT ROWID;
CREATE INDEX server_location ON server (location);

CREATE TABLE usage (
    user_hash BYTEA NOT NULL,
    date INTEGER NOT NULL CHECK (date BETWEEN 0 AND 65535),
    country TEXT NOT NULL,
    isp TEXT NOT NULL,
    location INTEGER NOT NULL,
    protocol INTEGER NOT NULL,
    mb_in BIGINT NOT NULL,
    mb_out BIGINT NOT NULL,
    PRIMARY KEY (user_hash, date, country, isp, location, protocol)
) WITHOUT ROWID;
CREATE INDEX usage_date ON usage (date);

-- The last batch accepted from each server. It stays when a server is removed,
-- so that one that comes back cannot be counted twice.
CREATE TABLE batch (
    server TEXT NOT NULL PRIMARY KEY,
    id BYTEA NOT NULL
) WITHOUT ROWID;

-- change: last number of a change; location: last id given; version: last
-- manifest version; notice: how often the publisher had reason to look.
CREATE TABLE counter (
    name TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
) WITHOUT ROWID;
INSERT INTO counter (name, value) VALUES ('change', 0), ('location', 0), ('version', 0), ('notice', 0);

-- One sealed constant that tells whether the data key is the right one.
CREATE TABLE seal (
    name TEXT NOT NULL PRIMARY KEY,
    value BYTEA NOT NULL
) WITHOUT ROWID;
PRAGMA application_id = 1279611976;
