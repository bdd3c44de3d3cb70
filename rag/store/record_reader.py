"""Reads a tenant's record: chunks, and what changed since a sequence number."""

# ruff: noqa: S608 - the statements are pieced together from constants of this module; every value is bound

import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from rag.store.record_file import RecordFile
from rag.store.rows import chunk_of, hex_id, stored_id
from rag.store.selection import IN, json_list, values_of, where
from rag.store.vectors import Part
from rag.types import Chunk, ChunkSelector, StoredChunk

_ROW = "rid, id, dataset, document, available, part, slot"
# A chunk as one JSON array. Python's sqlite3 lets go of the interpreter lock at every row it fetches, and under load each time is
# a wait for other threads' turns: a page of chunks comes as one row.
_CHUNK = """'[' || c.id || ',"' || s.id || '","' || d.id || '",' || c.version || ',' || c.position || ',' || c.created_at || ',' ||
c.available || ',' || json_quote(b.title) || ',' || json_quote(b.content) || ',' || json_quote(b.keywords) || ',' ||
json_quote(b.questions) || ',' || CAST(b.body AS TEXT) || ']'"""
_FROM = "FROM chunks c JOIN bodies b USING(rid) JOIN datasets s ON s.number = c.dataset JOIN documents d ON d.number = c.document"


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


class RecordReader(RecordFile):
    """The reading half of a record. Raises as `RecordFile`."""

    def page(self, after: str, size: int) -> list[StoredChunk]:
        """The next `size` chunks with ids above `after` ("" for all), by rising id, with their vectors."""
        above = stored_id(after) if after else -math.inf
        with self.read() as connection:
            rows = connection.execute(
                f"""SELECT c.id, s.id, d.id, c.version, c.position, c.created_at, c.available, b.title, b.content, b.keywords, b.questions,
                b.body, p.space, e.vector {_FROM} LEFT JOIN embeddings e ON e.rid = c.rid LEFT JOIN parts p ON p.number = c.part
                WHERE c.id > ? ORDER BY c.id LIMIT ?""",
                (above, size),
            ).fetchall()
        return [_stored(row) for row in rows]

    # ------------------------------------------------------------------------------------------------ following
    def head(self) -> int:
        """The sequence number of the last change, 0 when there was none."""
        with self.connection() as connection:
            return head_of(connection)

    def tail(self, seq: int, documents_known: int, datasets_known: int) -> Tail:
        """What changed after `seq`, or everything where the log does not reach back that far."""
        with self.read() as connection:
            head = head_of(connection)
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
                        f"SELECT {_ROW} FROM chunks WHERE rid {IN} OR part {IN} ORDER BY rid" if rewritten else
                        f"SELECT {_ROW} FROM chunks WHERE rid {IN} ORDER BY rid",
                        (json_list(rids.tolist()), json_list(list(rewritten))) if rewritten else (json_list(rids.tolist()),),
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
        with self.connection() as connection:
            return connection.execute("SELECT coalesce(min(seq), 0) FROM changes").fetchone()[0]

    def text_changes(self, seq: int, limit: int) -> list[TextRow]:
        """The next changes after `seq` for the text index, at most `limit`, ascending by seq."""
        with self.connection() as connection:
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
            return head_of(connection), connection.execute("SELECT value FROM facts WHERE name = 'last_rid'").fetchone()[0]

    def quarantined(self) -> set[int]:
        """The rids that the text index refuses."""
        with self.connection() as connection:
            return {rid for (rid,) in connection.execute("SELECT rid FROM quarantine")}

    def text_rows(self, after_rid: int, last_rid: int, limit: int, seq: int) -> list[TextRow]:
        """Chunks with `after_rid < rid <= last_rid`, ascending, for a rebuild of the text index; all stamped with `seq`."""
        with self.connection() as connection:
            rows = connection.execute(
                """SELECT c.rid, c.dataset, c.document, c.available, b.title, b.content, b.keywords, b.questions
                FROM chunks c JOIN bodies b USING(rid) WHERE c.rid > ? AND c.rid <= ? ORDER BY c.rid LIMIT ?""",
                (after_rid, last_rid, limit),
            ).fetchall()
        return [TextRow(seq, row[0], True, row[1], row[2], bool(row[3]), row[4:8]) for row in rows]

    def indexable(self) -> int:
        """How many chunks the text index should hold."""
        with self.connection() as connection:
            return connection.execute(
                "SELECT (SELECT count(*) FROM chunks) - (SELECT count(*) FROM quarantine JOIN chunks USING(rid))"
            ).fetchone()[0]

    # ------------------------------------------------------------------------------------------------ reading
    def get(self, chunk_ids: Sequence[str]) -> dict[str, Chunk]:
        """The chunks that exist, by id."""
        with self.connection() as connection:
            return chunks_in(connection, chunk_ids)

    def by_rid(self, rids: Sequence[int]) -> dict[int, Chunk]:
        """The chunks that exist, by rid."""
        with self.connection() as connection:
            rows = connection.execute(f"SELECT c.rid, {_CHUNK} {_FROM} WHERE c.rid {IN}", (json_list(rids),)).fetchall()
        return {rid: chunk_of(orjson.loads(chunk)) for rid, chunk in rows}

    def vectors(self, chunk_ids: Sequence[str], space: str) -> tuple[int, dict[str, np.ndarray]]:
        """The space's dimension (0: no vector of this tenant is in it) and the unit vectors float16 by chunk id."""
        with self.read() as connection:
            dimension = connection.execute("SELECT dimension FROM parts WHERE space = ?", (space,)).fetchone()
            rows = connection.execute(
                f"""SELECT c.id, e.vector FROM chunks c JOIN parts p ON p.number = c.part JOIN embeddings e USING(rid)
                WHERE c.id {IN} AND p.space = ?""",
                (json_list([stored_id(id_) for id_ in chunk_ids]), space),
            ).fetchall()
        return dimension[0] if dimension else 0, {hex_id(id_): np.frombuffer(vector, np.float16) for id_, vector in rows}

    def list(
        self, document_id: str, chunk_ids: Sequence[str] | None, available: bool | None, offset: int, limit: int
    ) -> tuple[int, list[Chunk]]:
        """One page of a document's chunks and how many there are, ordered as the port says."""
        condition, values = " WHERE c.document = (SELECT number FROM documents WHERE id = ?)", [document_id]
        if chunk_ids is not None:
            condition, values = condition + f" AND c.id {IN}", [*values, json_list([stored_id(id_) for id_ in chunk_ids])]
        if available is not None:
            condition, values = condition + " AND c.available = ?", [*values, available]
        page = " ORDER BY c.position, c.created_at DESC, c.id LIMIT ? OFFSET ?"
        with self.read() as connection:
            total = connection.execute("SELECT count(*) FROM chunks c" + condition, values).fetchone()[0]
            rows = connection.execute(f"SELECT {_CHUNK} {_FROM}" + condition + page, [*values, limit, offset]).fetchall()
        return total, [chunk_of(orjson.loads(chunk)) for (chunk,) in rows]

    def count(self, selector: ChunkSelector) -> int:
        """How many chunks are selected."""
        with self.connection() as connection:
            return connection.execute("SELECT count(*) FROM chunks" + where(selector), values_of(selector)).fetchone()[0]


def head_of(connection: sqlite3.Connection) -> int:
    """The sequence number of the last change as this connection sees it, 0 when there was none."""
    found = connection.execute("SELECT seq FROM changes ORDER BY seq DESC LIMIT 1").fetchone()
    return found[0] if found else 0


def chunks_in(connection: sqlite3.Connection, chunk_ids: Sequence[str]) -> dict[str, Chunk]:
    """The chunks that exist, by id."""
    wanted = json_list([stored_id(id_) for id_ in chunk_ids])
    (found,) = connection.execute(f"SELECT '[' || group_concat({_CHUNK}) || ']' {_FROM} WHERE c.id {IN}", (wanted,)).fetchone()
    return {chunk.id: chunk for chunk in map(chunk_of, orjson.loads(found or "[]"))}


def _array(cursor: sqlite3.Cursor, width: int) -> np.ndarray:
    """A cursor's integers as int64 `[n, width]`, fetched in pieces so that the tuples never all exist at once."""
    pieces = []
    while piece := cursor.fetchmany(65536):
        pieces.append(np.array(piece, np.int64))
    return np.concatenate(pieces) if pieces else np.empty((0, width), np.int64)


def _stored(row: Sequence[Any]) -> StoredChunk:
    chunk = chunk_of((*row[:11], orjson.loads(row[11])))
    return StoredChunk(chunk) if row[13] is None else StoredChunk(chunk, row[12], np.frombuffer(row[13], np.float16))
