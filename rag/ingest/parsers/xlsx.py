"""Spreadsheets (xlsx, xlsm, xlsb, xls, ods) by calamine; a sheet too sparse for it, or one it fails on, by openpyxl."""

import datetime
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import python_calamine

from rag.errors import Encrypted, ParseFailed
from rag.ingest.parsers import zipped
from rag.ingest.parsers.rows import Table, add_table
from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder
from rag.types import ParsedDocument

MAX_DENSE_CELLS = 20_000_000  # calamine keeps every cell between the first and the last, also those that are not there
PROGRESS_EVERY = 2000
_SCAN_BYTES = 1 << 20
_CELL = re.compile(rb'<(?:\w+:)?c [^>]*?r="([A-Z]{1,3})([0-9]{1,7})"')
_ROW = re.compile(rb'<(?:\w+:)?row [^>]*?r="([0-9]{1,7})"')


def parse(source: Path, progress: Progress, *, careful: bool = False) -> ParsedDocument:
    """All sheets, each under a heading with its name. Raises `ParseFailed`, `Encrypted`, `TooLarge`."""
    builder = DocumentBuilder()
    for table in tables(source, progress, careful=careful):
        add_table(builder, table)
    return builder.build()


def tables(source: Path, progress: Progress, *, careful: bool = False) -> Iterator[Table]:
    """The sheets in their order; each one's rows must be read before the next sheet is asked for.

    `careful` leaves calamine out, which ends the process over some files that openpyxl reads.
    """
    if zipfile.is_zipfile(source):
        with zipped.open_zip(source) as archive:
            sparse = any(_is_sparse(archive, name) for name in archive.namelist() if _is_sheet(name))
        if sparse or careful:
            yield from _by_openpyxl(source, progress)
            return
    try:
        workbook = python_calamine.CalamineWorkbook.from_path(source)
    except python_calamine.PasswordError as exc:
        raise Encrypted("the spreadsheet is protected by a password: remove it and upload the file again") from exc
    except (python_calamine.CalamineError, OSError) as exc:
        if not zipfile.is_zipfile(source):
            raise ParseFailed("the spreadsheet is damaged and cannot be opened") from exc
        yield from _by_openpyxl(source, progress)
        return
    with workbook:
        for name in workbook.sheet_names:
            try:
                sheet = workbook.get_sheet_by_name(name)
            except python_calamine.CalamineError:
                continue  # a chart or a macro sheet
            yield Table(name, _told(progress, name, (tuple(map(cell_text, row)) for row in sheet.iter_rows())))


def _by_openpyxl(source: Path, progress: Progress) -> Iterator[Table]:
    try:
        workbook = openpyxl.load_workbook(source, read_only=True, data_only=True)
    except Exception as exc:
        raise ParseFailed("the spreadsheet is damaged and cannot be opened") from exc
    try:
        for sheet in workbook.worksheets:
            sheet.reset_dimensions()  # what the file says of its size is not to be believed
            rows = (tuple(map(cell_text, row)) for row in sheet.iter_rows(values_only=True))
            yield Table(sheet.title, _told(progress, sheet.title, rows))
    finally:
        workbook.close()


def _told(progress: Progress, name: str, rows: Iterator[Sequence[str]]) -> Iterator[Sequence[str]]:
    for index, row in enumerate(rows):
        if index % PROGRESS_EVERY == 0:
            progress(f"sheet {name!r} row", index + 1, 0)
        yield row


def cell_text(value: Any) -> str:
    """A cell's value as people write it: 3.0 is 3, a date is in ISO form."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat(" ") if isinstance(value, datetime.datetime) else value.isoformat()
    return str(value)


def _is_sheet(name: str) -> bool:
    return name.startswith("xl/worksheets/") and name.endswith(".xml")


def _is_sparse(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether the rectangle around the sheet's cells has far more cells than calamine can keep."""
    last_row = last_column = 0
    tail = b""
    with archive.open(name) as stream:
        while block := stream.read(_SCAN_BYTES):
            block = tail + block
            for column, row in _CELL.findall(block):
                last_column = max(last_column, _column_number(column))
                last_row = max(last_row, int(row))
            for row in _ROW.findall(block):
                last_row = max(last_row, int(row))
            tail = block[-256:]
    return last_row * last_column > MAX_DENSE_CELLS


def _column_number(letters: bytes) -> int:
    number = 0
    for letter in letters:
        number = number * 26 + letter - 64
    return number
