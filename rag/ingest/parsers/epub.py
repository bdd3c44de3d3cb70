"""EPUB: the chapters in reading order, each read as HTML."""

import posixpath
import zipfile
from pathlib import Path
from urllib.parse import unquote

from rag.errors import Encrypted, ParseFailed
from rag.ingest.parsers import zipped
from rag.ingest.parsers.html import add_html
from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder, decode
from rag.types import ParsedDocument

_CONTAINER = "{urn:oasis:names:tc:opendocument:xmlns:container}rootfile"
_OPF = "{http://www.idpf.org/2007/opf}"
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_HTML_TYPES = frozenset(("application/xhtml+xml", "text/html"))


def parse(source: Path, progress: Progress) -> ParsedDocument:
    """The book's text. Raises `ParseFailed`, `Encrypted`, `TooLarge`."""
    builder = DocumentBuilder()
    with zipped.open_zip(source) as archive:
        if zipped.has(archive, "META-INF/rights.xml"):
            raise Encrypted("the book is protected against copying (DRM) and cannot be read")
        title, chapters = _spine(archive)
        for number, name in enumerate(chapters, start=1):
            progress("chapter", number, len(chapters))
            add_html(builder, decode(zipped.read(archive, name)))
    return builder.build(title)


def _spine(archive: zipfile.ZipFile) -> tuple[str, list[str]]:
    root_file = next(zipped.tree(archive, "META-INF/container.xml").iter(_CONTAINER), None)
    if root_file is None:
        raise ParseFailed("the book is damaged: its container names no package")
    package_name = root_file.get("full-path", "")
    package = zipped.tree(archive, package_name)
    folder = posixpath.dirname(package_name)
    items = {
        item.get("id", ""): posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        for item in package.iter(f"{_OPF}item")
        if item.get("media-type") in _HTML_TYPES
    }
    order = [items.get(reference.get("idref", ""), "") for reference in package.iter(f"{_OPF}itemref")]
    title = next((element.text or "" for element in package.iter(_TITLE)), "")
    return title, [name for name in order if zipped.has(archive, name)]
