"""Checks the citations of an answer while it streams: `[ID:n]` stays only where chunk n supports the sentence.

A model is asked to cite, and often does so wrongly: passages that were never given, that say something else, in forms of its
own. What stays is brought to one form; what a chunk clearly says and the model did not cite gets its citation.

Support is the share of a sentence's terms that the chunk holds, each weighed by how rare it is among the chunks given. Measured
on questions with their answers against the right chunk and its nearest neighbours (data sets of `load/eval.py`, no answers of real
models): of citations to a close neighbour 12 % (en_squad) to 30 % (chat_lihua) would pass at 0.4, and most right ones stay at 0.45;
0.6 is for citations that nobody asked for, where a wrong one costs more than a missing one.

What the words do not support, the vectors may: an answer in other words, or in another language where the model knows both. On
the same questions, a cosine of 0.6 that is within 0.05 of the best chunk's brings back half of the right ones that the words lose
(4 % of all in en_squad, 3 % in chat_lihua) and lets 1 % more of the close neighbours pass; without the margin it is up to 4 %.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rag.nlp.function_words import FUNCTION_WORDS
from rag.nlp.tokenize import terms

KEEP_SUPPORT = 0.45  # for a citation the model gave
ADD_SUPPORT = 0.6  # for one it did not give
KEEP_COSINE = 0.6  # enough by itself, where the caller can compare vectors ...
COSINE_MARGIN = 0.05  # ... and no other chunk is closer by more than this
FEWEST_TERMS = 4  # a shorter sentence gets no citation that the model did not give
CITATIONS_A_SENTENCE = 4

_CLOSERS = "\"'”’»)\\]*_」』）"
_END = re.compile(rf"[.!?…]+[{_CLOSERS}]*(?=\s|\Z)|[。！？]+[{_CLOSERS}]*|\n+")
_OPENING = r"[ \t]*[\[【［]\s{0,2}ID\s{0,2}"
_INSIDE = r"[:：][^\[\]【】［］\n]{0,40}"
# The second form is a marker that another bracket broke off: left as text, it could become one when what follows it is dropped.
_MARKER = re.compile(rf"{_OPENING}(?:(?:{_INSIDE}|\d{{1,4}}\s{{0,2}})[\]】］]|(?:{_INSIDE}|\d{{0,4}}\s{{0,2}})(?=[\[【［]))", re.IGNORECASE)
_EVENT = re.compile(f"(?P<marker>{_MARKER.pattern})|(?P<end>{_END.pattern})|(?P<fence>```)", re.IGNORECASE)
# What may still become an end with a marker behind it, a marker, or a fence, when more text comes.
_OPEN = re.compile(
    rf"(?:[.!?…。！？]+[{_CLOSERS}]*|\n+)?[ \t]*"
    rf"(?:[\[【［]\s{{0,2}}(?:I(?:D\s{{0,2}}(?:{_INSIDE}|\d{{0,4}}\s{{0,2}})?)?)?|`{{1,2}})?\Z",
    re.IGNORECASE,
)
_CUT_MARKER = re.compile(rf"{_OPENING}(?:{_INSIDE}|\d{{0,4}}\s{{0,2}})?\Z", re.IGNORECASE)
_HELD_AT_MOST = 256
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\[\"'“])(?:[A-Za-z](?:\.[A-Za-z])*|[DMS]r|Mr?s|Prof|St|No|Nos|Fig|Figs|Eq|Vol|pp?|vs|cf|al|approx"
    r"|ca|Inc|Ltd|Co|Corp|Jr|Gen|Col|Sgt|Capt|Lt|Rev|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec)\Z"
)
_LIST_NUMBER = re.compile(r"\s*\d{1,3}")
_NO_PROSE = re.compile(r"\s*(?:#|\||>|```)")  # headings, tables, quotations: no citation is put there


def sentences(text: str) -> Iterator[str]:
    """The text's sentences in order, without blanks around them, none empty. A line's end ends a sentence."""
    start = 0
    for end in _END.finditer(text):
        if _is_abbreviation(text[start : end.start()], end.group()):
            continue
        if sentence := text[start : end.end()].strip():
            yield sentence
        start = end.end()
    if sentence := text[start:].strip():
        yield sentence


class Support:
    """How far the chunks given to the model say what a sentence says."""

    def __init__(self, chunks: Sequence[str]) -> None:
        self._texts = chunks

    def __len__(self) -> int:
        return len(self._texts)

    @cached_property
    def _terms(self) -> list[frozenset[str]]:
        return [frozenset(terms(text)) for text in self._texts]

    @cached_property
    def _spread(self) -> Counter[str]:
        return Counter(term for chunk in self._terms for term in chunk)

    def prepare(self) -> None:
        """Analyse the chunks now and not when they are first compared."""
        _ = self._spread

    def of(self, sentence: frozenset[str], number: int) -> float:
        """0 to 1 for chunk `number`; 0 when the sentence names numbers and the chunk holds none of them."""
        held = sentence & self._terms[number]
        if not held or self.contradicts(sentence, number):
            return 0.0
        return sum(map(self._weight, held)) / sum(map(self._weight, sentence))

    def contradicts(self, sentence: frozenset[str], number: int) -> bool:
        """The sentence names numbers, and chunk `number` holds none of them."""
        figures = {term for term in sentence if term[0].isdigit()}
        return bool(figures) and figures.isdisjoint(self._terms[number])

    def best(self, sentence: frozenset[str]) -> tuple[int, float]:
        """The chunk that supports the sentence most, the first of equal ones, and how far; (-1, 0.0) without chunks."""
        scored = [(self.of(sentence, number), -number) for number in range(len(self))]
        support, number = max(scored, default=(0.0, 1))
        return -number, support

    def _weight(self, term: str) -> float:
        return math.log1p(len(self) / max(1, self._spread[term]))


@dataclass(frozen=True, slots=True)
class Doubt:
    """A sentence, as far as it was sent, and the chunks it cites whose words do not support it."""

    sentence: str
    numbers: tuple[int, ...]


@dataclass(slots=True)
class _Marker:
    """A marker that is being decided about: the chunks it names, and those of them that are known to support the sentence."""

    blanks: str
    numbers: list[int]
    kept: list[int]


class CitationFilter:
    """Feed it the answer's text as it comes, send on what it gives back.

    Held back is only what could still turn into a citation or decide about one: the punctuation and blanks that end a
    sentence, and the beginning of a marker. Not thread-safe; one instance an answer.
    """

    def __init__(
        self, chunks: Sequence[str], *, add: bool = True, compare: bool = False
    ) -> None:  # fmt: skip
        """`chunks[n]` is what the model was shown as `[ID:n]`: with its title, if it was shown with one. No chunks: all
        citations are removed. `add=False` adds none of our own. With `compare` the caller looks at `doubt` after each call,
        compares by vectors what is there, and goes on with `settle`.
        """
        self._support = Support(chunks)
        self._add = add
        self._compare = compare
        self._final = False
        self._marker = _Marker("", [], [])
        self.doubt: Doubt | None = None
        """What waits for `settle`, and all text behind it with it."""
        self._pending = ""
        self._sentence = ""  # what was sent of the sentence so far, without markers
        self._before = ""  # the sentence before
        self._clause = 0  # where in the sentence the text since the last marker begins
        self._cited: list[int] = []
        self._doubtful: list[int] = []  # cited too early in the sentence to tell
        self._ended = False  # the sentence's end was sent; markers may still follow
        self._in_code = False

    def prepare(self) -> None:
        """Analyse the chunks now, which the first citation would do otherwise."""
        self._support.prepare()

    def feed(self, text: str) -> str:
        """More of the answer; what may be sent on now, "" if nothing."""
        self._pending += text
        return self._drain()

    def finish(self) -> str:
        """The rest, when the answer has ended. A marker that was cut off is dropped."""
        self._pending = _CUT_MARKER.sub("", self._pending)
        self._final = True
        return self._drain()

    def settle(self, cosines: Sequence[float] | None) -> str:
        """Decide about the doubt by the cosine of its sentence with each chunk, by the words alone where there is none; then go on."""
        doubt, self.doubt = self.doubt, None
        assert doubt is not None, "nothing is in doubt"
        if cosines is not None:
            least = max(KEEP_COSINE, max(cosines) - COSINE_MARGIN)
            self._marker.kept += [number for number in doubt.numbers if cosines[number] >= least]
        return self._cite() + self._drain()

    def _drain(self) -> str:
        sent: list[str] = []
        text, done, final = self._pending, 0, self._final
        limit = len(text) if final else _open_from(text)
        while (event := _EVENT.search(text, done)) is not None and event.start() < limit:
            sent.append(self._body(text[done : event.start()]))
            done = event.end()
            if event["marker"]:
                sent.append(self._judge(event.group()))
                if self.doubt is not None:
                    self._pending = text[done:]
                    return "".join(sent)
            elif event["fence"]:
                self._in_code = not self._in_code
                sent.append(self._body(event.group()))
            elif _is_abbreviation(self._sentence, event.group()):
                sent.append(self._body(event.group()))
            else:
                sent.append(self._end(event.group(), cited_behind=_MARKER.match(text, done) is not None))
        if done < limit:
            sent.append(self._body(text[done:limit]))
            done = limit
        self._pending = text[done:]
        if final:
            sent.append(self._end("", cited_behind=False))
        return "".join(sent)

    def _body(self, text: str) -> str:
        if self._ended and text.strip():
            self._next_sentence()
        if not self._ended:
            self._sentence += text
        return text

    def _judge(self, marker: str) -> str:
        numbers = [int(number) for number in re.findall(r"\d{1,9}", marker)]
        numbers = [number for number in dict.fromkeys(numbers) if number < len(self._support) and number not in self._cited]
        whole = self._judged(self._sentence)
        contents = {_content(whole), _content(self._judged(self._sentence[self._clause :]))}
        kept = [number for number in numbers if any(self._support.of(content, number) >= KEEP_SUPPORT for content in contents)]
        self._marker = _Marker(marker[: len(marker) - len(marker.lstrip())], numbers, kept)
        if self._compare:
            content = _content(whole)
            open_ = tuple(number for number in numbers if number not in kept and not self._support.contradicts(content, number))
            if open_ and len(content) > 1:
                self.doubt = Doubt(whole.strip(), open_)
                return ""
        return self._cite()

    def _cite(self) -> str:
        """The citations of the marker at hand, as far as they are supported and the sentence may have more."""
        marker = self._marker
        kept = [number for number in marker.numbers if number in marker.kept]
        self._doubtful += [number for number in marker.numbers if number not in kept]
        kept = kept[: CITATIONS_A_SENTENCE - len(self._cited)]
        self._cited += kept
        self._clause = len(self._sentence)
        return marker.blanks + "".join(f"[ID:{number}]" for number in kept) if kept else ""

    def _end(self, end: str, *, cited_behind: bool) -> str:
        """The sentence's end, with the citation it lacks before it."""
        if self._ended:
            if "\n" in end:
                self._next_sentence()
            return end
        citation = "" if cited_behind or self._cited else self._missing_citation()
        if cited_behind:
            self._ended = True
        else:
            self._next_sentence()
        return citation + end

    def _next_sentence(self) -> None:
        if self._sentence.strip():
            self._before = self._sentence
        self._sentence, self._clause, self._cited, self._doubtful, self._ended = "", 0, [], [], False

    def _judged(self, part: str) -> str:
        """The part of the sentence that a marker is about; with the sentence before where this one hardly says anything."""
        return part if len(_content(self._sentence)) > 1 else f"{self._before} {self._sentence}"

    def _missing_citation(self) -> str:
        if self._in_code or _NO_PROSE.match(self._sentence):
            return ""
        content = _content(self._sentence)
        doubtful = [number for number in self._doubtful if self._support.of(content, number) >= KEEP_SUPPORT]
        if not doubtful and self._add and len(content) >= FEWEST_TERMS:
            number, support = self._support.best(content)
            doubtful = [number] if support >= ADD_SUPPORT else []
        if not doubtful:
            return ""
        blank = "" if self._sentence[-1] >= "\u2e80" or self._sentence[-1].isspace() else " "
        return blank + "".join(f"[ID:{number}]" for number in doubtful[:CITATIONS_A_SENTENCE])


def _content(text: str) -> frozenset[str]:
    return frozenset(terms(text)) - FUNCTION_WORDS


def _is_abbreviation(before: str, end: str) -> bool:
    """Also true of the full stop behind the number of a list's item."""
    if end != ".":
        return False
    return _LIST_NUMBER.fullmatch(before) is not None or _ABBREVIATION.search(before[-12:]) is not None


def _open_from(text: str) -> int:
    """Where that end of the text begins whose meaning depends on what comes next; the text's length if there is none."""
    # What can be open is short, but for blanks, line ends and full stops, and it has no letters before its first bracket.
    start = max(0, len(text) - 64)
    while start and text[start] in ".!?…。！？ \t\n\"'”’»)]*_":
        start -= 1
    match = _OPEN.search(text, start)
    if match is None or len(text) - match.start() > _HELD_AT_MOST:
        return len(text)
    return match.start()
