"""The text index of one tenant: tantivy with BM25 summed over the chunk's term fields. Derived from the record, so it may be lost."""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tantivy

from rag.errors import Corrupt, Unavailable
from rag.store.record_reader import TextRow
from rag.store.rows import indexed_text
from rag.types import Term

FORMAT = "2"
FIELDS = ("title", "content", "keywords", "questions")
_WRITER_BYTES = 15_000_000  # tantivy's least
_FOOTER_MAGIC = 1337
_PIECE_BYTES = 1 << 20
_DISK_SIGNS = ("os error 28", "os error 30", "os error 27", "os error 13")  # full, read-only, too large, not permitted
_MUST, _SHOULD = tantivy.Occur.Must, tantivy.Occur.Should


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_integer_field("rid", indexed=True, fast=True)
    builder.add_integer_field("seq", fast=True)
    for name in ("dataset", "document", "available"):
        builder.add_integer_field(name, indexed=True)
    for name in FIELDS:
        builder.add_text_field(name, tokenizer_name="blanks", index_option="freq")
    return builder.build()


SCHEMA = _schema()


class TextIndex:
    """One folder with a tantivy index, for reading; `writer` is for the tenant's leader only. Every method may raise `Corrupt`."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.folder = folder
        self._stamp: tuple[int, int] | None = None
        with damage_as_corrupt():
            if create:
                folder.mkdir(parents=True)
            elif not tantivy.Index.exists(str(folder)):
                raise Corrupt("the text index is missing")
            else:
                verify(folder)
            self._index = tantivy.Index(SCHEMA, str(folder), reuse=not create)
            # A tokenizer is not kept with the index. Terms come analysed, so a blank is all that parts them.
            blanks = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build()
            self._index.register_tokenizer("blanks", blanks)
            self._index.config_reader("manual")

    def searcher(self) -> "TextSearcher":
        """A searcher over the last commit of any process."""
        with damage_as_corrupt():
            status = os.stat(self.folder / "meta.json")
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._index.reload()
                self._stamp = stamp
            return TextSearcher(self._index.searcher())

    def writer(self) -> "TextWriter":
        """The one writer. Raises `BlockingIOError` while another one is open."""
        try:
            return TextWriter(self._index.writer(_WRITER_BYTES, 1))
        except ValueError as exc:
            if "LockBusy" in str(exc):
                raise BlockingIOError("the text index has another writer") from exc
            raise


class TextSearcher:
    """One commit of the index."""

    def __init__(self, searcher: tantivy.Searcher) -> None:
        self._searcher = searcher

    @property
    def count(self) -> int:
        """Chunks in the index."""
        return self._searcher.num_docs

    def last_seq(self) -> int:
        """The highest sequence number of any indexed chunk, 0 in an empty index."""
        with damage_as_corrupt():
            hits = self._searcher.search(tantivy.Query.all_query(), 1, count=False, order_by_field="seq").hits
        return int(hits[0][0]) if hits else 0

    def search(self, query: tantivy.Query, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """The best hits: rids int64 and scores float32, best first."""
        limit = min(limit, self._searcher.num_docs)
        if limit <= 0:  # tantivy panics
            return np.empty(0, np.int64), np.empty(0, np.float32)
        with damage_as_corrupt():
            hits = self._searcher.search(query, limit, count=False).hits
            rids = self._searcher.fast_field_values("rid", [address for _, address in hits])
        return np.array(rids, np.int64), np.array([score for score, _ in hits], np.float32)


class TextWriter:
    """Applies changes. After any exception drop the writer: tantivy goes on silently indexing nothing."""

    def __init__(self, writer: tantivy.IndexWriter) -> None:
        self._writer: tantivy.IndexWriter | None = writer

    def apply(self, rows: Sequence[TextRow]) -> None:
        """Bring the rows' chunks up to date. Nothing is visible, or durable, before `commit`."""
        stale = {row.rid for row in rows if not row.fresh}
        with damage_as_corrupt():
            if stale:
                self._writer.delete_documents_by_query(tantivy.Query.term_set_query(SCHEMA, "rid", list(stale)))
            for row in {row.rid: row for row in rows}.values():
                if row.terms is not None:
                    self._writer.add_document(document(row))

    def commit(self) -> None:
        """Make everything applied durable and visible."""
        with damage_as_corrupt():
            self._writer.commit()

    def close(self) -> None:
        """Let merges end and give the lock back."""
        with damage_as_corrupt():
            self._writer.wait_merging_threads()
        self._writer = None

    def abandon(self) -> None:
        """Give the lock back at once, without a commit. A traceback may keep this object, so it lets go of the writer itself."""
        self._writer = None


def document(row: TextRow) -> tantivy.Document:
    """The index's document of a chunk."""
    result = tantivy.Document()
    for name in ("rid", "seq", "dataset", "document", "available"):
        result.add_integer(name, int(getattr(row, name)))
    for name, text in zip(FIELDS, row.terms, strict=True):
        result.add_text(name, indexed_text(text))
    return result


def terms_query(terms: Sequence[Term], boosts: Mapping[str, float]) -> tantivy.Query:
    """BM25 of the terms summed over the fields, each weighted by term and field."""
    return tantivy.Query.boolean_query([
        (_SHOULD, tantivy.Query.boost_query(tantivy.Query.term_query(SCHEMA, name, term.text), term.weight * boosts[name]))
        for name in FIELDS if boosts.get(name, 0.0) > 0.0
        for term in terms if term.weight > 0.0
    ])  # fmt: skip


def within(query: tantivy.Query, filters: Mapping[str, Sequence[int]]) -> tantivy.Query:
    """The query over only those documents whose integer fields hold one of the given values; scores stay the same."""
    if not filters:
        return query
    restrictions = [
        (_MUST, tantivy.Query.const_score_query(tantivy.Query.term_set_query(SCHEMA, name, values), 0.0))
        for name, values in filters.items()
    ]
    return tantivy.Query.boolean_query([(_MUST, query), *restrictions])


def verify(folder: Path) -> None:
    """Check the checksum that tantivy keeps at the end of each segment file. Raises `Corrupt`."""
    try:
        listed = json.loads((folder / "meta.json").read_bytes())["segments"]
        segments = {segment["segment_id"].replace("-", "") for segment in listed}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Corrupt("the text index is damaged") from exc
    for path in sorted(folder.iterdir()):
        if path.name.partition(".")[0] in segments and not _intact(path):
            raise Corrupt("the text index is damaged")


def _intact(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 8))
            length, magic = struct.unpack("<II", file.read(8))
            body = size - 8 - length
            if magic != _FOOTER_MAGIC or body < 0:
                return False
            file.seek(body)
            expected = json.loads(file.read(length))["crc"]
            file.seek(0)
            crc = 0
            while body > 0 and (piece := file.read(min(body, _PIECE_BYTES))):
                crc, body = zlib.crc32(piece, crc), body - len(piece)
            return crc == expected
    except FileNotFoundError:  # a merge of another process has just replaced it
        return True
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False


@contextmanager
def damage_as_corrupt() -> Iterator[None]:
    """tantivy reports damage as `ValueError`, or as a panic, which is a `BaseException`."""
    try:
        yield
    except ValueError as exc:
        if any(sign in str(exc).lower() for sign in _DISK_SIGNS):
            raise Unavailable("the text index cannot be written: the disk is full or read-only") from exc
        raise Corrupt("the text index is damaged or refuses a value") from exc
    except FileNotFoundError as exc:
        raise Corrupt("the text index is missing") from exc
    except BaseException as exc:
        if type(exc).__name__ == "PanicException":
            raise Corrupt("the text index is damaged") from exc
        raise
