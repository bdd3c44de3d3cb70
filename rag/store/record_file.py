"""The SQLite file behind a tenant's record: its schema, connections and transactions."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rag.errors import Unavailable

FORMAT = 1
_IDLE_CONNECTIONS = 4
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS datasets(number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS documents(number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS parts(
    number INTEGER PRIMARY KEY AUTOINCREMENT, dataset INTEGER NOT NULL, space TEXT NOT NULL, dimension INTEGER NOT NULL,
    generation INTEGER NOT NULL DEFAULT 1, slots INTEGER NOT NULL DEFAULT 0, UNIQUE(dataset, space));
CREATE TABLE IF NOT EXISTS chunks(
    rid INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE, dataset INTEGER NOT NULL, document INTEGER NOT NULL,
    version INTEGER NOT NULL, position INTEGER NOT NULL, created_at REAL NOT NULL, available INTEGER NOT NULL,
    part INTEGER NOT NULL, slot INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS chunks_document ON chunks(document, position);
CREATE INDEX IF NOT EXISTS chunks_dataset ON chunks(dataset, part);
CREATE TABLE IF NOT EXISTS bodies(
    rid INTEGER PRIMARY KEY, title TEXT NOT NULL, content TEXT NOT NULL, keywords TEXT NOT NULL, questions TEXT NOT NULL,
    body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS embeddings(rid INTEGER PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS changes(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, rid INTEGER NOT NULL, part INTEGER NOT NULL, fresh INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS quarantine(rid INTEGER PRIMARY KEY);
"""


class RecordFile:
    """One tenant's SQLite file. Thread-safe; several processes may hold the same file.

    Every method raises `Unavailable` when the file cannot be read or written now; nothing half-written stays then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._writing = threading.Lock()
        self._closed = False
        with self.read() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise Unavailable(f"the chunk record has format {version}, this server reads up to {FORMAT}")
        if version == FORMAT:
            return
        with self.write() as connection:
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute("INSERT OR IGNORE INTO facts VALUES('last_rid', 0)")
            connection.execute(f"PRAGMA user_version = {FORMAT}")

    def close(self) -> None:
        """Close the idle connections; those in use close when they are given back."""
        self._closed = True
        while connection := self._take_idle():
            connection.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading, one snapshot from the first select on."""
        with self.connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A connection inside an exclusive transaction: committed at the end, rolled back by any error."""
        with self._writing, self.connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection of the small pool (many connections would each cache the same pages). Turns engine errors into ours."""
        connection = None
        try:
            connection = self._take_idle() or _connect(self.path)
            yield connection
        except (sqlite3.Error, OSError) as exc:
            why = reason(exc) if os.access(self.path.parent, os.W_OK) else "its folder is read-only"
            raise Unavailable(f"the chunk record cannot be used: {why}") from exc
        finally:
            if connection is not None:
                if self._closed or len(self._idle) >= _IDLE_CONNECTIONS or connection.in_transaction:
                    connection.close()
                else:
                    self._idle.append(connection)

    def _take_idle(self) -> sqlite3.Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None


def reason(exc: BaseException) -> str:
    """Why a disk operation failed, in words without paths."""
    if isinstance(exc, OSError):
        return (exc.strerror or type(exc).__name__).lower()
    return str(exc).lower()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA mmap_size = 268435456")
    except sqlite3.Error:
        connection.close()
        raise
    return connection
