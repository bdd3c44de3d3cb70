"""Markdown: headings, fenced code and tables become blocks; the text itself stays as it was written."""

import re
from pathlib import Path

from rag.ingest.progress import Progress
from rag.ingest.text import decode, normalise
from rag.types import Block, ParsedDocument

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+\S|[ \t]*$)")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_TABLE_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_HEADING_MARKS = re.compile(r"^ {0,3}#{1,6}[ \t]*|[ \t]+#+[ \t]*$")


def parse(source: Path, _progress: Progress) -> ParsedDocument:
    """The file's text in blocks. Raises `ParseFailed` for what is no text."""
    return from_text(decode(source.read_bytes()))


def from_text(raw: str) -> ParsedDocument:
    """A Markdown text in blocks; its first heading is the title."""
    text = normalise(raw)
    blocks = _Scanner(text).blocks()
    title = next((heading_text(text[block.start : block.end]) for block in blocks if block.level), "")
    return ParsedDocument(text, tuple(blocks), title)


def heading_text(source: str) -> str:
    """A heading's words, without its marks or underline."""
    return _HEADING_MARKS.sub("", source.split("\n", 1)[0]).strip()


class _Scanner:
    """Goes over the lines once and closes a block where another begins."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._blocks: list[Block] = []
        self._open: int | None = None  # where the paragraph or table under way began
        self._open_lines = 0
        self._kind = ""
        self._fence = ""

    def blocks(self) -> list[Block]:
        position = 0
        line_before = 0
        for line in self._text.splitlines(keepends=True):  # \n is the only line end in a normalised text
            self._line(line.rstrip("\n"), position, line_before)
            line_before = position
            position += len(line)
        self._close(len(self._text))
        return self._blocks

    def _line(self, line: str, position: int, line_before: int) -> None:
        if self._fence:
            if line.strip().startswith(self._fence) and not line.strip().strip(self._fence[0]):
                self._fence = ""
                self._close(position + len(line))
        elif fence := _FENCE.match(line):
            self._close(position)
            self._begin(position, "")
            self._fence = fence[1]
        elif heading := _ATX.match(line):
            self._close(position)
            self._add(position, position + len(line), level=len(heading[1]))
        elif not line.strip():
            self._close(position)
        elif self._open_lines == 1 and not self._kind and (underline := _SETEXT.match(line)):
            begin, self._open = self._open, None
            self._add(begin or 0, position + len(line), level=1 if underline[1][0] == "=" else 2)
        elif self._open_lines >= 1 and not self._kind and _TABLE_RULE.match(line) and "|" in self._text[line_before:position]:
            self._close(line_before)
            self._begin(line_before, "table")
        elif self._kind == "table" and "|" not in line:
            self._close(position)
            self._begin(position, "")
        elif self._open is None:
            self._begin(position, "")
        else:
            self._open_lines += 1

    def _begin(self, position: int, kind: str) -> None:
        self._open, self._open_lines, self._kind = position, 1, kind

    def _close(self, position: int) -> None:
        if self._open is not None:
            self._add(self._open, position, kind=self._kind)
        self._open, self._open_lines, self._kind = None, 0, ""

    def _add(self, start: int, end: int, level: int = 0, kind: str = "") -> None:
        content = self._text[start:end]
        stripped = content.strip()
        if stripped:
            start += len(content) - len(content.lstrip())
            self._blocks.append(Block(start, start + len(stripped), level, kind=kind))
        self._open, self._open_lines, self._kind = None, 0, ""
