"""From bytes to normalised text, and from pieces of text to a parsed document whose blocks have exact offsets."""

import codecs
import re
import unicodedata

from charset_normalizer import from_bytes

from rag.errors import ParseFailed
from rag.types import Block, ParsedDocument

GUESS_BYTES = 256 * 1024  # an encoding is guessed from so much; the whole must then decode
MAX_CONTROL_SHARE = 0.02  # more control characters than this is no text

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its mark begins with the other's
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufeff\ufffe\uffff]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def normalise(text: str) -> str:
    """The text in NFC with `\\n` as its line ends, without control characters; a lone surrogate becomes U+FFFD."""
    text = _UNWANTED.sub("", _LINE_ENDS.sub("\n", text))
    if text.isascii():
        return text
    text = _SURROGATES.sub("\ufffd", text)
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def decode(data: bytes, declared: str = "") -> str:
    """The bytes as text: byte order mark, then strict UTF-8, the `declared` encoding, UTF-16 without a mark, the likeliest other.

    Raises `ParseFailed` where they are no text in any encoding.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding, errors="replace") or ""
    for encoding in ("utf-8", declared, _bare_utf16(data)):
        text = _decoded(data, encoding) if encoding else None
        if text is not None and not _is_binary(text):
            return text
    guess = from_bytes(data[:GUESS_BYTES]).best()
    text = _decoded(data, guess.encoding, errors="replace") if guess else None
    if text is None or _is_binary(text):
        raise ParseFailed("the file is not text in any known encoding")
    return text


def _decoded(data: bytes, encoding: str, errors: str = "strict") -> str | None:
    try:
        return data.decode(encoding, errors)
    except (UnicodeError, LookupError):
        return None


def _bare_utf16(data: bytes) -> str:
    """Latin text in UTF-16 has a zero in every other byte."""
    sample = data[:4096]
    if len(sample) < 4 or sample.count(0) < len(sample) * 0.3:
        return ""
    return "utf-16-le" if sample[1::2].count(0) > sample[0::2].count(0) else "utf-16-be"


def _is_binary(text: str) -> bool:
    sample = text[:65536]
    return len(_UNWANTED.findall(sample)) > max(2, len(sample) * MAX_CONTROL_SHARE)


class DocumentBuilder:
    """Collects blocks in reading order and joins them, an empty line between, into a `ParsedDocument`."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._blocks: list[Block] = []
        self._length = 0
        self.warnings: list[str] = []

    def add(
        self, text: str, *, level: int = 0, page: int = 0, box: tuple[int, int, int, int] | None = None, kind: str = "",
        tight: bool = False,
    ) -> None:  # fmt: skip
        """Append a block, normalised and without blanks around it; a blank one is left out.

        A `tight` one follows the block before without an empty line, as the items of a list do.
        """
        text = normalise(text).strip()
        if not text:
            return
        if self._parts:
            gap = "\n" if tight else "\n\n"
            self._parts.append(gap)
            self._length += len(gap)
        self._parts.append(text)
        self._blocks.append(Block(self._length, self._length + len(text), level, page, box, kind))
        self._length += len(text)

    def build(self, title: str = "", pages: int = 0) -> ParsedDocument:
        """The document of all blocks added."""
        return ParsedDocument("".join(self._parts), tuple(self._blocks), normalise(title).strip(), pages, tuple(self.warnings))
