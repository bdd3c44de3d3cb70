"""PPTX: the slides in their order, each with its title, text, tables and notes; a slide is a page."""

import posixpath
import zipfile
from pathlib import Path

from lxml import etree

from rag.ingest.parsers import zipped
from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder
from rag.types import ParsedDocument

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_RELATION_ID = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_RELATION = "{http://schemas.openxmlformats.org/package/2006/relationships}Relationship"
_TITLES = frozenset(("title", "ctrTitle"))
_NOT_NOTES = frozenset(("sldNum", "sldImg", "dt", "hdr", "ftr"))


def parse(source: Path, progress: Progress) -> ParsedDocument:
    """The presentation's text. Raises `ParseFailed`, `Encrypted`, `TooLarge`."""
    builder = DocumentBuilder()
    with zipped.open_zip(source) as archive:
        slides = _slides(archive)
        for number, part in enumerate(slides, start=1):
            progress("slide", number, len(slides))
            _add_slide(builder, archive, part, number)
        title = zipped.core_title(archive)
    return builder.build(title, len(slides))


def _slides(archive: zipfile.ZipFile) -> list[str]:
    targets = _relations(archive, "ppt/presentation.xml")
    presentation = zipped.tree(archive, "ppt/presentation.xml")
    listed = (targets.get(slide.get(_RELATION_ID, ""), ("", ""))[1] for slide in presentation.iter(f"{_P}sldId"))
    return [part for part in listed if zipped.has(archive, part)]


def _relations(archive: zipfile.ZipFile, part: str) -> dict[str, tuple[str, str]]:
    """The parts that a part refers to inside of the archive: by relation id the kind and the name."""
    folder, name = posixpath.split(part)
    relations = f"{folder}/_rels/{name}.rels"
    if not zipped.has(archive, relations):
        return {}
    return {
        relation.get("Id", ""): (
            posixpath.basename(relation.get("Type", "")),
            posixpath.normpath(posixpath.join("/", folder, relation.get("Target", ""))).lstrip("/"),
        )
        for relation in zipped.tree(archive, relations).iter(_RELATION)
        if relation.get("TargetMode") != "External"
    }


def _add_slide(builder: DocumentBuilder, archive: zipfile.ZipFile, part: str, number: int) -> None:
    slide = zipped.tree(archive, part)
    bodies = list(slide.iter(f"{_A}tbl", f"{_P}txBody"))
    titles = [body for body in bodies if _placeholder(body) in _TITLES]
    for body in titles:
        builder.add(" ".join(_paragraphs(body)), level=1, page=number)
    for body in bodies:
        if body.tag == f"{_A}tbl":
            builder.add("\n".join(_rows(body)), page=number, kind="table")
        elif body not in titles:
            builder.add("\n".join(_paragraphs(body)), page=number)
    for kind, notes in _relations(archive, part).values():
        if kind == "notesSlide" and zipped.has(archive, notes):
            for body in zipped.tree(archive, notes).iter(f"{_P}txBody"):
                if _placeholder(body) not in _NOT_NOTES:
                    builder.add("\n".join(_paragraphs(body)), page=number)


def _placeholder(body: etree._Element) -> str:
    """What kind of placeholder the text stands in, "" for none."""
    shape = body.getparent()
    found = shape.find(f"{_P}nvSpPr/{_P}nvPr/{_P}ph") if shape is not None else None
    return found.get("type", "body") if found is not None else ""


def _paragraphs(body: etree._Element) -> list[str]:
    lines = []
    for paragraph in body.iter(f"{_A}p"):
        text = "".join("\n" if run.tag == f"{_A}br" else run.text or "" for run in paragraph.iter(f"{_A}t", f"{_A}br"))
        if text.strip():
            lines.append(text.strip())
    return lines


def _rows(table: etree._Element) -> list[str]:
    rows = ([" ".join(_paragraphs(cell)) for cell in row.iter(f"{_A}tc")] for row in table.iter(f"{_A}tr"))
    return [" | ".join(cells) for cells in rows if any(cells)]
