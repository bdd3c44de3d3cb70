"""PDF by pypdfium2: text in lines and paragraphs with their page and box; bookmarks become headings."""

import ctypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pypdfium2
import pypdfium2.raw as pdfium

from rag.errors import Encrypted, ParseFailed
from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder, normalise
from rag.types import ParsedDocument

PARAGRAPH_PITCH = 1.35  # a line so many times the page's usual distance below the one before begins a paragraph
MAX_HEADING_CHARACTERS = 200

_HYPHEN_AT_LINE_END = re.compile("[\x02\ufffe\u00ad]\r?\n?")  # how PDFium writes a hyphen that breaks a word
_LINE = re.compile(r"[^\r\n]+")
_BLANKS = re.compile(r"\s+")


@dataclass(slots=True)
class _Line:
    """A line and where it stands: `(left, right, top, bottom)` in points from the page's top left corner."""

    text: str
    box: tuple[float, float, float, float] | None


def parse(source: Path, progress: Progress) -> ParsedDocument:
    """The text of all pages. Raises `Encrypted`, and `ParseFailed` for a damaged file or one without any text."""
    document = _open(source)
    try:
        builder = DocumentBuilder()
        pages = len(document)
        headings = _bookmarks(document)
        for index in range(pages):
            progress("page", index + 1, pages)
            _add_page(builder, document, index, headings.get(index, {}))
        parsed = builder.build(document.get_metadata_value("Title"), pages)
    finally:
        document.close()
    if not parsed.text:
        raise ParseFailed("the PDF has no text, only images: run text recognition (OCR) on it and upload it again")
    return parsed


def _open(source: Path) -> pypdfium2.PdfDocument:
    try:
        return pypdfium2.PdfDocument(source)
    except pypdfium2.PdfiumError as exc:
        if exc.err_code in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
            raise Encrypted("the PDF is protected by a password: remove it and upload the file again") from exc
        raise ParseFailed("the PDF is damaged or cut off and cannot be opened") from exc


def _bookmarks(document: pypdfium2.PdfDocument) -> dict[int, dict[str, int]]:
    """Per page index the bookmarks' titles, folded for comparison, and their levels."""
    found: dict[int, dict[str, int]] = {}
    try:
        for bookmark in document.get_toc(max_depth=6):
            target = bookmark.get_dest()
            page = target.get_index() if target is not None else None
            if page is not None:
                found.setdefault(page, {})[_folded(bookmark.get_title())] = min(6, bookmark.level + 1)
    except (pypdfium2.PdfiumError, UnicodeError, RecursionError):
        return found  # a broken outline is no reason to refuse the text
    return found


def _folded(text: str) -> str:
    return _BLANKS.sub("", normalise(text)).casefold()


def _add_page(builder: DocumentBuilder, document: pypdfium2.PdfDocument, index: int, headings: dict[str, int]) -> None:
    try:
        page = document[index]
    except pypdfium2.PdfiumError:
        builder.warnings.append(f"page {index + 1} is damaged and was left out")
        return
    try:
        text_page = page.get_textpage()
        try:
            lines = list(_lines(text_page, page.get_height()))
        finally:
            text_page.close()
    except pypdfium2.PdfiumError:
        builder.warnings.append(f"page {index + 1} is damaged and was left out")
        return
    finally:
        page.close()
    usual_pitch = _usual_pitch(lines)
    paragraph: list[_Line] = []
    for line in lines:
        level = headings.get(_folded(line.text), 0) if headings and len(line.text) <= MAX_HEADING_CHARACTERS else 0
        if paragraph and (level or _begins_paragraph(paragraph[-1], line, usual_pitch)):
            _add_paragraph(builder, paragraph, index + 1, 0)
            paragraph = []
        if level:
            _add_paragraph(builder, [line], index + 1, level)
        else:
            paragraph.append(line)
    if paragraph:
        _add_paragraph(builder, paragraph, index + 1, 0)


def _lines(page: pypdfium2.PdfTextPage, page_height: float) -> Iterator[_Line]:
    characters = page.count_chars()
    text = page.get_text_range() if characters else ""
    aligned = len(text) == characters  # else PDFium left characters out, and a line's place is unknown
    for match in _LINE.finditer(_HYPHEN_AT_LINE_END.sub(lambda hyphen: "\u00ad" * len(hyphen[0]), text)):
        words = match[0].replace("\u00ad", "").strip()
        if words:
            yield _Line(words, _box(page, match.start(), match.end() - match.start(), page_height) if aligned else None)


def _box(page: pypdfium2.PdfTextPage, start: int, count: int, page_height: float) -> tuple[float, float, float, float] | None:
    rectangles = pdfium.FPDFText_CountRects(page, start, count)
    edges = [ctypes.c_double() for _ in range(4)]
    found: list[tuple[float, float, float, float]] = []
    for rectangle in range(rectangles):
        if pdfium.FPDFText_GetRect(page, rectangle, *(ctypes.byref(edge) for edge in edges)):
            left, top, right, bottom = (edge.value for edge in edges)
            found.append((left, right, page_height - top, page_height - bottom))
    return _around(found)


def _around(boxes: list[tuple[float, float, float, float]]) -> tuple[float, float, float, float] | None:
    if not boxes:
        return None
    lefts, rights, tops, bottoms = zip(*boxes, strict=True)
    return min(lefts), max(rights), min(tops), max(bottoms)


def _pitch(before: _Line, line: _Line) -> float:
    """How far the line's foot is below the foot of the one before, in points; negative in the next column."""
    return line.box[3] - before.box[3] if before.box and line.box else 0.0


def _usual_pitch(lines: list[_Line]) -> float:
    """The lower quartile: on a page of headings and short paragraphs most lines stand apart."""
    pitches = sorted(pitch for before, line in pairwise(lines) if (pitch := _pitch(before, line)) > 1)
    return pitches[len(pitches) // 4] if pitches else 0.0


def _begins_paragraph(before: _Line, line: _Line, usual_pitch: float) -> bool:
    pitch = _pitch(before, line)
    return pitch > PARAGRAPH_PITCH * usual_pitch or pitch < -2 * usual_pitch


def _add_paragraph(builder: DocumentBuilder, lines: list[_Line], page: int, level: int) -> None:
    box = _around([line.box for line in lines if line.box is not None])
    rounded = (round(box[0]), round(box[1]), round(box[2]), round(box[3])) if box else None
    builder.add("\n".join(line.text for line in lines), level=level, page=page, box=rounded)
