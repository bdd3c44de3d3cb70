"""The record of one tenant: a SQLite file that is the only truth. Text index, vector files and arrays in memory follow its change log."""

# ruff: noqa: S608 - the statements are pieced together from constants of this module; every value is bound

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from rag.errors import InvalidArgument, Unavailable
from rag.store.rows import body_of, chunk_of, hex_id, stored_id
from rag.store.vectors import Part, VectorFiles
from rag.types import Chunk, ChunkSelector

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
_ROW = "rid, id, dataset, document, available, part, slot"
# A chunk as one JSON array. Python's sqlite3 lets go of the interpreter lock at every row it fetches, and under load each time is
# a wait for other threads' turns: a page of chunks comes as one row.
_CHUNK = """'[' || c.id || ',"' || s.id || '","' || d.id || '",' || c.version || ',' || c.position || ',' || c.created_at || ',' ||
c.available || ',' || json_quote(b.title) || ',' || json_quote(b.content) || ',' || json_quote(b.keywords) || ',' ||
json_quote(b.questions) || ',' || CAST(b.body AS TEXT) || ']'"""
_FROM = "FROM chunks c JOIN bodies b USING(rid) JOIN datasets s ON s.number = c.dataset JOIN documents d ON d.number = c.document"
_IN = "IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True, slots=True)
class TextRow:
    """What the text indexer needs of a change. `terms` is None when the chunk exists no more; `fresh`: never indexed before."""

    seq: int
    rid: int
    fresh: bool
    dataset: int = 0
    document: int = 0
    available: bool = False
    terms: tuple[str, str, str, str] | None = None


@dataclass(frozen=True, slots=True)
class Tail:
    """What changed in the record since a sequence number; with `whole` it is everything there is.

    `rows` int64 `[n, 7]`: rid, stored id, dataset, document, available, part, slot, ascending by rid. `gone` int64: deleted rids.
    `rewritten` lists parts whose slots were renumbered; their chunks are all in `rows`.
    """

    seq: int
    whole: bool
    rows: np.ndarray
    gone: np.ndarray
    rewritten: frozenset[int]
    parts: tuple[Part, ...]
    datasets: tuple[tuple[int, str], ...]
    documents: tuple[tuple[int, str], ...]
    facts: Mapping[str, str]


class Record:
    """Reads and writes one tenant's SQLite file. Thread-safe; several processes may hold the same file.

    Every method raises `Unavailable` when the file cannot be read or written now; nothing half-written stays then.
    """

    def __init__(self, path: Path, files: VectorFiles) -> None:
        self.path = path
        self._files = files
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
        with self._connection() as connection:
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A connection inside an exclusive transaction: committed at the end, rolled back by any error."""
        with self._writing, self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    # ------------------------------------------------------------------------------------------------ writing
    def put(self, chunks: Sequence[Chunk], vectors: np.ndarray | None, space: str) -> int:
        """Insert or replace and return the sequence number of the last change. `vectors` are unit float16, a row of NaN for none."""
        order = {stored_id(chunk.id): index for index, chunk in enumerate(chunks)}
        bodies = {id_: body_of(chunks[index]) for id_, index in order.items()}
        with self.write() as connection:
            return self._put(connection, order, bodies, chunks, vectors, space)

    def replace(self, before: Sequence[Chunk], after: Sequence[Chunk], vectors: np.ndarray | None, space: str) -> tuple[list[bool], int]:
        """Put those chunks whose stored state still is the one given; which they were, and the last change's sequence number."""
        bodies = {stored_id(chunk.id): body_of(chunk) for chunk in after}
        with self.write() as connection:
            stored = _chunks(connection, [chunk.id for chunk in before])
            same = [stored.get(chunk.id) == chunk for chunk in before]
            order = {stored_id(chunk.id): index for index, chunk in enumerate(after) if same[index]}
            return same, self._put(connection, order, bodies, after, vectors, space) if order else self._head(connection)

    def _put(
        self, connection: sqlite3.Connection, order: Mapping[int, int], bodies: Mapping[int, tuple[str, str, str, str, bytes]],
        chunks: Sequence[Chunk], vectors: np.ndarray | None, space: str,
    ) -> int:  # fmt: skip
        """Store the chunks at the indexes of `order` (by stored id, as `bodies`) inside a write transaction."""
        old = dict(connection.execute(f"SELECT id, rid FROM chunks WHERE id {_IN}", (_json(list(order)),)))
        embedded = self._kept(connection, old) if vectors is None else _given(order, vectors, space)
        first = connection.execute("SELECT value FROM facts WHERE name = 'last_rid'").fetchone()[0] + 1
        rids = {id_: first + offset for offset, id_ in enumerate(order)}
        _forget(connection, list(old.values()))
        datasets = _numbers(connection, "datasets", {chunks[index].dataset_id for index in order.values()})
        documents = _numbers(connection, "documents", {chunks[index].document_id for index in order.values()})
        dataset_of = {id_: datasets[chunks[index].dataset_id] for id_, index in order.items()}
        places = self._place(connection, dataset_of, embedded)
        rows = []
        for id_, index in order.items():
            chunk = chunks[index]
            rows.append((
                rids[id_], id_, dataset_of[id_], documents[chunk.document_id], chunk.version, chunk.position, chunk.created_at,
                chunk.available, *places.get(id_, (-1, -1)),
            ))  # fmt: skip
        connection.executemany("INSERT INTO chunks VALUES(?,?,?,?,?,?,?,?,?,?)", rows)
        connection.executemany("INSERT INTO bodies VALUES(?,?,?,?,?,?)", ((rids[id_], *bodies[id_]) for id_ in order))
        connection.executemany("INSERT INTO embeddings VALUES(?,?)", ((rids[id_], vector) for id_, (_, vector) in embedded.items()))
        connection.execute("UPDATE facts SET value = ? WHERE name = 'last_rid'", (first + len(order) - 1,))
        return _log(connection, rids.values(), fresh=True)

    def delete(self, selector: ChunkSelector) -> tuple[int, int]:
        """Delete the selected chunks; how many there were, and the last change's sequence number."""
        with self.write() as connection:
            return len(self._delete(connection, selector)), self._head(connection)

    def take(self, selector: ChunkSelector) -> tuple[list[Chunk], int]:
        """Delete the selected chunks; what they were, and the last change's sequence number."""
        with self.write() as connection:
            ids = connection.execute("SELECT id FROM chunks" + _where(selector), _values(selector)).fetchall()
            chunks = list(_chunks(connection, [hex_id(id_) for (id_,) in ids]).values())
            self._delete(connection, selector)
            return chunks, self._head(connection)

    def _delete(self, connection: sqlite3.Connection, selector: ChunkSelector) -> list[int]:
        """Delete the selected chunks, and documents that are left with none, inside a write transaction; the chunks' rids."""
        found = connection.execute("SELECT rid, document FROM chunks" + _where(selector), _values(selector)).fetchall()
        rids = [rid for rid, _ in found]
        _forget(connection, rids)
        connection.execute(
            f"DELETE FROM documents WHERE number {_IN} AND NOT EXISTS (SELECT 1 FROM chunks WHERE document = documents.number)",
            (_json(list({document for _, document in found})),),
        )
        return rids

    def set_available(self, selector: ChunkSelector, available: bool) -> tuple[int, int]:
        """Switch the selected chunks; how many were selected, and the last change's sequence number."""
        with self.write() as connection:
            found = connection.execute("SELECT rid, available FROM chunks" + _where(selector), _values(selector)).fetchall()
            changed = [rid for rid, before in found if bool(before) != available]
            connection.execute(f"UPDATE chunks SET available = ? WHERE rid {_IN}", (available, _json(changed)))
            _log(connection, changed, fresh=False)
            return len(found), self._head(connection)

    def set_facts(self, **facts: str) -> None:
        """Write named facts and announce them in the change log."""
        with self.write() as connection:
            connection.executemany("INSERT OR REPLACE INTO facts VALUES(?,?)", facts.items())
            _log(connection, [0], fresh=False)

    def set_terms(self, rows: Sequence[tuple[int, tuple[str, str, str, str]]]) -> None:
        """Replace the analysed terms of chunks, by rid. Not announced: only the rebuild of the text index does this."""
        with self.write() as connection:
            connection.executemany(
                "UPDATE bodies SET title=?, content=?, keywords=?, questions=? WHERE rid=?", ((*terms, rid) for rid, terms in rows)
            )

    def rewrite_part(self, number: int) -> None:
        """Write a part's vector file anew from the record, without dead slots; remove the part when no chunk is left in it."""
        with self.write() as connection:
            found = connection.execute(
                "SELECT number, dataset, space, dimension, generation, slots FROM parts WHERE number = ?", (number,)
            ).fetchone()
            if found is None:
                return
            old = Part(*found)
            live = [rid for (rid,) in connection.execute(
                "SELECT rid FROM chunks WHERE dataset = ? AND part = ? ORDER BY rid", (old.dataset, number))]  # fmt: skip
            if live:
                new = Part(number, old.dataset, old.space, old.dimension, old.generation + 1, len(live))
                self._files.write(new, _vectors_of(connection, live))
                connection.executemany("UPDATE chunks SET slot = ? WHERE rid = ?", enumerate(live))
                connection.execute("UPDATE parts SET generation = ?, slots = ? WHERE number = ?", (new.generation, new.slots, number))
            else:
                connection.execute("DELETE FROM parts WHERE number = ?", (number,))
            connection.execute("INSERT INTO changes(rid, part, fresh) VALUES(0, ?, 0)", (number,))
        self._files.remove(old)

    def sweep(self) -> None:
        """Delete vector files that no part owns. Inside a write transaction, because a writer's new file is not known before."""
        with self.write() as connection:
            rows = connection.execute("SELECT number, dataset, space, dimension, generation, slots FROM parts")
            self._files.remove_strangers([Part(*row) for row in rows])

    def prune(self, indexed: int, keep: int) -> None:
        """Drop changes that the text index holds already, but for the last `keep`, from which other processes catch up."""
        with self.write() as connection:
            connection.execute("DELETE FROM changes WHERE seq <= ?", (min(indexed, self._head(connection)) - keep,))

    def quarantine(self, rid: int) -> None:
        """Remember that the text index refuses this chunk."""
        with self.write() as connection:
            connection.execute("INSERT OR IGNORE INTO quarantine VALUES(?)", (rid,))

    # ------------------------------------------------------------------------------------------------ following
    def head(self) -> int:
        """The sequence number of the last change, 0 when there was none."""
        with self._connection() as connection:
            return self._head(connection)

    def tail(self, seq: int, documents_known: int, datasets_known: int) -> Tail:
        """What changed after `seq`, or everything where the log does not reach back that far."""
        with self.read() as connection:
            head = self._head(connection)
            floor = connection.execute("SELECT seq FROM changes ORDER BY seq LIMIT 1").fetchone()
            whole = seq == 0 or (floor is not None and floor[0] > seq + 1)
            if whole:
                rewritten: frozenset[int] = frozenset()
                rows = _array(connection.execute(f"SELECT {_ROW} FROM chunks ORDER BY rid"), 7)
                gone = np.empty(0, np.int64)
            else:
                log = _array(connection.execute("SELECT rid, part FROM changes WHERE seq > ?", (seq,)), 2)
                rewritten = frozenset(log[log[:, 1] > 0, 1].tolist())
                rids = np.unique(log[log[:, 0] > 0, 0])
                rows = _array(
                    connection.execute(
                        f"SELECT {_ROW} FROM chunks WHERE rid {_IN} OR part {_IN} ORDER BY rid" if rewritten else
                        f"SELECT {_ROW} FROM chunks WHERE rid {_IN} ORDER BY rid",
                        (_json(rids.tolist()), _json(list(rewritten))) if rewritten else (_json(rids.tolist()),),
                    ), 7,
                )  # fmt: skip
                gone = np.setdiff1d(rids, rows[:, 0], assume_unique=True)
            return Tail(
                seq=head,
                whole=whole,
                rows=rows,
                gone=gone,
                rewritten=rewritten,
                parts=tuple(
                    Part(*part) for part in connection.execute("SELECT number, dataset, space, dimension, generation, slots FROM parts")
                ),
                datasets=tuple(connection.execute("SELECT number, id FROM datasets WHERE number > ?", (datasets_known,))),
                documents=tuple(connection.execute("SELECT number, id FROM documents WHERE number > ?", (documents_known,))),
                facts={name: str(value) for name, value in connection.execute("SELECT name, value FROM facts")},
            )

    def floor(self) -> int:
        """The lowest sequence number that the change log still holds, 0 when it is empty."""
        with self._connection() as connection:
            return connection.execute("SELECT coalesce(min(seq), 0) FROM changes").fetchone()[0]

    def text_changes(self, seq: int, limit: int) -> list[TextRow]:
        """The next changes after `seq` for the text index, at most `limit`, ascending by seq."""
        with self._connection() as connection:
            rows = connection.execute(
                """SELECT g.seq, g.rid, g.fresh, c.dataset, c.document, c.available, b.title, b.content, b.keywords, b.questions
                FROM changes g LEFT JOIN chunks c USING(rid) LEFT JOIN bodies b USING(rid) WHERE g.seq > ? ORDER BY g.seq LIMIT ?""",
                (seq, limit),
            ).fetchall()
        return [
            TextRow(row[0], row[1], bool(row[2])) if row[3] is None
            else TextRow(row[0], row[1], bool(row[2]), row[3], row[4], bool(row[5]), row[6:10])
            for row in rows
        ]  # fmt: skip

    def position(self) -> tuple[int, int]:
        """The sequence number of the last change and the highest rid at that moment."""
        with self.read() as connection:
            return self._head(connection), connection.execute("SELECT value FROM facts WHERE name = 'last_rid'").fetchone()[0]

    def quarantined(self) -> set[int]:
        """The rids that the text index refuses."""
        with self._connection() as connection:
            return {rid for (rid,) in connection.execute("SELECT rid FROM quarantine")}

    def text_rows(self, after_rid: int, last_rid: int, limit: int, seq: int) -> list[TextRow]:
        """Chunks with `after_rid < rid <= last_rid`, ascending, for a rebuild of the text index; all stamped with `seq`."""
        with self._connection() as connection:
            rows = connection.execute(
                """SELECT c.rid, c.dataset, c.document, c.available, b.title, b.content, b.keywords, b.questions
                FROM chunks c JOIN bodies b USING(rid) WHERE c.rid > ? AND c.rid <= ? ORDER BY c.rid LIMIT ?""",
                (after_rid, last_rid, limit),
            ).fetchall()
        return [TextRow(seq, row[0], True, row[1], row[2], bool(row[3]), row[4:8]) for row in rows]

    def indexable(self) -> int:
        """How many chunks the text index should hold."""
        with self._connection() as connection:
            return connection.execute(
                "SELECT (SELECT count(*) FROM chunks) - (SELECT count(*) FROM quarantine JOIN chunks USING(rid))"
            ).fetchone()[0]

    # ------------------------------------------------------------------------------------------------ reading
    def get(self, chunk_ids: Sequence[str]) -> dict[str, Chunk]:
        """The chunks that exist, by id."""
        with self._connection() as connection:
            return _chunks(connection, chunk_ids)

    def by_rid(self, rids: Sequence[int]) -> dict[int, Chunk]:
        """The chunks that exist, by rid."""
        with self._connection() as connection:
            rows = connection.execute(f"SELECT c.rid, {_CHUNK} {_FROM} WHERE c.rid {_IN}", (_json(rids),)).fetchall()
        return {rid: chunk_of(orjson.loads(chunk)) for rid, chunk in rows}

    def vectors(self, chunk_ids: Sequence[str], space: str) -> tuple[int, dict[str, np.ndarray]]:
        """The space's dimension (0: no vector of this tenant is in it) and the unit vectors float16 by chunk id."""
        with self.read() as connection:
            dimension = connection.execute("SELECT dimension FROM parts WHERE space = ?", (space,)).fetchone()
            rows = connection.execute(
                f"""SELECT c.id, e.vector FROM chunks c JOIN parts p ON p.number = c.part JOIN embeddings e USING(rid)
                WHERE c.id {_IN} AND p.space = ?""",
                (_json([stored_id(id_) for id_ in chunk_ids]), space),
            ).fetchall()
        return dimension[0] if dimension else 0, {hex_id(id_): np.frombuffer(vector, np.float16) for id_, vector in rows}

    def list(
        self, document_id: str, chunk_ids: Sequence[str] | None, available: bool | None, offset: int, limit: int
    ) -> tuple[int, list[Chunk]]:
        """One page of a document's chunks and how many there are, ordered as the port says."""
        where, values = " WHERE c.document = (SELECT number FROM documents WHERE id = ?)", [document_id]
        if chunk_ids is not None:
            where, values = where + f" AND c.id {_IN}", [*values, _json([stored_id(id_) for id_ in chunk_ids])]
        if available is not None:
            where, values = where + " AND c.available = ?", [*values, available]
        page = " ORDER BY c.position, c.created_at DESC, c.id LIMIT ? OFFSET ?"
        with self.read() as connection:
            total = connection.execute("SELECT count(*) FROM chunks c" + where, values).fetchone()[0]
            rows = connection.execute(f"SELECT {_CHUNK} {_FROM}" + where + page, [*values, limit, offset]).fetchall()
        return total, [chunk_of(orjson.loads(chunk)) for (chunk,) in rows]

    def count(self, selector: ChunkSelector) -> int:
        """How many chunks are selected."""
        with self._connection() as connection:
            return connection.execute("SELECT count(*) FROM chunks" + _where(selector), _values(selector)).fetchone()[0]

    # ------------------------------------------------------------------------------------------------ within
    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
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

    def _head(self, connection: sqlite3.Connection) -> int:
        found = connection.execute("SELECT seq FROM changes ORDER BY seq DESC LIMIT 1").fetchone()
        return found[0] if found else 0

    def _kept(self, connection: sqlite3.Connection, old: Mapping[int, int]) -> dict[int, tuple[str, bytes]]:
        """The stored vectors of chunks about to be replaced: id -> (space, vector)."""
        rows = connection.execute(
            f"""SELECT c.id, p.space, e.vector FROM chunks c JOIN parts p ON p.number = c.part JOIN embeddings e USING(rid)
            WHERE c.rid {_IN}""",
            (_json(list(old.values())),),
        )
        return {id_: (space, vector) for id_, space, vector in rows}

    def _place(
        self, connection: sqlite3.Connection, dataset_of: Mapping[int, int], embedded: Mapping[int, tuple[str, bytes]]
    ) -> dict[int, tuple[int, int]]:
        """Append the vectors to their parts' files inside the transaction: id -> (part, slot).

        The slot counter lives in the record, so a rollback gives the slots back; the write lock makes them exclusive.
        """
        groups: dict[tuple[int, str], list[int]] = {}
        for id_, (space, _) in embedded.items():
            groups.setdefault((dataset_of[id_], space), []).append(id_)
        places = {}
        for (dataset, space), ids in groups.items():
            part = _part(connection, dataset, space, dimension=len(embedded[ids[0]][1]) // 2)
            self._files.append(part, b"".join(embedded[id_][1] for id_ in ids))
            connection.execute("UPDATE parts SET slots = ? WHERE number = ?", (part.slots + len(ids), part.number))
            places.update((id_, (part.number, part.slots + offset)) for offset, id_ in enumerate(ids))
        return places


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


def _json(values: Sequence[int] | Sequence[str]) -> str:
    return orjson.dumps(values).decode()


def _array(cursor: sqlite3.Cursor, width: int) -> np.ndarray:
    """A cursor's integers as int64 `[n, width]`, fetched in pieces so that the tuples never all exist at once."""
    pieces = []
    while piece := cursor.fetchmany(65536):
        pieces.append(np.array(piece, np.int64))
    return np.concatenate(pieces) if pieces else np.empty((0, width), np.int64)


def _chunks(connection: sqlite3.Connection, chunk_ids: Sequence[str]) -> dict[str, Chunk]:
    wanted = _json([stored_id(id_) for id_ in chunk_ids])
    (found,) = connection.execute(f"SELECT '[' || group_concat({_CHUNK}) || ']' {_FROM} WHERE c.id {_IN}", (wanted,)).fetchone()
    return {chunk.id: chunk for chunk in map(chunk_of, orjson.loads(found or "[]"))}


def _given(order: Mapping[int, int], vectors: np.ndarray, space: str) -> dict[int, tuple[str, bytes]]:
    present = np.isfinite(vectors[:, 0]) if vectors.shape[1] else np.zeros(len(vectors), bool)
    return {id_: (space, vectors[index].tobytes()) for id_, index in order.items() if present[index]}


def _numbers(connection: sqlite3.Connection, table: str, ids: set[str]) -> dict[str, int]:
    wanted = orjson.dumps(sorted(ids)).decode()
    connection.execute(
        f"INSERT OR IGNORE INTO {table}(id) SELECT value FROM json_each(?) WHERE value NOT IN (SELECT id FROM {table})", (wanted,)
    )
    return dict(connection.execute(f"SELECT id, number FROM {table} WHERE id {_IN}", (wanted,)))


def _part(connection: sqlite3.Connection, dataset: int, space: str, dimension: int) -> Part:
    known = connection.execute("SELECT dimension FROM parts WHERE space = ?", (space,)).fetchone()
    if known is not None and known[0] != dimension:
        raise InvalidArgument(f"vectors have {dimension} dimensions, those of their embedding space have {known[0]}")
    connection.execute("INSERT OR IGNORE INTO parts(dataset, space, dimension) VALUES(?,?,?)", (dataset, space, dimension))
    return Part(*connection.execute(
        "SELECT number, dataset, space, dimension, generation, slots FROM parts WHERE dataset = ? AND space = ?", (dataset, space)
    ).fetchone())  # fmt: skip


def _vectors_of(connection: sqlite3.Connection, rids: Sequence[int]) -> Iterator[bytes]:
    for start in range(0, len(rids), 4096):
        rows = connection.execute(f"SELECT vector FROM embeddings WHERE rid {_IN} ORDER BY rid", (_json(rids[start : start + 4096]),))
        yield b"".join(vector for (vector,) in rows)


def _forget(connection: sqlite3.Connection, rids: Sequence[int]) -> None:
    """Delete rows by rid and log it. A rid is never used again, so a stale index entry cannot point at another chunk."""
    if not rids:
        return
    for table in ("chunks", "bodies", "embeddings", "quarantine"):
        connection.execute(f"DELETE FROM {table} WHERE rid {_IN}", (_json(rids),))
    _log(connection, rids, fresh=False)


def _log(connection: sqlite3.Connection, rids: Iterator[int] | Sequence[int], *, fresh: bool) -> int:
    connection.executemany("INSERT INTO changes(rid, part, fresh) VALUES(?, 0, ?)", ((rid, fresh) for rid in rids))
    return connection.execute("SELECT max(seq) FROM changes").fetchone()[0]


def _where(selector: ChunkSelector) -> str:
    conditions = []
    if selector.dataset_ids is not None:
        conditions.append(f"dataset IN (SELECT number FROM datasets WHERE id {_IN})")
    if selector.document_ids is not None:
        conditions.append(f"document IN (SELECT number FROM documents WHERE id {_IN})")
    if selector.chunk_ids is not None:
        conditions.append(f"id {_IN}")
    if selector.versions_below is not None:
        conditions.append("version >= 1 AND version < ?")
    if not conditions:
        raise InvalidArgument("a chunk selector needs at least one condition")
    return " WHERE " + " AND ".join(conditions)


def _values(selector: ChunkSelector) -> list[str | int]:
    values: list[str | int] = [_json(ids) for ids in (selector.dataset_ids, selector.document_ids) if ids is not None]
    if selector.chunk_ids is not None:
        values.append(_json([stored_id(id_) for id_ in selector.chunk_ids]))
    if selector.versions_below is not None:
        values.append(selector.versions_below)
    return values
