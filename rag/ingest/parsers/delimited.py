"""CSV and its kin: the delimiter is found out, each row becomes a line that names its columns."""

import csv
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from rag.errors import ParseFailed
from rag.ingest.parsers.rows import Table, add_table
from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder, decode, normalise
from rag.types import ParsedDocument

SAMPLE_LINES = 20
DELIMITERS = ",;\t|"
PROGRESS_EVERY = 5000

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def parse(source: Path, progress: Progress) -> ParsedDocument:
    """All rows. Raises `ParseFailed` for what is no text or no table."""
    builder = DocumentBuilder()
    for table in tables(source, progress):
        add_table(builder, table)
    return builder.build()


def tables(source: Path, progress: Progress) -> Iterator[Table]:
    """The file's one table."""
    yield table_of(normalise(decode(source.read_bytes())), progress)


def table_of(text: str, progress: Progress) -> Table:
    """The text's rows."""
    return Table("", _rows(text, progress))


def _rows(text: str, progress: Progress) -> Iterator[list[str]]:
    try:
        for index, row in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text))):
            if index % PROGRESS_EVERY == 0:
                progress("row", index + 1, 0)
            yield row
    except csv.Error as exc:
        raise ParseFailed("the file is not a valid table of delimited text") from exc


def delimiter_of(text: str) -> str:
    """The delimiter that cuts the first lines into equally many cells, as many as possible."""
    lines = [line for line in text[:65536].split("\n")[:SAMPLE_LINES] if line.strip()]
    return max(DELIMITERS, key=lambda delimiter: _evenness(lines, delimiter))


def _evenness(lines: list[str], delimiter: str) -> tuple[float, int]:
    try:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
    except csv.Error:
        return (0.0, 0)
    usual = max(set(widths), key=widths.count) if widths else 1
    return (widths.count(usual) / len(widths) if usual > 1 else 0.0, usual)
