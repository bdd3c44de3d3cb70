"""Plain text and source code: a paragraph is a block."""

import re
from pathlib import Path

from rag.ingest.progress import Progress
from rag.ingest.text import decode, normalise
from rag.types import Block, ParsedDocument

_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")


def parse(source: Path, _progress: Progress) -> ParsedDocument:
    """The whole file as it is, in blocks of paragraphs. Raises `ParseFailed` for what is no text."""
    return from_text(decode(source.read_bytes()))


def from_text(raw: str) -> ParsedDocument:
    """A text in blocks of paragraphs."""
    text = normalise(raw)
    return ParsedDocument(text, tuple(paragraphs(text)))


def paragraphs(text: str, start: int = 0, end: int | None = None) -> list[Block]:
    """The paragraphs of `text[start:end]`, without the blanks between them."""
    end = len(text) if end is None else end
    blocks = []
    position = start
    while position < end:
        gap = _PARAGRAPH_END.search(text, position, end)
        stop = gap.start() if gap else end
        stripped = text[position:stop].strip()
        if stripped:
            begin = text.index(stripped[0], position)
            blocks.append(Block(begin, begin + len(stripped)))
        position = gap.end() if gap else end
    return blocks
