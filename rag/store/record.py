"""The record of one tenant: a SQLite file that is the only truth. Text index, vector files and arrays in memory follow its change log."""

# ruff: noqa: S608 - the statements are pieced together from constants of this module; every value is bound

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import orjson

from rag.errors import InvalidArgument
from rag.store.record_reader import RecordReader, chunks_in, head_of
from rag.store.rows import body_of, hex_id, stored_id
from rag.store.selection import IN, json_list, values_of, where
from rag.store.vectors import Part, VectorFiles
from rag.types import Chunk, ChunkSelector


class Record(RecordReader):
    """A record to read and write. Nothing half-written stays when a method raises."""

    def __init__(self, path: Path, files: VectorFiles) -> None:
        self._files = files
        super().__init__(path)

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
            stored = chunks_in(connection, [chunk.id for chunk in before])
            same = [stored.get(chunk.id) == chunk for chunk in before]
            order = {stored_id(chunk.id): index for index, chunk in enumerate(after) if same[index]}
            return same, self._put(connection, order, bodies, after, vectors, space) if order else head_of(connection)

    def _put(
        self, connection: sqlite3.Connection, order: Mapping[int, int], bodies: Mapping[int, tuple[str, str, str, str, bytes]],
        chunks: Sequence[Chunk], vectors: np.ndarray | None, space: str,
    ) -> int:  # fmt: skip
        """Store the chunks at the indexes of `order` (by stored id, as `bodies`) inside a write transaction."""
        old = dict(connection.execute(f"SELECT id, rid FROM chunks WHERE id {IN}", (json_list(list(order)),)))
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
            return len(self._delete(connection, selector)), head_of(connection)

    def take(self, selector: ChunkSelector) -> tuple[list[Chunk], int]:
        """Delete the selected chunks; what they were, and the last change's sequence number."""
        with self.write() as connection:
            ids = connection.execute("SELECT id FROM chunks" + where(selector), values_of(selector)).fetchall()
            chunks = list(chunks_in(connection, [hex_id(id_) for (id_,) in ids]).values())
            self._delete(connection, selector)
            return chunks, head_of(connection)

    def _delete(self, connection: sqlite3.Connection, selector: ChunkSelector) -> list[int]:
        """Delete the selected chunks, and documents that are left with none, inside a write transaction; the chunks' rids."""
        found = connection.execute("SELECT rid, document FROM chunks" + where(selector), values_of(selector)).fetchall()
        rids = [rid for rid, _ in found]
        _forget(connection, rids)
        connection.execute(
            f"DELETE FROM documents WHERE number {IN} AND NOT EXISTS (SELECT 1 FROM chunks WHERE document = documents.number)",
            (json_list(list({document for _, document in found})),),
        )
        return rids

    def set_available(self, selector: ChunkSelector, available: bool) -> tuple[int, int]:
        """Switch the selected chunks; how many were selected, and the last change's sequence number."""
        with self.write() as connection:
            found = connection.execute("SELECT rid, available FROM chunks" + where(selector), values_of(selector)).fetchall()
            changed = [rid for rid, before in found if bool(before) != available]
            connection.execute(f"UPDATE chunks SET available = ? WHERE rid {IN}", (available, json_list(changed)))
            _log(connection, changed, fresh=False)
            return len(found), head_of(connection)

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
            connection.execute("DELETE FROM changes WHERE seq <= ?", (min(indexed, head_of(connection)) - keep,))

    def quarantine(self, rid: int) -> None:
        """Remember that the text index refuses this chunk."""
        with self.write() as connection:
            connection.execute("INSERT OR IGNORE INTO quarantine VALUES(?)", (rid,))

    def _kept(self, connection: sqlite3.Connection, old: Mapping[int, int]) -> dict[int, tuple[str, bytes]]:
        """The stored vectors of chunks about to be replaced: id -> (space, vector)."""
        rows = connection.execute(
            f"""SELECT c.id, p.space, e.vector FROM chunks c JOIN parts p ON p.number = c.part JOIN embeddings e USING(rid)
            WHERE c.rid {IN}""",
            (json_list(list(old.values())),),
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


def _given(order: Mapping[int, int], vectors: np.ndarray, space: str) -> dict[int, tuple[str, bytes]]:
    present = np.isfinite(vectors[:, 0]) if vectors.shape[1] else np.zeros(len(vectors), bool)
    return {id_: (space, vectors[index].tobytes()) for id_, index in order.items() if present[index]}


def _numbers(connection: sqlite3.Connection, table: str, ids: set[str]) -> dict[str, int]:
    wanted = orjson.dumps(sorted(ids)).decode()
    connection.execute(
        f"INSERT OR IGNORE INTO {table}(id) SELECT value FROM json_each(?) WHERE value NOT IN (SELECT id FROM {table})", (wanted,)
    )
    return dict(connection.execute(f"SELECT id, number FROM {table} WHERE id {IN}", (wanted,)))


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
        rows = connection.execute(f"SELECT vector FROM embeddings WHERE rid {IN} ORDER BY rid", (json_list(rids[start : start + 4096]),))
        yield b"".join(vector for (vector,) in rows)


def _forget(connection: sqlite3.Connection, rids: Sequence[int]) -> None:
    """Delete rows by rid and log it. A rid is never used again, so a stale index entry cannot point at another chunk."""
    if not rids:
        return
    for table in ("chunks", "bodies", "embeddings", "quarantine"):
        connection.execute(f"DELETE FROM {table} WHERE rid {IN}", (json_list(rids),))
    _log(connection, rids, fresh=False)


def _log(connection: sqlite3.Connection, rids: Iterator[int] | Sequence[int], *, fresh: bool) -> int:
    connection.executemany("INSERT INTO changes(rid, part, fresh) VALUES(?, 0, ?)", ((rid, fresh) for rid in rids))
    return connection.execute("SELECT max(seq) FROM changes").fetchone()[0]
