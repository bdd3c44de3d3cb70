"""Turns text into the terms that the text index keeps and that questions are matched by: the one analyser of all stores.

A text is cut at blanks, and each piece is analysed by itself: NFKC, case folding, separators, then runs of one script.
Words of alphabetic scripts are stemmed. Han becomes words of a dictionary and pairs of characters; kana, Hangul and the
scripts of South East Asia, which put no blanks between words or glue endings to them, become pairs only. The pieces of
alphabetic texts repeat, so that nearly all of them are looked up in a memo and not analysed again.

Whoever changes what comes out must change `ANALYSER_VERSION`: it is stored with every index, and an index made by another
version is rebuilt.
"""

import re
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain

import rjieba
import Stemmer

from rag.types import Chunk, ChunkTerms

ANALYSER_VERSION = "1"

MEMO_PIECES = 50_000  # about 12 MB when full
MEMO_PIECE_CHARACTERS = 40  # longer pieces hardly ever repeat
TERM_CHARACTERS = 64  # a longer word is cut: base64 and the like; stores refuse very long terms
HAN_CHARACTERS_AT_ONCE = 10_000  # bounds one call into the dictionary, in time and memory

HAN = "々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
HIRAGANA = "\u3041-\u3096\u309d-\u309f"
KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
HANGUL = "\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff"
SOUTH_EAST_ASIAN = "\u0e01-\u0e4e\u0e80-\u0ece\u1000-\u103f\u1780-\u17d3"  # Thai, Lao, Burmese, Khmer
_LATIN = "a-z\u00df-\u02af\u1e00-\u1eff"
_CYRILLIC = "\u0400-\u052f"
_GREEK = "\u0370-\u03ff\u1f00-\u1fff"
_ARABIC = "\u0620-\u065f\u066e-\u06ff\u0750-\u077f"
_DEVANAGARI = "\u0900-\u0963\u0970-\u097f"
_MARKS = "\u0300-\u036f"
_SEPARATORS = r"\x00-/:-@\[-`{-\x7f"

# A run ends where the script changes: a run of just any word characters would swallow the Han after a digit or a Latin
# letter (`2019年`, `Python开发`). Digits stay with the alphabetic word they stand in (`x86`, `5км`).
_RUN = re.compile(
    rf"(?P<special>[a-z]++(?:\+\+|\#)(?![a-z0-9]))"
    rf"|(?P<latin>[0-9]*+[{_LATIN}][{_LATIN}{_MARKS}0-9]*)"
    rf"|(?P<han>[{HAN}]+)"
    rf"|(?P<pairs>[{HIRAGANA}]+|[{KATAKANA}]+|[{HANGUL}]+|[{SOUTH_EAST_ASIAN}]+)"
    rf"|(?P<cyrillic>[0-9]*+[{_CYRILLIC}][{_CYRILLIC}{_MARKS}0-9]*)"
    rf"|(?P<greek>[0-9]*+[{_GREEK}][{_GREEK}{_MARKS}0-9]*)"
    rf"|(?P<arabic>[{_ARABIC}]+)"
    rf"|(?P<devanagari>[{_DEVANAGARI}]+)"
    rf"|(?P<grouped>[0-9]{{1,3}}(?:,[0-9]{{3}})+(?![0-9]))"
    rf"|(?P<plain>[0-9]+"
    rf"|[^\s{_SEPARATORS}0-9{_LATIN}{HAN}{HIRAGANA}{KATAKANA}{HANGUL}{SOUTH_EAST_ASIAN}{_CYRILLIC}{_GREEK}{_ARABIC}{_DEVANAGARI}]+)"
)
# One stemmer a script, its most written language: telling the languages apart would have to work on questions of two words,
# and a question stemmed by another language than the text finds nothing.
_STEMMER_OF_SCRIPT = {"latin": "english", "cyrillic": "russian", "greek": "greek", "arabic": "arabic", "devanagari": "hindi"}
_FILE_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")


def terms(text: str) -> list[str]:
    """The text's terms in reading order, repeats kept. None holds a blank, none is empty or over 64 characters."""
    return list(chain.from_iterable(map(_MEMO.__getitem__, text.split())))


def analyse(text: str) -> str:
    """The text's terms joined by one blank, as a text index with a whitespace analyser takes them."""
    return " ".join(chain.from_iterable(map(_MEMO.__getitem__, text.split())))


def chunk_terms(
    title: str, headings: Sequence[str], content: str, keywords: Sequence[str] = (), questions: Sequence[str] = ()
) -> ChunkTerms:
    """What the text index keeps of a chunk. `title` is the document's name; "" for a chunk added by hand.

    Title and headings enter twice, on their own, to be boosted, and with the content, so that a chunk that holds half of
    the question's words and whose title holds the others is as good as one that holds them all.
    """
    name = analyse(" ".join((_FILE_EXTENSION.sub("", title), *headings)))
    body = analyse(content)
    return ChunkTerms(
        title=name,
        content=f"{name} {body}" if name and body else name or body,
        keywords=analyse(" ".join(keywords)),
        questions=analyse(" ".join(questions)),
    )


def terms_of(chunk: Chunk) -> ChunkTerms:
    """A chunk's terms, computed anew. Only parsed chunks carry their document's title."""
    return chunk_terms(chunk.document_name if chunk.version > 0 else "", chunk.headings, chunk.content, chunk.keywords, chunk.questions)


class _Memo(dict[str, tuple[str, ...]]):
    """Terms by piece. Emptied when full: simpler than evicting, and the common pieces are back at once."""

    def __missing__(self, piece: str) -> tuple[str, ...]:
        found = tuple(_terms_of_piece(piece))
        if len(piece) <= MEMO_PIECE_CHARACTERS:
            if len(self) >= MEMO_PIECES:
                self.clear()
            self[piece] = found
        return found


class _Characters(dict[int, int | str | None]):
    """What becomes of each folded character, for `str.translate`; filled as characters are met."""

    def __missing__(self, code: int) -> int | str | None:
        self[code] = kept = _keep(chr(code))
        return kept


class _Stemmers(threading.local):
    """Stemmers by language; one set a thread, for a stemmer keeps state while it works."""

    def __init__(self) -> None:
        self._by_language: dict[str, Stemmer.Stemmer] = {}

    def stem(self, language: str, word: str) -> str:
        stemmer = self._by_language.get(language)
        if stemmer is None:
            stemmer = self._by_language[language] = Stemmer.Stemmer(language)
        return stemmer.stemWord(word)


def _terms_of_piece(piece: str) -> Iterator[str]:
    folded = unicodedata.normalize("NFKC", piece).casefold()
    if not folded.isascii():
        folded = folded.translate(_CHARACTERS)
    for run in _RUN.finditer(folded):
        script, text = run.lastgroup or "", run.group()
        if script == "han":
            yield from _han_terms(text)
        elif script == "pairs":
            yield from _pairs(text)
        elif script == "grouped":
            yield text.replace(",", "")[:TERM_CHARACTERS]
        elif script in _STEMMER_OF_SCRIPT:
            yield _STEMMERS.stem(_STEMMER_OF_SCRIPT[script], text[:TERM_CHARACTERS])
        else:
            yield text[:TERM_CHARACTERS]


def _keep(character: str) -> int | str | None:
    """The character itself, a digit's ASCII form, None to drop it, or a blank where a word ends."""
    code, category = ord(character), unicodedata.category(character)
    if code < 0x80:
        return code
    if category == "Nd":
        return str(unicodedata.digit(character))
    if 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or 0x0591 <= code <= 0x05C7:
        return None  # variation selectors, Hebrew points
    if character == "\u0307":
        return None  # what case folding leaves of the Turkish capital İ
    if category[0] in "LNM":
        return code
    if category == "Cf":
        return " " if character == "\u200b" else None
    if category == "So" and (code >= 0x1F000 or 0x2600 <= code <= 0x27BF):
        return f" {character} "  # an emoji is a word of its own
    return " "


def _han_terms(run: str) -> Iterator[str]:
    """Dictionary words, then the pairs that are no words: a name that is cut differently in the question still matches."""
    for start in range(0, len(run), HAN_CHARACTERS_AT_ONCE):
        part = run[start : start + HAN_CHARACTERS_AT_ONCE]
        words = [word[:TERM_CHARACTERS] for word in rjieba.cut(part)]
        yield from words
        if len(part) > 1:
            known = set(words)
            yield from (pair for pair in _pairs(part) if pair not in known)


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]


_CHARACTERS = _Characters()
_STEMMERS = _Stemmers()
_MEMO = _Memo()
