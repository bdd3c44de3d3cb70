"""Chunk methods: how a parsed file becomes chunks.

`naive` fills chunks up to the size. `manual`, `paper`, `book` and `laws` let every heading begin a chunk, `presentation`
every slide. `one` keeps the document whole. `qa`, `table` and `tag` make a chunk of each pair or row.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rag.errors import ParseFailed, UnsupportedType
from rag.ingest.parse import File, parse, recognise
from rag.ingest.parsers import delimited, xlsx
from rag.ingest.parsers.markdown import heading_text
from rag.ingest.parsers.rows import Table, row_text, with_header
from rag.ingest.progress import Progress
from rag.ingest.text import decode, normalise
from rag.nlp.split import Counter, Span, SplitOptions, split
from rag.types import Block, ParsedDocument

SIZE_ONE_TOKENS = 8192  # "one" keeps documents up to this whole, and answers of "qa" too
MAX_POSITIONS = 64  # of one chunk
MAX_HEADING_CHARACTERS = 200

_BY_HEADING = frozenset(("manual", "paper", "book", "laws"))
_BY_ROW = frozenset(("qa", "table", "tag"))
_UNREADABLE = {
    "picture": "images are not read: run text recognition (OCR) on it and upload its text",
    "audio": "sound is not read: transcribe it and upload the text",
}
_PREFIX = re.compile(r"^(?:Q|A|Question|Answer|问题|问|答案|答|回答)[ \t]*[:：][ \t]*", re.IGNORECASE)
_PAIR_HEADERS = frozenset(("question", "answer", "问题", "答案", "content", "tag", "tags", "q", "a"))


@dataclass(frozen=True, slots=True)
class Draft:
    """A chunk before it has vectors. `start`, `end` are offsets into the parsed text, both 0 for a row or pair.

    `headings` are those the chunk stands under, outermost first, without one that it begins with.
    """

    content: str
    size_tokens: int
    start: int = 0
    end: int = 0
    headings: tuple[str, ...] = ()
    positions: tuple[tuple[int, int, int, int, int], ...] = ()
    kind: str = ""
    tags: tuple[str, ...] = ()


def chunk(
    source: Path, name: str, method: str, config: Mapping[str, Any], counter: Counter, progress: Progress, *, careful: bool = False
) -> tuple[list[Draft], tuple[str, ...]]:
    """The file's chunks in order, and warnings for people. Raises as `rag.ingest.parse.parse`, and `InvalidArgument`."""
    if method in _UNREADABLE:
        raise UnsupportedType(_UNREADABLE[method])
    file = recognise(source, name)
    tables = _tables(file, progress, careful) if method in _BY_ROW else None
    if tables is not None:
        warnings = file.warnings
        drafts = list(_table_drafts(tables, method, counter))
    elif method in _BY_ROW - {"qa"}:
        raise ParseFailed(f"chunk method {method} needs a table: a CSV file, a spreadsheet or text with TABs")
    else:
        parsed = parse(file, progress, careful=careful)
        warnings = parsed.warnings
        drafts = list(
            _qa_drafts(_pairs_under_headings(parsed), counter) if method == "qa" else _text_drafts(parsed, method, config, counter)
        )
    if not drafts:
        raise ParseFailed("the file has no text")
    return drafts, warnings


# ---------------------------------------------------------------------------------------------------- text
def _text_drafts(parsed: ParsedDocument, method: str, config: Mapping[str, Any], counter: Counter) -> Iterator[Draft]:
    options = SplitOptions.from_config(config)
    if method == "one":
        options = SplitOptions(size=max(SIZE_ONE_TOKENS, options.size))
    outline = _Outline(parsed)
    for start, end in _segments(parsed, method):
        for span in split(parsed.text, options, counter, outline.sections, start, end):
            draft = outline.draft(span)
            yield replace(draft, size_tokens=counter.count(draft.content)) if options.strategy == "character" else draft


def _segments(parsed: ParsedDocument, method: str) -> list[tuple[int, int]]:
    """The stretches of text that no chunk reaches across."""
    borders = [0]
    if method == "presentation" and parsed.pages:
        borders += [after.start for before, after in pairwise(parsed.blocks) if after.page != before.page]
    elif method in _BY_HEADING:
        # a heading right under another stays with it
        borders += [after.start for before, after in pairwise(parsed.blocks) if after.level and not before.level]
    return list(zip(borders, [*borders[1:], len(parsed.text)], strict=True))


class _Outline:
    """Looks up, for a span of the text, the headings above it and the places it stands at."""

    def __init__(self, parsed: ParsedDocument) -> None:
        self._parsed = parsed
        self._starts = [block.start for block in parsed.blocks]
        self.sections = [block.start for block in parsed.blocks if block.level]
        self._paths = list(self._heading_paths())

    def draft(self, span: Span) -> Draft:
        """The span as a draft."""
        blocks = self._blocks(span)
        return Draft(
            content=self._parsed.text[span.start : span.end],
            size_tokens=span.size,
            start=span.start,
            end=span.end,
            headings=self._headings(span.start),
            positions=tuple(dict.fromkeys((block.page, *(block.box or (0, 0, 0, 0))) for block in blocks if block.page))[:MAX_POSITIONS],
            kind="table" if {block.kind for block in blocks if not block.level} == {"table"} else "",
        )  # fmt: skip

    def _blocks(self, span: Span) -> Sequence[Block]:
        first = max(0, bisect_right(self._starts, span.start) - 1)
        found = self._parsed.blocks[first : bisect_left(self._starts, span.end)]
        return [block for block in found if block.end > span.start]

    def _headings(self, offset: int) -> tuple[str, ...]:
        """Those open before the block at the offset: a heading there is in the chunk itself."""
        found = bisect_left(self.sections, offset)
        path = self._paths[found - 1] if found else ()
        if found < len(self.sections) and self.sections[found] == offset:
            level = len([1 for heading_level, _ in path if heading_level < self._level_at(offset)])
            path = path[:level]
        return tuple(text for _, text in path)

    def _level_at(self, offset: int) -> int:
        return self._parsed.blocks[bisect_left(self._starts, offset)].level

    def _heading_paths(self) -> Iterator[tuple[tuple[int, str], ...]]:
        """For each heading the path that ends with it, as levels and texts."""
        path: tuple[tuple[int, str], ...] = ()
        for block in self._parsed.blocks:
            if block.level:
                text = heading_text(self._parsed.text[block.start : block.end])[:MAX_HEADING_CHARACTERS]
                path = (*(entry for entry in path if entry[0] < block.level), (block.level, text))
                yield path


# ---------------------------------------------------------------------------------------------------- rows and pairs
def _table_drafts(tables: Iterator[Table], method: str, counter: Counter) -> Iterator[Draft]:
    if method == "table":
        for table in tables:
            for header, cells in with_header(table.rows):
                yield from _bounded(row_text(header, cells), counter, Draft("", 0, headings=(table.name,) if table.name else ()))
    elif method == "qa":
        yield from _qa_drafts((pair for table in tables for pair in _pairs(table)), counter)
    else:
        for table in tables:
            for content, tags in _pairs(table):
                names = tuple(dict.fromkeys(tag.strip() for tag in re.split("[,，;；]", tags) if tag.strip()))
                yield from _bounded(content, counter, Draft("", 0, tags=names))


def _tables(file: File, progress: Progress, careful: bool) -> Iterator[Table] | None:
    """The file's rows where it has such: spreadsheets, CSV, and text whose lines have TABs."""
    if file.format == "xlsx":
        return xlsx.tables(file.source, progress, careful=careful)
    if file.format == "csv":
        return delimited.tables(file.source, progress)
    if file.format == "text":
        text = normalise(decode(file.source.read_bytes()))
        if "\t" in text:
            return iter((Table("", (line.split("\t") for line in text.split("\n"))),))
    return None


def _pairs(table: Table) -> Iterator[tuple[str, str]]:
    """The first two cells of each row; a row with one cell continues the second cell of the row before."""
    pending: tuple[str, str] | None = None
    for index, row in enumerate(table.rows):
        cells = [cell.strip() for cell in row if cell.strip()]
        if index == 0 and len(cells) >= 2 and {cell.casefold() for cell in cells[:2]} <= _PAIR_HEADERS:
            continue
        if len(cells) >= 2:
            if pending:
                yield pending
            pending = cells[0], cells[1]
        elif cells and pending:
            pending = pending[0], f"{pending[1]}\n{cells[0]}"
    if pending:
        yield pending


def _pairs_under_headings(parsed: ParsedDocument) -> Iterator[tuple[str, str]]:
    """Each heading with those above it, and the text under it."""
    if not any(block.level for block in parsed.blocks):
        raise ParseFailed("no questions were found: they are columns of a table, text before a TAB, or headings")
    path: list[tuple[int, str]] = []
    answer: list[str] = []
    closing = Block(len(parsed.text), len(parsed.text), level=1)
    for block in (*parsed.blocks, closing):
        if block.level:
            if path and answer:
                yield " ".join(text for _, text in path), "\n".join(answer)
            answer = []
            path = [entry for entry in path if entry[0] < block.level]
            path.append((block.level, heading_text(parsed.text[block.start : block.end])))
        else:
            answer.append(parsed.text[block.start : block.end])


def _qa_drafts(pairs: Iterator[tuple[str, str]], counter: Counter) -> Iterator[Draft]:
    for question, answer in pairs:
        head = f"Question: {_PREFIX.sub('', question)}\tAnswer: "
        for piece in split(answer, SplitOptions(size=SIZE_ONE_TOKENS), counter):
            content = head + _PREFIX.sub("", answer[piece.start : piece.end])
            yield Draft(content, counter.count(content))


def _bounded(text: str, counter: Counter, draft: Draft) -> Iterator[Draft]:
    for span in split(text, SplitOptions(size=SIZE_ONE_TOKENS), counter):
        yield replace(draft, content=text[span.start : span.end], size_tokens=span.size)
