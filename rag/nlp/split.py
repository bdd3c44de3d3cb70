"""Cuts a text into chunks: spans with exact offsets that fill a size without breaking what belongs together.

Everything works on a text's runs (see rag/nlp/tokens.py): running totals of tokens and of characters are bisected for where
a chunk must end at the latest, and then the best place before that is looked up among the text's natural boundaries. Nothing
is ever counted twice, so the cost is that of one pass, whatever the size and the overlap.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol

from rag.errors import InvalidArgument
from rag.nlp.tokens import TokenRuns

Strategy = Literal["recursive", "sentence", "token", "character"]
STRATEGIES: tuple[Strategy, ...] = ("recursive", "sentence", "token", "character")

DEFAULT_SIZE_TOKENS = 512
CHARACTERS_PER_TOKEN = 10  # a hundred unspaced characters can be one unknown token: characters are bounded too
SLAB_CHARACTERS = 128 * 1024  # the text is worked on by so much at a time, which bounds memory
LARGEST_RUN_TOKENS = 400  # of a run's hundred characters, by byte-level tokenizers
MIN_FILL = 0.5  # a natural boundary counts when the chunk is at least so full ...
MIN_FILL_SECTION = 0.25  # ... or so full, where a section begins

_WORD = re.compile(r"\s*\S{1,100}")
_BLANKS = re.compile(r"\s*")
_QUOTED_DELIMITER = re.compile(r"`([^`]+)`")
_CLOSING = "\"')\\]”’»）】》」』"
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_SENTENCE_AT_LINE_END = re.compile(rf"[.!?。！？…][{_CLOSING}]*(?=\n)")
_SENTENCE = re.compile(rf"(?:[.!?…][{_CLOSING}]*(?=\s)|[。！？][{_CLOSING}]*)")
_LINE = re.compile(r"\n")
_CLAUSE = re.compile(r"[,;:](?=\s)|[，；、：]")


class Counter(Protocol):
    """What measures a text; `rag.nlp.tokens.TokenCounter` is one."""

    def count(self, text: str) -> int:
        """The text's size."""

    def runs(self, text: str) -> TokenRuns:
        """Where the text may be cut, and its size up to each such place."""


class CharacterCounter:
    """Measures in characters; cuts between words."""

    def count(self, text: str) -> int:
        """How many characters the text has."""
        return len(text)

    def runs(self, text: str) -> TokenRuns:
        """Where the words end, as offsets and as sizes, which is the same."""
        ends = list(accumulate(map(len, _WORD.findall(text.rstrip())), initial=0))
        return TokenRuns(ends, list(ends))


@dataclass(frozen=True, slots=True)
class Span:
    """A chunk as `text[start:end]`, without blanks around it. `size` is in the counter's unit, at most what was asked for."""

    start: int
    end: int
    size: int


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How to split. `size` and `overlap` are in tokens, for the strategy `character` in characters.

    `recursive` prefers, in this order, the begin of a section, a paragraph, the caller's `delimiters`, a sentence, a line, a
    clause, a word. `sentence` packs whole sentences; `token` and `character` cut at the last word that fits.
    A cut is always made at a `hard_delimiters` match, which is itself in no chunk.
    """

    strategy: Strategy = "recursive"
    size: int = DEFAULT_SIZE_TOKENS
    overlap: int = 0
    delimiters: tuple[str, ...] = ("\n",)
    hard_delimiters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise InvalidArgument(f"split strategy is not one of {', '.join(STRATEGIES)}")
        if self.size < 1:
            raise InvalidArgument(f"chunk size {self.size} is below 1")
        if not 0 <= self.overlap <= self.size // 2:
            raise InvalidArgument(f"chunk overlap {self.overlap} is not between 0 and half the chunk size {self.size}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any], default_size: int = DEFAULT_SIZE_TOKENS) -> "SplitOptions":
        """The options in a document's `parser_config`: `chunk_token_num`, `delimiter`, `overlapped_percent`, `ext.split_strategy`.

        `overlapped_percent` (also as `ext.overlapped_percent`) is a share below 1 or a percentage up to 50; more counts as
        50. A strategy counted in characters takes four for a token. Raises `InvalidArgument`.
        """
        ext = config.get("ext") or {}
        strategy = ext.get("split_strategy") or "recursive"
        size = int(_number("chunk_token_num", config.get("chunk_token_num") or default_size)) * (4 if strategy == "character" else 1)
        percent = _number("overlapped_percent", config.get("overlapped_percent") or ext.get("overlapped_percent") or 0)
        share = percent if 0 <= percent < 1 else percent / 100
        soft, hard = parse_delimiters(config.get("delimiter") or "\n")
        return cls(strategy, size, int(size * min(0.5, max(0.0, share))), soft, hard)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidArgument(f"{name} is not a number") from None


def parse_delimiters(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Single characters, at which cuts are preferred, and the strings set in backticks, at which a cut is always made.

    An escaped line feed or tab, as forms send it, is one.
    """
    text = text.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
    hard = tuple(dict.fromkeys(_QUOTED_DELIMITER.findall(text)))
    soft = tuple(dict.fromkeys(_QUOTED_DELIMITER.sub("", text).replace("`", "")))
    return soft, hard


def split(
    text: str, options: SplitOptions, counter: Counter, sections: Sequence[int] = (), start: int = 0, end: int | None = None
) -> Iterator[Span]:
    """The chunks of `text[start:end]`, in order. Together they hold every character but blanks and hard delimiters.

    `sections` are ascending offsets where a section begins. No chunk is larger than the size, but for a single
    character that is, and none has more characters than ten times the size, but for a single word of at most a hundred.
    (A word larger than the size is cut by halves, whose sizes are added up.)
    """
    if options.strategy == "character":
        counter = CharacterCounter()
    for piece_start, piece_end in _between(text, options.hard_delimiters, start, len(text) if end is None else end):
        yield from _Splitter(text, piece_start, piece_end, options, counter, sections).spans()


def _between(text: str, delimiters: tuple[str, ...], start: int, end: int) -> Iterator[tuple[int, int]]:
    if delimiters:
        longest_first = sorted(delimiters, key=len, reverse=True)
        for match in re.compile("|".join(map(re.escape, longest_first))).finditer(text, start, end):
            yield start, match.start()
            start = match.end()
    yield start, end


class _Splitter:
    """One pass over `text[start:end]`."""

    def __init__(self, text: str, start: int, end: int, options: SplitOptions, counter: Counter, sections: Sequence[int]) -> None:
        self._text, self._start, self._end = text, start, end
        self._options, self._counter, self._sections = options, counter, sections
        self._max_characters = options.size if options.strategy == "character" else options.size * CHARACTERS_PER_TOKEN
        self._slab = max(SLAB_CHARACTERS, 4 * self._max_characters)
        self._levels = _levels(options)

    def spans(self) -> Iterator[Span]:
        position = self._start
        while position < self._end:
            position = yield from self._slab_spans(position, min(self._end, position + self._slab))

    def _slab_spans(self, base: int, stop: int) -> Generator[Span, None, int]:
        """Yields the chunks of the slab and returns where the next slab begins: at the first chunk that this one cuts off."""
        slab = _Slab(self._text, base, stop, self._counter, self._options.size, self._levels, self._sections)
        first = 0
        while first < len(slab.ends) - 1:
            last = self._furthest(slab.ends, slab.sizes, first)
            if last == len(slab.ends) - 1:
                if stop < self._end and first > 0:
                    return base + slab.ends[first]
                yield from slab.span(first, last)
                break
            last = self._best_cut(slab, first, last)
            yield from slab.span(first, last)
            first = self._overlap_start(slab, first, last) if self._options.overlap else last
        return stop

    def _furthest(self, ends: list[int], sizes: list[int], first: int) -> int:
        """The run before which a chunk from run `first` must end."""
        by_size = bisect_right(sizes, sizes[first] + self._options.size, first + 1) - 1
        by_characters = bisect_right(ends, ends[first] + self._max_characters, first + 1) - 1
        return max(first + 1, min(by_size, by_characters))

    def _best_cut(self, slab: "_Slab", first: int, last: int) -> int:
        """The run before which a chunk of the runs `first` to `last` ends best."""
        if not self._levels:
            return last
        size = slab.sizes[last] - slab.sizes[first]
        least = self._options.overlap + size / 8 if self._options.overlap else 0  # what overlaps is no progress
        for boundaries, min_fill in slab.levels:
            floor = slab.sizes[first] + max(size * min_fill, least)
            lowest = slab.ends[bisect_left(slab.sizes, floor, first, last)]
            found = bisect_right(boundaries, slab.next_start(last)) - 1
            if found >= 0 and boundaries[found] >= max(lowest, slab.ends[first] + 1):
                return min(last, max(first + 1, slab.run_at(boundaries[found])))
        return last

    def _overlap_start(self, slab: "_Slab", first: int, last: int) -> int:
        """The run with which the next chunk starts: at most `overlap` before the cut, at a sentence where there is one."""
        earliest = bisect_left(slab.sizes, slab.sizes[last] - self._options.overlap, first + 1, last)
        while earliest < last and self._furthest(slab.ends, slab.sizes, earliest) <= last:
            earliest += 1  # the next run would not fit behind so much overlap
        if self._options.strategy in ("recursive", "sentence"):
            found = bisect_left(slab.sentences, slab.ends[earliest])
            if found < len(slab.sentences) and slab.sentences[found] < slab.ends[last]:
                return max(earliest, min(last, slab.run_at(slab.sentences[found])))
        return earliest


def _levels(options: SplitOptions) -> list[tuple[re.Pattern[str] | None, float]]:
    """The boundaries looked for, best first, each with how full a chunk must be; None stands for the sections."""
    if options.strategy in ("token", "character"):
        return []
    if options.strategy == "sentence":
        return [(_SENTENCE, 0.0), (_PARAGRAPH, 0.0), (_LINE, 0.0), (_CLAUSE, MIN_FILL)]
    own = [re.escape(delimiter) for delimiter in options.delimiters if delimiter != "\n"]
    return [
        (None, MIN_FILL_SECTION),
        (_PARAGRAPH, MIN_FILL),
        *([(re.compile("|".join(own)), MIN_FILL)] if own else []),
        (_SENTENCE_AT_LINE_END, MIN_FILL),
        (_SENTENCE, MIN_FILL),
        (_LINE, MIN_FILL),
        (_CLAUSE, MIN_FILL),
    ]


class _Slab:
    """A stretch of the text with its runs and boundaries, all as offsets from its begin `base`."""

    def __init__(
        self, text: str, base: int, stop: int, counter: Counter, size: int,
        levels: list[tuple[re.Pattern[str] | None, float]], sections: Sequence[int],
    ) -> None:  # fmt: skip
        self.base = base
        self.text = text[base:stop]
        runs = counter.runs(self.text)
        self.ends, self.sizes = runs.ends, runs.tokens
        self._counter = counter
        if size < LARGEST_RUN_TOKENS and any(b - a > size for a, b in pairwise(self.sizes)):
            self._break_large_runs(size)
        found = {pattern: self._boundaries(pattern, sections) for pattern, _ in levels}
        self.levels = [(found[pattern], min_fill) for pattern, min_fill in levels]
        self.sentences = found.get(_SENTENCE, [])

    def span(self, first: int, last: int) -> Iterator[Span]:
        """The runs `first` to `last` as a chunk; nothing if they hold but blanks."""
        start = self._skip_blanks(self.ends[first])
        end = start + len(self.text[start : self.ends[last]].rstrip())
        if end > start:
            yield Span(self.base + start, self.base + end, self.sizes[last] - self.sizes[first])

    def next_start(self, run: int) -> int:
        """Where the text of the run begins, behind its blanks."""
        return self._skip_blanks(self.ends[run])

    def run_at(self, offset: int) -> int:
        """The run that begins at the offset, or in whose blanks it lies; a run around the offset is cut in two there if it can be."""
        run = bisect_left(self.ends, offset)
        if run == len(self.ends) or self.ends[run] == offset:
            return min(run, len(self.ends) - 1)
        before = run - 1
        if offset <= self._skip_blanks(self.ends[before]):
            return before
        size = self.sizes[before] + self._counter.count(self.text[self.ends[before] : offset])
        if size > self.sizes[run]:
            return before  # a part that counts more than the whole, as of an unknown word, would make chunks too large
        self.ends.insert(run, offset)
        self.sizes.insert(run, size)
        return run

    def _skip_blanks(self, offset: int) -> int:
        match = _BLANKS.match(self.text, offset)
        return match.end() if match else offset

    def _boundaries(self, pattern: re.Pattern[str] | None, sections: Sequence[int]) -> list[int]:
        if pattern is not None:
            return [match.end() for match in pattern.finditer(self.text)]
        inside = sections[bisect_right(sections, self.base) : bisect_left(sections, self.base + len(self.text))]
        return [offset - self.base for offset in inside]

    def _break_large_runs(self, size: int) -> None:
        ends, sizes = [0], [0]
        for (start, end), (before, after) in zip(pairwise(self.ends), pairwise(self.sizes), strict=True):
            pieces = [(end, after - before)] if after - before <= size else _halves(self.text, start, end, size, self._counter)
            for piece_end, piece_size in pieces:
                ends.append(piece_end)
                sizes.append(sizes[-1] + piece_size)
        self.ends, self.sizes = ends, sizes


def _halves(text: str, start: int, end: int, size: int, counter: Counter) -> list[tuple[int, int]]:
    """Ends and sizes of the pieces of `text[start:end]`, none larger than the size but for single characters."""
    own_size = counter.count(text[start:end])
    if own_size <= size or end - start == 1:
        return [(end, own_size)]
    middle = (start + end) // 2
    return _halves(text, start, middle, size, counter) + _halves(text, middle, end, size, counter)
