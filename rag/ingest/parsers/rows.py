"""Tables of rows, from spreadsheets and delimited text: each row becomes a line that names its columns."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rag.ingest.text import DocumentBuilder

_BLANKS = re.compile(r"\s+")
_NUMBER = re.compile(r"[-+]?[\d.,]+%?")
MAX_HEADER_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Table:
    """A sheet's name, "" where there is none, and its rows of cells, read as they are asked for."""

    name: str
    rows: Iterable[Sequence[str]]


def add_table(builder: DocumentBuilder, table: Table) -> None:
    """Append the table as one block of lines, under a heading with its name."""
    lines = [row_text(header, cells) for header, cells in with_header(table.rows)]
    if lines:
        builder.add(table.name, level=1)
        builder.add("\n".join(lines), kind="table")


def with_header(rows: Iterable[Sequence[str]]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Each row that is not blank with the table's header, `()` where it has none. A header comes alone only in a table without rows."""
    remaining = (cells for cells in (_trimmed(row) for row in rows) if cells)
    first = next(remaining, None)
    if first is None:
        return
    header = first if is_header(first) else ()
    second = next(remaining, None)
    if not header or second is None:
        yield (), first
    if second is not None:
        yield header, second
    for cells in remaining:
        yield header, cells


def is_header(cells: Sequence[str]) -> bool:
    """Whether a first row names columns: two or more short, different words and no number."""
    named = [cell for cell in cells if cell]
    return (
        len(cells) >= 2
        and len(named) == len(cells)
        and len(set(named)) == len(named)
        and all(len(cell) <= MAX_HEADER_CHARACTERS and not _NUMBER.fullmatch(cell) for cell in named)
    )


def row_text(header: Sequence[str], cells: Sequence[str]) -> str:
    """A row as one line: `Name: Ada; Born: 1815`, or `Ada | 1815` without a header."""
    if not header:
        return " | ".join(cells)
    named = [f"{header[index]}: {cell}" if index < len(header) else cell for index, cell in enumerate(cells) if cell]
    return "; ".join(named)


def _trimmed(row: Sequence[str]) -> tuple[str, ...]:
    cells = [_BLANKS.sub(" ", cell).strip() for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return tuple(cells)
