"""Finds out what a file is, by its content before its name, and has it parsed."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from rag.errors import Encrypted, ParseFailed, UnsupportedType
from rag.ingest.parsers import delimited, docx, eml, epub, html, json_lines, markdown, pdf, plain, pptx, xlsx, xml, zipped
from rag.ingest.progress import Progress
from rag.types import ParsedDocument

HEAD_BYTES = 4096
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_PASSWORD = "EncryptedPackage".encode("utf-16-le")
_OLE_WORKBOOK = "Workbook".encode("utf-16-le")
_HTML = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)

Parser = Callable[[Path, Progress], ParsedDocument]
PARSERS: dict[str, Parser] = {
    "pdf": pdf.parse, "docx": docx.parse, "pptx": pptx.parse, "xlsx": xlsx.parse, "csv": delimited.parse, "html": html.parse,
    "epub": epub.parse, "markdown": markdown.parse, "json": json_lines.parse, "eml": eml.parse, "xml": xml.parse,
    "text": plain.parse,
}  # fmt: skip
_FORMAT_OF_SUFFIX = {
    "csv": "csv", "tsv": "csv", "htm": "html", "html": "html", "md": "markdown", "mdx": "markdown", "json": "json",
    "jsonl": "json", "ldjson": "json", "eml": "eml", "xml": "xml",
}  # fmt: skip
_ADVICE_BY_SUFFIX = {
    "doc": "old Word files (.doc) are not read: save it as .docx and upload that",
    "wps": "WPS files (.wps) are not read: save it as .docx and upload that",
    "ppt": "old PowerPoint files (.ppt) are not read: save it as .pptx and upload that",
    "hlp": "help files (.hlp) are not read: export it as HTML or text and upload that",
    "rtf": "RTF files are not read: save it as .docx and upload that",
    "msg": "Outlook files (.msg) are not read: save it as .eml and upload that",
    "pages": "Pages files are not read: export it as .docx or PDF and upload that",
    "numbers": "Numbers files are not read: export it as .xlsx or .csv and upload that",
    "key": "Keynote files are not read: export it as .pptx or PDF and upload that",
    "odt": "OpenDocument texts are not read: save it as .docx and upload that",
    "odp": "OpenDocument presentations are not read: save it as .pptx and upload that",
}
_IMAGE = "images are not read: run text recognition (OCR) on it and upload its text"
_MEDIA = "sound and film are not read: transcribe it and upload the text"
_ADVICE_BY_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", _IMAGE), (b"\xff\xd8\xff", _IMAGE), (b"GIF8", _IMAGE), (b"II*\x00", _IMAGE), (b"MM\x00*", _IMAGE),
    (b"8BPS", _IMAGE), (b"ID3", _MEDIA), (b"fLaC", _MEDIA), (b"OggS", _MEDIA), (b"\x1aE\xdf\xa3", _MEDIA),
    (b"{\\rtf", _ADVICE_BY_SUFFIX["rtf"]),
    (b"\x1f\x8b", "archives are not read: unpack it and upload the files in it"),
    (b"7z\xbc\xaf", "archives are not read: unpack it and upload the files in it"),
    (b"Rar!", "archives are not read: unpack it and upload the files in it"),
    (b"\x7fELF", "programs are not read"), (b"SQLite format 3\x00", "databases are not read: export it as .csv and upload that"),
)  # fmt: skip
_ZIPPED_FORMATS = (
    ("word/document.xml", "docx"), ("ppt/presentation.xml", "pptx"), ("xl/workbook.xml", "xlsx"), ("xl/workbook.bin", "xlsx"),
    ("META-INF/container.xml", "epub"),
)  # fmt: skip
_OPEN_DOCUMENTS = {
    b"application/vnd.oasis.opendocument.text": "odt",
    b"application/vnd.oasis.opendocument.presentation": "odp",
}


def parse(source: Path, name: str, progress: Progress) -> ParsedDocument:
    """The text and blocks of the file, which was uploaded under the name.

    Raises `ParseFailed` for an empty file, a damaged one and one without text, `Encrypted`, `TooLarge` for bombs, and
    `UnsupportedType`, which says what to do instead.
    """
    parsed = PARSERS[format_of(source, name)](source, progress)
    if not parsed.text.strip():
        raise ParseFailed("the file has no text")
    return parsed


def format_of(source: Path, name: str) -> str:
    """The key in `PARSERS` for the file. Raises as `parse`."""
    with source.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if not head:
        raise ParseFailed("the file is empty")
    suffix = name.rpartition(".")[2].casefold() if "." in name else ""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zipped_format(source, suffix)
    if head.startswith(_OLE):
        return _ole_format(source, suffix)
    if b"%PDF-" in head[:1024] and suffix not in _FORMAT_OF_SUFFIX:
        return "pdf"
    for magic, advice in _ADVICE_BY_MAGIC:
        if head.startswith(magic):
            raise UnsupportedType(advice)
    if head[:4] == b"RIFF":
        raise UnsupportedType(_IMAGE if head[8:12] == b"WEBP" else _MEDIA)
    if head[4:8] == b"ftyp":
        raise UnsupportedType(_IMAGE if head[8:12] in (b"avif", b"heic") else _MEDIA)
    if suffix in _FORMAT_OF_SUFFIX:
        return _FORMAT_OF_SUFFIX[suffix]
    return "html" if _HTML.match(head) else "text"


def _zipped_format(source: Path, suffix: str) -> str:
    with zipped.open_zip(source) as archive:
        for part, found in _ZIPPED_FORMATS:
            if zipped.has(archive, part):
                return found
        kind = _open_document_kind(archive)
        if kind == b"application/vnd.oasis.opendocument.spreadsheet":
            return "xlsx"
        if kind in _OPEN_DOCUMENTS:
            raise UnsupportedType(_ADVICE_BY_SUFFIX[_OPEN_DOCUMENTS[kind]])
    raise UnsupportedType(_ADVICE_BY_SUFFIX.get(suffix, "archives are not read: unpack it and upload the files in it"))


def _open_document_kind(archive: zipfile.ZipFile) -> bytes:
    return archive.read("mimetype").strip() if zipped.has(archive, "mimetype") else b""


def _ole_format(source: Path, suffix: str) -> str:
    """An old Office file, or a new one that is encrypted. The directory of its streams may be anywhere in it."""
    if _contains(source, _OLE_PASSWORD):
        raise Encrypted("the file is protected by a password: remove it and upload the file again")
    if suffix == "xls" or (suffix not in _ADVICE_BY_SUFFIX and _contains(source, _OLE_WORKBOOK)):
        return "xlsx"
    raise UnsupportedType(_ADVICE_BY_SUFFIX.get(suffix, "old Office files are not read: save it in the new format and upload that"))


def _contains(source: Path, needle: bytes) -> bool:
    tail = b""
    with source.open("rb") as stream:
        while block := stream.read(1 << 20):
            if needle in tail + block:
                return True
            tail = block[-len(needle) :]
    return False
