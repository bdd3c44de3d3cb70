"""Marks in a chunk's original text the words that a question's terms matched."""

import re
from collections.abc import Callable, Iterator, Sequence

from rag.nlp.tokenize import HAN, HANGUL, HIRAGANA, KATAKANA, SOUTH_EAST_ASIAN, terms
from rag.types import Term

TEXT_CHARACTERS = 20_000  # what is marked of a longer text

_UNSPACED = f"{HAN}{HIRAGANA}{KATAKANA}{HANGUL}{SOUTH_EAST_ASIAN}"
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0980-\u0df3"  # marks, and scripts full of them
_RUN = re.compile(
    rf"(?P<unspaced>[{_UNSPACED}]+)|[A-Za-z]++(?:\+\+|\#)(?![A-Za-z0-9])|(?:[^\W_{_UNSPACED}]|[{_MARKS}])+"
)  # fmt: skip
_BLANKS = re.compile(r"(\s+)")
_ONLY_UNSPACED = re.compile(rf"[{_UNSPACED}]+")


class Highlighter:
    """Puts `<em>` and `</em>` around matched words; the rest of the text stays as it is, markup included."""

    def __init__(self, question: Sequence[Term]) -> None:
        """Words of grammar and single ideographs are marked only where the question has nothing else."""
        texts = {term.text for term in question if term.weight >= 1.0} or {term.text for term in question}
        unspaced = {text for text in texts if _ONLY_UNSPACED.fullmatch(text)}
        unspaced = {text for text in unspaced if len(text) > 1} or unspaced
        self._words = texts - unspaced
        # A lookahead, so that overlapping pairs are all found. Longest first: a word before its beginning.
        self._unspaced = re.compile(f"(?=({'|'.join(sorted(map(re.escape, unspaced), key=len, reverse=True))}))") if unspaced else None

        self._marked = _Marked(self._mark_piece)

    def mark(self, text: str) -> str:
        """The text with its matched words marked; unchanged where none matches."""
        pieces = _BLANKS.split(text[:TEXT_CHARACTERS])
        return "".join(map(self._marked.__getitem__, pieces)) + text[TEXT_CHARACTERS:]

    def _mark_piece(self, piece: str) -> str:
        if self._words.isdisjoint(terms(piece)) and self._unspaced is None:
            return piece
        parts, done = [], 0
        for start, end in _joined(self._spans(piece)):
            parts += (piece[done:start], "<em>", piece[start:end], "</em>")
            done = end
        parts.append(piece[done:])
        return "".join(parts)

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        for run in _RUN.finditer(text):
            if run.lastgroup != "unspaced":
                if not self._words.isdisjoint(terms(run.group())):
                    yield run.span()
            elif self._unspaced is not None:
                for match in self._unspaced.finditer(text, *run.span()):
                    yield match.span(1)


class _Marked(dict[str, str]):
    """Marked pieces by piece: those of one page's texts repeat."""

    def __init__(self, mark: Callable[[str], str]) -> None:
        super().__init__()
        self._mark = mark

    def __missing__(self, piece: str) -> str:
        self[piece] = marked = self._mark(piece)
        return marked


def _joined(spans: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans in order, with touching and overlapping ones made one."""
    start = end = -1
    for next_start, next_end in spans:
        if next_start > end:
            if end > start:
                yield start, end
            start = next_start
        end = max(end, next_end)
    if end > start:
        yield start, end
