"""The upkeep of one tenant's derived data: text index, vector files, change log. Of all processes one leads, by a file lock.

The lock goes with the process, so a killed leader is followed by any process that has work for the tenant. One that fails gives the
lock back for as long: whoever waits tries itself, and either does the work or knows at once why it cannot be done.
"""

import fcntl
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from rag.errors import Corrupt, Unavailable
from rag.store.catalogue import Catalogue
from rag.store.progress import Progress
from rag.store.record import Record
from rag.store.record_file import reason
from rag.store.record_reader import TextRow
from rag.store.text import FIELDS, FORMAT, TextIndex, TextWriter
from rag.types import Chunk, ChunkTerms

Analyse = Callable[[Chunk], ChunkTerms]

_BATCH = 2048
_LINGER_SECONDS = 0.4  # how long changes gather when nobody waits for them: a commit costs many small disk writes
_IDLE_SECONDS = 3.0
_RETRY_SECONDS = 1.0
_KEPT_CHANGES = 20_000
_PRUNE_ABOVE = 60_000
_COMPACT_DEAD_ABOVE = 1024


class Leader:
    """Upkeep of one tenant, driven by `step`. `analyse` computes a chunk's terms anew when the analyser's version changed."""

    def __init__(self, folder: Path, record: Record, catalogue: Catalogue, analyser_version: str, analyse: Analyse | None) -> None:
        self.recipe = f"{FORMAT}:{analyser_version}"
        self.progress = Progress(folder / "progress")
        self.failure: str | None = None
        self.stopped = False
        self.damaged_parts: set[int] = set()
        self.text_damaged = threading.Event()
        self.advanced = threading.Condition()
        self._folder, self._record, self._catalogue, self._analyse = folder, record, catalogue, analyse
        self._lock: int | None = None
        self._index: TextIndex | None = None
        self._writer: TextWriter | None = None
        self._rebuild: Iterator[None] | None = None
        self._indexed = 0
        self._checked = False
        self._refused: set[int] = set()
        self._batch = _BATCH
        self._worked = self._lingering = self._resume_at = 0.0

    # ------------------------------------------------------------------------------------------------ waiting
    def pending(self) -> bool:
        """Whether there is work that this process knows of."""
        return self.text_damaged.is_set() or bool(self.damaged_parts) or self.progress.indexed < self._record.head()

    def wait(self, seq: int, timeout_seconds: float) -> None:
        """Return when the changes up to `seq` are indexed. Raises `Unavailable` when indexing fails or takes too long."""
        deadline = time.monotonic() + timeout_seconds
        self.progress.want(seq)
        with self.advanced:
            self.failure = None
            while self.progress.indexed < seq or self.text_damaged.is_set():
                if self.stopped or self.failure is not None:
                    raise Unavailable(f"stored, but not searchable by text yet: {self.failure or 'the tenant is closed or removed'}")
                if time.monotonic() > deadline:
                    raise Unavailable(f"stored, but not searchable by text within {timeout_seconds:g} s")
                self.advanced.wait(0.004)  # another process may be the one that indexes

    def stop(self) -> None:
        """Nobody drives `step` any more: let those that wait go."""
        with self.advanced:
            self.stopped = True
            self.advanced.notify_all()

    def trust(self, index: TextIndex) -> None:
        """Lower the shared number to what the index proves: the file may be older, or newer, than the index. A leader corrects it."""
        self.progress.indexed = min(self.progress.indexed, self._reached(index.searcher().last_seq()))

    # ------------------------------------------------------------------------------------------------ one step
    def step(self) -> bool:
        """Do a bounded piece of work; False when there is none left and everything is released."""
        if time.monotonic() < self._resume_at:
            return True
        try:
            more = self._work() if self._lead() else self.pending()
            if not more:
                self.failure = None  # also where another process has done what failed here
            return more
        except BlockingIOError:
            return True
        except (Unavailable, OSError) as exc:
            self.retreat(exc if isinstance(exc, Unavailable) else Unavailable(reason(exc)))
            return True

    def release(self) -> None:
        """Close the writer and stop leading."""
        self._rebuild = None
        self._drop_writer(gently=True)
        self._index = None
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _lead(self) -> bool:
        """Whether this process leads; false while another one does."""
        if self._lock is not None:
            return True
        lock = os.open(self._folder / "leader.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(lock)
            if isinstance(exc, BlockingIOError):
                return False
            raise
        self._lock = lock
        self._worked = time.monotonic()
        return True

    def _work(self) -> bool:
        if self._rebuild is not None:
            self._continue_rebuild()
            return True
        if self._index is None or self.text_damaged.is_set():
            self._open()
            return True
        if self.damaged_parts:
            self._repair_part(next(iter(self.damaged_parts)))
            return True
        head = self._record.head()
        if self._indexed < head:
            return self._index_changes()
        self._lingering = 0.0
        self.progress.indexed = self._indexed
        if not self._checked:
            self._check_count()
            return True
        if time.monotonic() - self._worked < _IDLE_SECONDS:
            return True
        self._tidy()
        self.release()
        return self.pending()

    # ------------------------------------------------------------------------------------------------ text
    def _open(self) -> None:
        """Open the published index, or start to build a new one where it is missing, damaged or of another recipe."""
        facts = self._catalogue.view().facts
        try:
            if "text" not in facts or facts.get("recipe") != self.recipe:
                raise Corrupt("the text index is of another version")
            self._index = TextIndex(self._folder / "text" / facts["text"])
            last = self._index.searcher().last_seq()
        except Corrupt:
            self._drop_writer()
            self._index = None
            self.progress.indexed = 0
            self._rebuild = self._build(facts.get("recipe", self.recipe) != self.recipe)
            return
        self._indexed = self._reached(last)
        self.progress.indexed = self._indexed
        self._refused = self._record.quarantined()
        self.text_damaged.clear()

    def _reached(self, last: int) -> int:
        """Up to where the log is indexed for certain, `last` being the highest number in the index: what was pruned, was indexed."""
        return max(last, self._record.floor() - 1)

    def _build(self, analyse: bool) -> Iterator[None]:
        """Write a new index from the record, a batch a turn, and publish it. Changes made meanwhile follow from the log."""
        text = self._folder / "text"
        for stale in text.glob("*"):
            shutil.rmtree(stale, ignore_errors=True)
        name = uuid.uuid4().hex
        seq, last_rid = self._record.position()
        index, rid = TextIndex(text / name, create=True), 0
        while rows := self._record.text_rows(rid, last_rid, self._batch, seq):
            if analyse and self._analyse is not None:
                rows = self._analysed(rows)
            if self._write(index, rows):
                rid = rows[-1].rid
            yield
        self._drop_writer(gently=True)
        self._record.set_facts(text=name, recipe=self.recipe)
        self._index, self._indexed = index, seq
        self.progress.indexed = seq
        self.text_damaged.clear()

    def _analysed(self, rows: list[TextRow]) -> list[TextRow]:
        chunks = self._record.by_rid([row.rid for row in rows])
        terms = {rid: self._analyse(chunk) for rid, chunk in chunks.items()}
        texts = {rid: tuple(getattr(value, name) for name in FIELDS) for rid, value in terms.items()}
        self._record.set_terms(list(texts.items()))
        return [TextRow(row.seq, row.rid, True, row.dataset, row.document, row.available, texts.get(row.rid, row.terms)) for row in rows]

    def _continue_rebuild(self) -> None:
        try:
            next(self._rebuild)
        except StopIteration:
            self._rebuild = None
            self._announce()

    def _index_changes(self) -> bool:
        now = time.monotonic()
        self._lingering = self._lingering or now
        if self.progress.wanted <= self._indexed and now - self._lingering < _LINGER_SECONDS:
            return True
        rows = self._record.text_changes(self._indexed, self._batch)
        if not self._write(self._index, rows):
            return True
        self._indexed = rows[-1].seq
        self.progress.indexed = self._indexed
        self._worked, self._lingering = now, 0.0
        self._announce()
        return True

    def _write(self, index: TextIndex, rows: list[TextRow]) -> bool:
        """Commit rows to the index. False: it refused one of them; the next call gets fewer, or leaves the one out."""
        if self._writer is None:
            self._writer = index.writer()
        try:
            self._writer.apply([row for row in rows if row.rid and row.rid not in self._refused])
            self._writer.commit()
        except Corrupt:
            self._drop_writer()
            self._narrow(index, rows)
            return False
        self._batch = _BATCH
        return True

    def _narrow(self, index: TextIndex, rows: list[TextRow]) -> None:
        """Find the row that the index refuses and put it aside. Raises `Corrupt` when it is not the row."""
        if len(rows) > 1:
            self._batch = max(1, len(rows) // 8)
            return
        writer = index.writer()
        writer.commit()
        writer.close()
        self._refused.add(rows[0].rid)
        self._record.quarantine(rows[0].rid)

    def _check_count(self) -> None:
        """The index must hold as many chunks as the record: it does not after a folder was put back from an old copy."""
        self._checked = True
        seq = self._indexed
        count, expected = self._index.searcher().count, self._record.indexable()
        if count != expected and self._record.head() == seq:
            self._index = None
            self._record.set_facts(recipe="damaged")

    # ------------------------------------------------------------------------------------------------ the rest
    def _repair_part(self, number: int) -> None:
        self._record.rewrite_part(number)
        self.damaged_parts.discard(number)
        self._announce()

    def _tidy(self) -> None:
        """Before the lead is given back: drop dead slots, leftovers of killed writers, and the old end of the change log."""
        for slots in self._catalogue.view().slots.values():
            dead = slots.part.slots - slots.live
            if slots.live == 0 or (dead > _COMPACT_DEAD_ABOVE and dead > slots.live):
                self._record.rewrite_part(slots.part.number)
        self._record.sweep()
        head = self._record.head()
        if head - self._record.floor() > _PRUNE_ABOVE:
            self._record.prune(self._indexed, _KEPT_CHANGES)

    def _drop_writer(self, *, gently: bool = False) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            if gently:
                writer.close()
        except Corrupt:
            self.text_damaged.set()
        finally:
            writer.abandon()

    def retreat(self, exc: Unavailable) -> None:
        """After a failure: forget what is open, so that it is checked when it is opened again, stop leading, and try later."""
        self._drop_writer()
        self._index = self._rebuild = None
        self._unlock()
        self._resume_at = time.monotonic() + _RETRY_SECONDS
        with self.advanced:
            self.failure = str(exc)
            self.advanced.notify_all()

    def _announce(self) -> None:
        with self.advanced:
            self.failure = None
            self.advanced.notify_all()
