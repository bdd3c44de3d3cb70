"""JSON and JSON lines: each record becomes a block of `path: value` lines."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from rag.ingest.parsers import plain
from rag.ingest.progress import Progress
from rag.ingest.text import DocumentBuilder, decode
from rag.types import ParsedDocument

MAX_DEPTH = 40  # what nests deeper stays JSON
PROGRESS_EVERY = 2000


def parse(source: Path, progress: Progress) -> ParsedDocument:
    """The file's records; one that is not valid JSON is read as plain text, with a warning. Raises `ParseFailed` for what is no text."""
    text = decode(source.read_bytes())
    builder = DocumentBuilder()
    try:
        for index, record in enumerate(_records(text)):
            if index % PROGRESS_EVERY == 0:
                progress("record", index + 1, 0)
            builder.add("\n".join(lines(record)))
    except orjson.JSONDecodeError:
        return replace(plain.from_text(text), warnings=("the file is not valid JSON: it was read as plain text",))
    return builder.build()


def _records(text: str) -> Iterator[Any]:
    """The members of a list, the lines of JSON lines, or the one object."""
    try:
        whole = orjson.loads(_encoded(text))
    except orjson.JSONDecodeError:
        if "\n" not in text.strip():
            raise
        for line in text.split("\n"):
            if line.strip():
                yield orjson.loads(_encoded(line))
        return
    yield from whole if isinstance(whole, list) else [whole]


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def lines(value: Any, path: str = "", depth: int = 0) -> Iterator[str]:
    """The value's leaves as `a.b: text`; a list of plain values is one line."""
    if isinstance(value, dict) and depth < MAX_DEPTH:
        for key, member in value.items():
            yield from lines(member, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list) and depth < MAX_DEPTH and any(isinstance(member, dict | list) for member in value):
        for member in value:
            yield from lines(member, path, depth + 1)
    else:
        text = ", ".join(map(_leaf, value)) if isinstance(value, list) and depth < MAX_DEPTH else _leaf(value)
        if text:
            yield f"{path}: {text}" if path else text


def _leaf(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else orjson.dumps(value).decode()
