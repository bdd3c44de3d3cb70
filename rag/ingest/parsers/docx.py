"""DOCX by streaming its XML: headings by style or outline level, lists, tables, footnotes; deleted text is left out."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from rag.errors import ParseFailed
from rag.ingest.parsers import zipped
from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder
from rag.types import ParsedDocument

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_P, _TBL, _TR, _TC, _T = f"{_W}p", f"{_W}tbl", f"{_W}tr", f"{_W}tc", f"{_W}t"
_BREAKS = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
_NOTES = (("word/footnotes.xml", f"{_W}footnote"), ("word/endnotes.xml", f"{_W}endnote"))
_BODY_LEVEL = 9  # outline level of what is no heading
PROGRESS_EVERY = 500


def parse(source: Path, progress: Progress) -> ParsedDocument:
    """The document's text. Raises `ParseFailed`, `Encrypted`, `TooLarge`."""
    builder = DocumentBuilder()
    with zipped.open_zip(source) as archive:
        if not zipped.has(archive, "word/document.xml"):
            raise ParseFailed("the file is damaged: its part word/document.xml is missing")
        styles = _Styles(archive)
        with archive.open("word/document.xml") as stream:
            for index, element in enumerate(zipped.elements(stream, (_P, _TBL), "word/document.xml")):
                if index % PROGRESS_EVERY == 0:
                    progress("paragraph", index + 1, 0)
                _add(builder, element, styles)
        for part, tag in _NOTES:
            if zipped.has(archive, part):
                with archive.open(part) as stream:
                    for note in zipped.elements(stream, (tag,), part):
                        builder.add("\n".join(_text(paragraph) for paragraph in note.iter(_P)))
        title = zipped.core_title(archive)
    return builder.build(title)


def _add(builder: DocumentBuilder, element: etree._Element, styles: "_Styles") -> None:
    if element.tag == _TBL:
        builder.add("\n".join(_rows(element)), kind="table")
        return
    properties = element.find(f"{_W}pPr")
    level = styles.level(properties) if properties is not None else 0
    is_item = properties is not None and not level and styles.is_item(properties)
    text = _text(element)
    builder.add(f"- {text}" if is_item and text.strip() else text, level=level, tight=is_item)


def _outline_level(outline: etree._Element) -> int:
    value = outline.get(f"{_W}val", "")
    return min(6, int(value) + 1) if value.isdigit() and int(value) < _BODY_LEVEL else 0


class _Styles:
    """What the document's paragraph styles say: heading levels, and which of them make list items."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._levels: dict[str, int] = {}
        self._lists: set[str] = set()
        self._parents: dict[str, str] = {}
        if zipped.has(archive, "word/styles.xml"):
            for style in zipped.tree(archive, "word/styles.xml").iter(f"{_W}style"):
                self._read(style)

    def level(self, properties: etree._Element) -> int:
        """The heading level of a paragraph with these properties, 0 for none."""
        outline = properties.find(f"{_W}outlineLvl")
        if outline is not None:
            return _outline_level(outline)
        return next((self._levels[style] for style in self._lineage(properties) if style in self._levels), 0)

    def is_item(self, properties: etree._Element) -> bool:
        """Whether a paragraph with these properties is an item of a list."""
        return properties.find(f"{_W}numPr") is not None or any(style in self._lists for style in self._lineage(properties))

    def _lineage(self, properties: etree._Element) -> Iterator[str]:
        """The paragraph's style and those that it is based on."""
        found = properties.find(f"{_W}pStyle")
        style = found.get(f"{_W}val", "") if found is not None else ""
        for _ in range(len(self._parents) + 1):
            if not style:
                return
            yield style
            style = self._parents.get(style, "")

    def _read(self, style: etree._Element) -> None:
        style_id = style.get(f"{_W}styleId", "")
        outline = style.find(f"{_W}pPr/{_W}outlineLvl")
        name = style.find(f"{_W}name")
        words = (name.get(f"{_W}val", "") if name is not None else "").casefold().split()
        if outline is not None:
            self._levels[style_id] = _outline_level(outline)
        elif len(words) == 2 and words[0] == "heading" and words[1].isdigit():
            self._levels[style_id] = min(6, int(words[1]))
        elif words == ["title"]:
            self._levels[style_id] = 1
        if style.find(f"{_W}pPr/{_W}numPr") is not None:
            self._lists.add(style_id)
        based_on = style.find(f"{_W}basedOn")
        if based_on is not None:
            self._parents[style_id] = based_on.get(f"{_W}val", "")


def _text(paragraph: etree._Element) -> str:
    """The paragraph's text, with that of its text boxes, which a file holds twice for old readers."""
    parts: list[str] = []
    skip = 0
    for event, element in etree.iterwalk(paragraph, events=("start", "end")):
        if element.tag == _FALLBACK:
            skip += 1 if event == "start" else -1
        elif event == "start" and not skip:
            if element.tag == _T:
                parts.append(element.text or "")
            elif element.tag in _BREAKS and element.getparent().tag == f"{_W}r":
                parts.append(_BREAKS[element.tag])
            elif element.tag == _P and element is not paragraph:
                parts.append("\n")
    return "".join(parts)


def _rows(table: etree._Element) -> list[str]:
    """The rows as `a | b`; a table inside of a cell becomes part of the cell."""
    rows = []
    for row in table.iterchildren(_TR):
        cells = [" ".join(" ".join(_text(paragraph) for paragraph in cell.iter(_P)).split()) for cell in row.iter(_TC)]
        if any(cells):
            rows.append(" | ".join(cells).strip())
    return rows
