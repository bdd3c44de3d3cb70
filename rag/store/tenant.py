"""One open tenant: its record, vector files, arrays in memory, text index and upkeep, and a search over them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rag.errors import Corrupt, InvalidArgument
from rag.store.catalogue import Catalogue, Slots, View
from rag.store.leader import Analyse, Leader
from rag.store.record import Record
from rag.store.search import search
from rag.store.text import TextIndex, TextSearcher
from rag.store.vectors import VectorFiles, checked_units
from rag.types import Candidates, Chunk, SearchRequest, StoredChunk

RECORD_NAME = "chunks.sqlite3"


class Tenant:
    """Everything of one tenant in one folder. Opening creates what is missing. Thread-safe."""

    def __init__(self, folder: Path, analyser_version: str, analyse: Analyse | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.files = VectorFiles(folder / "vectors")
        self.record = Record(folder / RECORD_NAME, self.files)
        self.catalogue = Catalogue(self.record)
        self.leader = Leader(folder, self.record, self.catalogue, analyser_version, analyse)
        self.inode = (folder / RECORD_NAME).stat().st_ino
        self._text: TextIndex | None = None
        self._text_name = ""
        self._damaged_text: str | None = None
        text = self._text_index(self.catalogue.view())
        if text is None:
            self._text_is_damaged()
        else:
            self.leader.trust(text)

    def close(self) -> None:
        """Release files. Nobody may be using the tenant."""
        self.leader.release()
        self.record.close()

    @property
    def moved(self) -> bool:
        """The folder was removed or replaced since it was opened: another process dropped the tenant."""
        try:
            return (self.folder / RECORD_NAME).stat().st_ino != self.inode
        except OSError:
            return True

    def look_again(self) -> None:
        """Where the text index was damaged: it is not any more when another process has published a new one."""
        if self.leader.text_damaged.is_set() and not self.moved:
            self._searcher(self.catalogue.view())

    @property
    def behind(self) -> bool:
        """The text index lacks changes that this process has seen."""
        return self.leader.progress.indexed < self.catalogue.seq

    def put(self, chunks: Sequence[Chunk], vectors: np.ndarray | None, space: str) -> int:
        """Store chunks; the last change's sequence number."""
        return self.record.put(chunks, _units(len(chunks), vectors), space)

    def replace(self, before: Sequence[Chunk], after: Sequence[Chunk], vectors: np.ndarray | None, space: str) -> tuple[list[bool], int]:
        """Store chunks that are unchanged since; which they were, and the last change's sequence number."""
        if [chunk.id for chunk in before] != [chunk.id for chunk in after]:
            raise InvalidArgument("a chunk is replaced by one of another id")
        return self.record.replace(before, after, _units(len(after), vectors), space)

    def load(self, stored: Sequence[StoredChunk]) -> Iterator[int]:
        """Store chunks with their vectors as they are; the last change's sequence number of each transaction."""
        groups: dict[str, list[StoredChunk]] = {}
        for item in stored:
            groups.setdefault("" if item.vector is None else item.space, []).append(item)
        for space, items in groups.items():
            vectors = [item.vector for item in items if item.vector is not None]
            matrix = np.stack(vectors) if vectors else np.empty((len(items), 0), np.float16)
            yield self.record.put([item.chunk for item in items], matrix, space)

    def search(self, request: SearchRequest) -> Candidates:
        """As the port says. A damaged part answers nothing, is named in `degraded`, and is repaired in the background."""
        view = self.catalogue.view()
        degraded: set[str] = set()
        text = self._searcher(view) if request.terms else None
        view = self.catalogue.view()  # not older than the text index, whose rows would be unknown otherwise
        if request.terms and text is None and view.living:
            degraded.add("text")

        def matrix(slots: Slots) -> np.ndarray | None:
            try:
                return self.files.matrix(slots.part, slots.rows[: slots.part.slots] >= 0)
            except Corrupt:
                if self._is_rewritten(slots):
                    raise
                self.leader.damaged_parts.add(slots.part.number)
                degraded.add("vector")
                return None

        try:
            found = search(request, view, text, matrix)
        except Corrupt:
            if self.catalogue.view().slots.keys() != view.slots.keys() or any(self._is_rewritten(slots) for slots in view.slots.values()):
                return self.search(request)
            self._text_is_damaged()
            degraded.add("text")
            found = search(request, view, None, matrix)
        return replace(found, degraded=tuple(sorted(degraded))) if degraded else found

    def vectors(self, chunk_ids: Sequence[str], space: str) -> np.ndarray:
        """As the port says."""
        dimension, found = self.record.vectors(chunk_ids, space)
        result = np.full((len(chunk_ids), dimension), np.nan, np.float32)
        for row, chunk_id in enumerate(chunk_ids):
            if chunk_id in found:
                result[row] = found[chunk_id]
        return result / np.linalg.norm(result, axis=1, keepdims=True) if dimension else result

    def _is_rewritten(self, slots: Slots) -> bool:
        """The part has a newer file than the one this view speaks of."""
        newest = self.catalogue.view().slots.get(slots.part.number)
        return newest is None or newest.part.generation != slots.part.generation

    def _searcher(self, view: View) -> TextSearcher | None:
        try:
            index = self._text_index(view)
            return index.searcher() if index is not None else None
        except Corrupt:
            self._text_is_damaged()
            return None

    def _text_index(self, view: View) -> TextIndex | None:
        """The published index, None while there is none that is sound and of this server's recipe."""
        name = view.facts.get("text", "")
        if not name or view.facts.get("recipe") != self.leader.recipe:
            return None
        if self.leader.text_damaged.is_set():
            if name == self._damaged_text:
                return None
            self.leader.text_damaged.clear()  # another process has built a new one
        if name != self._text_name:
            try:
                self._text, self._text_name = TextIndex(self.folder / "text" / name), name
            except Corrupt:
                self._text_is_damaged()
                return None
        return self._text

    def _text_is_damaged(self) -> None:
        self._damaged_text = self.catalogue.view().facts.get("text")
        self._text, self._text_name = None, ""
        self.leader.progress.indexed = 0
        self.leader.text_damaged.set()


def _units(count: int, vectors: np.ndarray | None) -> np.ndarray | None:
    return None if vectors is None else checked_units(vectors, count)
