"""Opens the zip files that office formats are, behind a guard against bombs, and reads XML from them safely."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lxml import etree

from rag.errors import Encrypted, ParseFailed, TooLarge

MAX_ENTRIES = 20_000
MAX_UNPACKED_BYTES = 1 << 30
MAX_RATIO = 200  # XML packs about 20 times, empty sheets about 100 times
RATIO_FROM_BYTES = 32 << 20  # smaller files may pack as well as they like
_ENCRYPTED_FLAG = 0x1


@contextmanager
def open_zip(source: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, checked by its directory. Raises `ParseFailed`, `Encrypted`, `TooLarge`."""
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as exc:
        raise ParseFailed("the file is damaged or cut off: it is not a whole zip archive") from exc
    with archive:
        _check(archive)
        try:
            yield archive
        except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as exc:
            raise ParseFailed("the file is damaged: a part of its zip archive cannot be read") from exc


def _check(archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise TooLarge(f"the archive has {len(entries)} entries, more than {MAX_ENTRIES}")
    unpacked = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if unpacked > MAX_UNPACKED_BYTES:
        raise TooLarge(f"the archive unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
    if unpacked > RATIO_FROM_BYTES and unpacked > packed * MAX_RATIO:
        raise TooLarge(f"the archive unpacks to more than {MAX_RATIO} times its size")
    if any(entry.flag_bits & _ENCRYPTED_FLAG for entry in entries):
        raise Encrypted("the file is protected by a password: remove it and upload the file again")


def has(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether the archive has the part."""
    return name in archive.NameToInfo


def read(archive: zipfile.ZipFile, name: str) -> bytes:
    """A part's bytes, never more than its directory entry says. Raises `ParseFailed` where there is none."""
    if not has(archive, name):
        raise ParseFailed(f"the file is damaged: its part {name} is missing")
    return archive.read(name)


def tree(archive: zipfile.ZipFile, name: str) -> etree._Element:
    """A small XML part as a tree. Raises `ParseFailed`."""
    try:
        return etree.fromstring(read(archive, name), xml_parser())
    except etree.XMLSyntaxError as exc:
        raise ParseFailed(f"the file is damaged: its part {name} is not valid XML") from exc


def xml_parser() -> etree.XMLParser:
    """A parser that expands no entity, loads no DTD and reads nothing but its input."""
    return etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True)


def elements(stream: IO[bytes], tags: tuple[str, ...], part: str) -> Iterator[etree._Element]:
    """Each outermost element of the tags as soon as it is read, freed when the next is asked for. Raises `ParseFailed`."""
    depth = 0
    try:
        events = etree.iterparse(
            stream, events=("start", "end"), tag=tags, resolve_entities=False, no_network=True, load_dtd=False,
            huge_tree=False, remove_comments=True,
        )  # fmt: skip
        for event, element in events:
            depth += 1 if event == "start" else -1
            if event == "end" and depth == 0:
                yield element
                _free(element)
    except etree.XMLSyntaxError as exc:
        raise ParseFailed(f"the file is damaged: its part {part} is not valid XML") from exc


def _free(element: etree._Element) -> None:
    """Drop the element's content and everything before it, so that the tree does not grow."""
    element.clear(keep_tail=True)
    parent = element.getparent()
    while parent is not None and element.getprevious() is not None:
        del parent[0]


def core_title(archive: zipfile.ZipFile) -> str:
    """The title in an office file's properties, "" if there is none."""
    if not has(archive, "docProps/core.xml"):
        return ""
    return (tree(archive, "docProps/core.xml").findtext("{http://purl.org/dc/elements/1.1/}title") or "").strip()
