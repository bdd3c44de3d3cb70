"""What a process keeps in memory of a tenant: per chunk its ids, flags and vector slot, as arrays that follow the record's change log.

With it a search turns the hits of both arms into candidates without asking SQLite about any of them.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rag.store.record import Record
from rag.store.record_reader import Tail
from rag.store.vectors import Part

_COMPACT_ABOVE = 10_000
_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True, slots=True)
class Rows:
    """The first `count` entries of each array are chunks ascending by rid; the rest is room to grow.

    rid int64 · id uint64 · dataset, document, part, slot int32 (numbers of the record; part and slot -1 without a vector) ·
    alive, available bool.
    """

    count: int
    rid: np.ndarray
    id: np.ndarray
    dataset: np.ndarray
    document: np.ndarray
    part: np.ndarray
    slot: np.ndarray
    alive: np.ndarray
    available: np.ndarray

    def find(self, rids: np.ndarray) -> np.ndarray:
        """Indexes of the living rows with these rids; the others are left out, so use `find_each` to keep them apart."""
        index, known = self.find_each(rids)
        return index[known]

    def find_each(self, rids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per rid the row's index, and whether there is a living row."""
        if self.count == 0:
            return np.zeros(len(rids), np.int64), np.zeros(len(rids), bool)
        index = np.minimum(np.searchsorted(self.rid[: self.count], rids), self.count - 1)
        return index, (self.rid[index] == rids) & self.alive[index]


@dataclass(frozen=True, slots=True)
class Slots:
    """A vector file's slots: `rows[slot]` is the chunk's row, -1 for a dead slot; int32, at least `part.slots` long."""

    part: Part
    rows: np.ndarray
    live: int


@dataclass(frozen=True, slots=True)
class View:
    """The tenant at one sequence number. A search works on one view from start to end; only flags change under it."""

    seq: int
    rows: Rows
    slots: Mapping[int, Slots]
    datasets: Mapping[str, int]
    documents: Mapping[str, int]
    document_names: Mapping[int, str]
    documents_known: int
    living: int
    switched_off: int
    facts: Mapping[str, str]

    @property
    def dead(self) -> int:
        """Rows of chunks that were deleted or replaced."""
        return self.rows.count - self.living


class Catalogue:
    """Keeps a `View` up to date. Thread-safe."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._refreshing = threading.Lock()
        self._view = self._load()

    @property
    def seq(self) -> int:
        """The sequence number of the last view."""
        return self._view.seq

    def view(self) -> View:
        """The view of everything committed before this call, by any process."""
        if self._record.head() != self._view.seq:
            with self._refreshing:
                self._refresh()
        return self._view

    def _load(self) -> View:
        tail = self._record.tail(0, documents_known=0, datasets_known=0)
        columns = tail.rows.T.copy()
        count = len(tail.rows)
        rows = Rows(
            count, columns[0].copy(), columns[1].view(np.uint64) ^ _SIGN, columns[2].astype(np.int32), columns[3].astype(np.int32),
            columns[5].astype(np.int32), columns[6].astype(np.int32), np.ones(count, bool), columns[4].astype(bool),
        )  # fmt: skip
        return View(
            seq=tail.seq,
            rows=rows,
            slots=_all_slots(rows, tail.parts),
            datasets={id_: number for number, id_ in tail.datasets},
            documents={id_: number for number, id_ in tail.documents},
            document_names=dict(tail.documents),
            documents_known=max((number for number, _ in tail.documents), default=0),
            living=count,
            switched_off=count - int(rows.available.sum()),
            facts=tail.facts,
        )

    def _refresh(self) -> None:
        view = self._view
        tail = self._record.tail(view.seq, view.documents_known, max(view.datasets.values(), default=0))
        if tail.seq == view.seq and not tail.whole:
            return
        if tail.whole or (view.dead > _COMPACT_ABOVE and view.dead > view.living):
            self._view = self._load()
            return
        self._view = _advance(view, tail)


def _advance(view: View, tail: Tail) -> View:
    rows = view.rows
    gone, known = rows.find_each(tail.gone)
    gone = gone[known]
    rows.alive[gone] = False
    last = rows.rid[rows.count - 1] if rows.count else 0
    old, new = tail.rows[tail.rows[:, 0] <= last], tail.rows[tail.rows[:, 0] > last]
    changed, known = rows.find_each(old[:, 0])
    changed, old = changed[known], old[known]
    rows.available[changed] = old[:, 4].astype(bool)
    slots = _slots_without(view.slots, rows, gone)
    if tail.rewritten:
        # A search under way still pairs the old slots with the old file: change a copy.
        rows = replace(rows, slot=rows.slot.copy())
        rows.slot[changed] = old[:, 6]
    rows = _append(rows, new)
    added = np.arange(view.rows.count, rows.count)
    for part in tail.parts:
        if part.number in tail.rewritten or part.number not in slots:
            slots[part.number] = _slots_of(rows, part, np.flatnonzero(rows.part[: rows.count] == part.number))
        else:
            slots[part.number] = _extended(slots[part.number], part, rows, added[rows.part[added] == part.number])
    present = {part.number for part in tail.parts}
    living = view.living - len(gone) + len(new)
    return replace(
        view,
        seq=tail.seq,
        rows=rows,
        slots={number: entry for number, entry in slots.items() if number in present},
        datasets={**view.datasets, **{id_: number for number, id_ in tail.datasets}},
        documents=_grown(view.documents, {id_: number for number, id_ in tail.documents}),
        document_names=_grown(view.document_names, dict(tail.documents)),
        documents_known=max((number for number, _ in tail.documents), default=view.documents_known),
        living=living,
        switched_off=living - int(np.count_nonzero(rows.available[: rows.count] & rows.alive[: rows.count])),
        facts=tail.facts,
    )


def _grown(known: Mapping, new: Mapping) -> Mapping:
    """Add in place: entries only ever come to a mapping, and copying a large one for every put would cost more than the put."""
    known.update(new)  # type: ignore[attr-defined]
    return known


def _append(rows: Rows, new: np.ndarray) -> Rows:
    """Rows with the new ones behind; the arrays are shared while there is room."""
    count = rows.count + len(new)
    if count > len(rows.rid):
        room = max(1024, count + count // 2)
        rows = replace(rows, **{name: _widened(getattr(rows, name), rows.count, room) for name in _COLUMNS})
    end = slice(rows.count, count)
    rows.rid[end] = new[:, 0]
    rows.id[end] = np.ascontiguousarray(new[:, 1]).view(np.uint64) ^ _SIGN
    rows.dataset[end], rows.document[end] = new[:, 2], new[:, 3]
    rows.available[end], rows.alive[end] = new[:, 4].astype(bool), True
    rows.part[end], rows.slot[end] = new[:, 5], new[:, 6]
    return replace(rows, count=count)


_COLUMNS = ("rid", "id", "dataset", "document", "part", "slot", "alive", "available")


def _widened(array: np.ndarray, count: int, room: int) -> np.ndarray:
    wider = np.zeros(room, array.dtype)
    wider[:count] = array[:count]
    return wider


def _all_slots(rows: Rows, parts: tuple[Part, ...]) -> dict[int, Slots]:
    order = np.argsort(rows.part[: rows.count], kind="stable")
    numbers = rows.part[order]
    starts = {part.number: np.searchsorted(numbers, [part.number, part.number + 1]) for part in parts}
    return {part.number: _slots_of(rows, part, order[slice(*starts[part.number])]) for part in parts}


def _slots_of(rows: Rows, part: Part, members: np.ndarray) -> Slots:
    members = members[rows.alive[members]]
    table = np.full(part.slots, -1, np.int32)
    table[rows.slot[members]] = members
    return Slots(part, table, len(members))


def _slots_without(slots: Mapping[int, Slots], rows: Rows, gone: np.ndarray) -> dict[int, Slots]:
    result = dict(slots)
    for number in np.unique(rows.part[gone]).tolist():
        if number in result:
            entry = result[number]
            dead = gone[rows.part[gone] == number]
            entry.rows[rows.slot[dead]] = -1
            result[number] = replace(entry, live=entry.live - len(dead))
    return result


def _extended(entry: Slots, part: Part, rows: Rows, added: np.ndarray) -> Slots:
    table = entry.rows
    if part.slots > len(table):
        table = np.full(part.slots + part.slots // 2, -1, np.int32)
        table[: len(entry.rows)] = entry.rows
    table[rows.slot[added]] = added
    return Slots(part, table, entry.live + len(added))
