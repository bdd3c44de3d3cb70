"""Finds out what a file is, by its content before its name, and has it parsed."""

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rag.errors import Encrypted, ParseFailed, UnsupportedType
from rag.ingest.parsers import delimited, docx, eml, epub, html, json_lines, markdown, pdf, plain, pptx, xlsx, xml, zipped
from rag.ingest.progress import Progress
from rag.ingest.text import decode
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
CAREFUL_PARSERS: dict[str, Parser] = {**PARSERS, "xlsx": partial(xlsx.parse, careful=True)}
_FORMAT_OF_SUFFIX = {
    "csv": "csv", "tsv": "csv", "htm": "html", "html": "html", "md": "markdown", "mdx": "markdown", "json": "json",
    "jsonl": "json", "ldjson": "json", "eml": "eml", "xml": "xml",
    "pdf": "pdf", "docx": "docx", "pptx": "pptx", "xlsx": "xlsx", "xls": "xlsx", "epub": "epub",
}  # fmt: skip
_BINARY_FORMATS = frozenset(("pdf", "docx", "pptx", "xlsx", "epub"))
_TEXT_FORMATS = frozenset(PARSERS) - _BINARY_FORMATS
_NAMES = {"markdown": "Markdown file", "text": "text file", "csv": "CSV file", "eml": "message", "xlsx": "spreadsheet"}
_ADVICE_BY_SUFFIX = {
    "doc": "old Word files (.doc) are not read: save it as .docx and upload that",
    "wps": "WPS files (.wps) are not read: save it as .docx and upload that",
    "ppt": "old PowerPoint files (.ppt) are not read: save it as .pptx and upload that",
    "hlp": "help files (.hlp) are not read: export it as HTML or text and upload that",
    "rtf": "RTF files are not read: save it as .docx and upload that",
    "msg": "Outlook messages (.msg) are not read: save it as .eml and upload that",
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


@dataclass(frozen=True, slots=True)
class File:
    """A file and what it is: a key in `PARSERS`. `warnings` tell people where its name says something else."""

    source: Path
    format: str
    warnings: tuple[str, ...] = ()


def parse(file: File, progress: Progress, *, careful: bool = False) -> ParsedDocument:
    """The text and blocks of the file; with `careful` by parsers that are slower but never take the process down.

    Raises `ParseFailed` for a damaged file and one without text, `Encrypted`, `TooLarge` for bombs.
    """
    parsed = (CAREFUL_PARSERS if careful else PARSERS)[file.format](file.source, progress)
    if not parsed.text.strip():
        raise ParseFailed("the file has no text")
    return replace(parsed, warnings=file.warnings + parsed.warnings)


def recognise(source: Path, name: str) -> File:
    """What the file is that was uploaded under the name: its content counts, and its name where that leaves it open.

    Raises `ParseFailed` for an empty file and one whose name promises a binary format that its content is none of, and
    `Encrypted`, `TooLarge` and `UnsupportedType`, which says what to do instead.
    """
    suffix = name.rpartition(".")[2].casefold() if "." in name else ""
    found, promised = _format_of(source, suffix), _FORMAT_OF_SUFFIX.get(suffix)
    if found == promised or promised is None:
        return File(source, found)
    if promised in _BINARY_FORMATS and found not in _BINARY_FORMATS and suffix != "xls":  # many programs write tables as text into .xls
        raise ParseFailed(f"the file is not {_named(promised)}: its content is something else; check it and upload it under its own name")
    return File(source, found, (f"the file is not {_named(promised)} as its name says: it was read as {_named(found)}",))


def _named(found: str) -> str:
    name = _NAMES.get(found, found.upper())
    return f"an {name}" if name.startswith(("E", "H", "X")) else f"a {name}"


def _format_of(source: Path, suffix: str) -> str:
    """A key in `PARSERS`; "text" where nothing tells more."""
    with source.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if not head:
        raise ParseFailed("the file is empty")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zipped_format(source, suffix)
    if head.startswith(_OLE):
        return _ole_format(source, suffix)
    if head.startswith(b"%PDF-") or (b"%PDF-" in head[:1024] and suffix in ("pdf", "")):
        return "pdf"
    for magic, advice in _ADVICE_BY_MAGIC:
        if head.startswith(magic):
            raise UnsupportedType(advice)
    if head[:4] == b"RIFF":
        raise UnsupportedType(_IMAGE if head[8:12] == b"WEBP" else _MEDIA)
    if head[4:8] == b"ftyp":
        raise UnsupportedType(_IMAGE if head[8:12] in (b"avif", b"heic") else _MEDIA)
    if _FORMAT_OF_SUFFIX.get(suffix) in _TEXT_FORMATS:
        return _FORMAT_OF_SUFFIX[suffix]
    if _HTML.match(head):
        return "html"
    if suffix in _ADVICE_BY_SUFFIX and not _is_text(source):
        raise UnsupportedType(_ADVICE_BY_SUFFIX[suffix])
    return "text"


def _is_text(source: Path) -> bool:
    try:
        decode(source.read_bytes())
    except ParseFailed:
        return False
    return True


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
    if _FORMAT_OF_SUFFIX.get(suffix) in _BINARY_FORMATS:
        raise ParseFailed(f"the file is not {_named(_FORMAT_OF_SUFFIX[suffix])}: it is a zip archive of something else")
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
