"""XML: the text of the elements, a line each; one that is not well-formed is read as plain text."""

import io
from pathlib import Path

from lxml import etree

from rag.ingest.parsers import plain, zipped
from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder, decode
from rag.types import ParsedDocument


def parse(source: Path, _progress: Progress) -> ParsedDocument:
    """The text between the tags. Entities are not expanded. Raises `ParseFailed` for what is no text."""
    data = source.read_bytes()
    try:
        root = etree.parse(io.BytesIO(data), zipped.xml_parser()).getroot()
    except etree.XMLSyntaxError:
        return plain.from_text(decode(data))
    builder = DocumentBuilder()
    for element in root.iter():
        if isinstance(element.tag, str):
            builder.add(element.text or "", tight=True)
        builder.add(element.tail or "", tight=True)
    return builder.build()
