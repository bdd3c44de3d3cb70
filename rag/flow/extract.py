"""Answers without a chat model: quotes the sentences of the retrieved chunks that fit the question best, each with its citation.

A sentence is scored by the share of the question's terms that it holds, each term weighed by how rare it is among the
sentences looked at, so that words that stand everywhere count for next to nothing, and by its weight in the question.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rag.nlp.cite import sentences
from rag.nlp.query import question_terms
from rag.nlp.tokenize import terms
from rag.types import RankedChunk, Term

NOTICE = "This is an extractive answer, made without a chat model."
FOUND = "The passages that fit the question best:"
CLOSEST = "No passage uses the question's words; the closest one begins:"
NOTHING = "Nothing that fits the question was found."
NO_DATASETS = "This chat is answered without a chat model, and it has no datasets to quote from."

MAX_SENTENCES = 4
MAX_CHUNKS = 16
SENTENCE_CHARACTERS = 600  # a longer one is cut at a blank
LEAST_COVERAGE = 0.15  # of the question's weight; less is a chance hit on a common word
LEAST_OF_BEST = 0.5  # a further sentence must reach this share of the best one's score
FULL_LINE_CHARACTERS = 45  # a line so long that ends in no stop was broken for the page's width
STOPS = ".!?…。！？"
SENTENCE_ENDS = ".!?:;…。！？：；|"
HEADING_CHARACTERS = 120
HEADING_SHARE = 0.5  # what a term of the heading counts for a sentence below it
BEFORE_SHARE = 0.25  # what a term of the question before counts
SAME_SENTENCE = 0.8  # share of common terms from which two sentences say the same
SIMILARITY_SHARE = 0.2  # how much the chunk's own rank says beside the words


_LINE_MARK = re.compile(r"^(?:#{1,6}|[-*+•>])\s+")  # Markdown's, of headings, lists and quotations
_HEADING_MARK = re.compile(r"#{1,6}\s")


@dataclass(frozen=True, slots=True)
class Quote:
    """A sentence of chunk `chunk` (its place in the list given) and how well it fits, from 0 to 1.

    `heading` holds the terms of the heading that it stands under.
    """

    text: str
    chunk: int
    score: float
    terms: frozenset[str]
    heading: frozenset[str] = frozenset()


def extractive_answer(question: str, chunks: Sequence[RankedChunk], cite: bool = True, before: str = "") -> Iterator[str]:
    """The answer in pieces that can be sent one by one: a notice, then a sentence a line with its `[ID:n]`.

    `before` is the question before this one, which it may refer to. Where no sentence fits, the best chunk's first one, without
    `[ID:n]`: it supports nothing.
    """
    yield NOTICE
    if not chunks:
        yield f" {NOTHING}"
        return
    quotes = best_quotes(question, chunks, before=before)
    yield f" {FOUND if quotes else CLOSEST}\n"
    if not quotes:
        yield f"\n{_opening(chunks[0])}"
    for quote in quotes:
        yield f"\n{quote.text} [ID:{quote.chunk}]" if cite else f"\n{quote.text}"


def best_quotes(question: str, chunks: Sequence[RankedChunk], limit: int = MAX_SENTENCES, before: str = "") -> list[Quote]:
    """At most `limit` sentences that answer the question, best first, none that repeats another; empty when none fits."""
    asked = _asked(question, before)
    quotes = [quote for number, ranked in enumerate(chunks[:MAX_CHUNKS]) for quote in _sentences(ranked, number)]
    weights = _weights(asked, quotes)
    whole = sum(weights.values())
    if not whole:
        return []
    scored = sorted((_scored(quote, weights, whole, chunks[quote.chunk].similarity) for quote in quotes), key=_rank)
    chosen: list[Quote] = []
    for quote in scored:
        if quote.score < max(LEAST_COVERAGE, LEAST_OF_BEST * scored[0].score) or len(chosen) == limit:
            break
        if not any(_overlap(quote.terms, other.terms) >= SAME_SENTENCE for other in chosen):
            chosen.append(quote)
    return chosen


def _asked(question: str, before: str) -> list[Term]:
    """The question's terms, and those of the one before it: they tell what "it" is, but they were answered already."""
    asked = list(question_terms(question))
    known = {term.text for term in asked}
    return asked + [replace(term, weight=term.weight * BEFORE_SHARE) for term in question_terms(before) if term.text not in known]


def _sentences(ranked: RankedChunk, number: int) -> Iterator[Quote]:
    paragraphs = [paragraph for paragraph in unwrapped(ranked.chunk.content).split("\n\n") if paragraph.strip()]
    headings = _headings(paragraphs)
    above: frozenset[str] = frozenset()
    for place, paragraph in enumerate(paragraphs):
        if place in headings:
            above = frozenset(terms(paragraph)) | (above if place - 1 in headings else frozenset())
            continue
        for sentence in sentences(paragraph):
            if text := _shortened(sentence):
                yield Quote(text, number, 0.0, frozenset(terms(text)), above)


def _headings(paragraphs: Sequence[str]) -> set[int]:
    """Which paragraphs are short lines without a stop above sentences (or above another such line): they name answers and are none."""
    headings: set[int] = set()
    for place in range(len(paragraphs) - 2, -1, -1):
        line, following = paragraphs[place].strip(), paragraphs[place + 1].strip()
        if len(line) <= HEADING_CHARACTERS and "\n" not in line and line[-1] not in SENTENCE_ENDS:
            above_sentences = following[-1] in STOPS and len(following) > len(line)
            if above_sentences or place + 1 in headings:
                headings.add(place)
    return headings


def unwrapped(text: str) -> str:
    """The text with the lines joined that were broken for a page's width: a PDF's sentences go on over them."""
    lines = text.split("\n")
    joined = lines[0]
    for before, line in pairwise(lines):
        joined += (" " if _goes_on(before.rstrip(), line.lstrip()) else "\n") + line
    return joined


def _goes_on(before: str, line: str) -> bool:
    if not before or not line[:1].isalpha() or before[-1] in SENTENCE_ENDS:
        return False
    return line[0].islower() or len(before) >= FULL_LINE_CHARACTERS


def _weights(asked: Sequence[Term], quotes: Sequence[Quote]) -> dict[str, float]:
    """The question's terms by how much they tell: one in every sentence nothing, one in no sentence as much as one in one."""
    count = Counter(term for quote in quotes for term in quote.terms)
    return {term.text: term.weight * math.log((len(quotes) + 1) / max(1, count[term.text])) for term in asked}


def _scored(quote: Quote, weights: dict[str, float], whole: float, similarity: float) -> Quote:
    above = quote.heading - quote.terms
    coverage = (sum(weights.get(term, 0.0) for term in quote.terms) + HEADING_SHARE * sum(weights.get(term, 0.0) for term in above)) / whole
    # of two sentences with the same words the shorter one is the answer, and a line of three words is none
    length = len(quote.terms)
    fit = min(1.0, length / 4) / (1.0 + max(0, length - 40) / 80)
    score = coverage * fit * (1.0 + SIMILARITY_SHARE * similarity) / (1.0 + SIMILARITY_SHARE)
    return replace(quote, score=score)


def _rank(quote: Quote) -> tuple[float, int]:
    return -quote.score, quote.chunk


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(1, min(len(one), len(other)))


def _opening(ranked: RankedChunk) -> str:
    """The first sentence below the chunk's headings; the first heading of a chunk that has nothing else."""
    lines = list(sentences(unwrapped(ranked.chunk.content)))
    headings = _headings(lines)
    below = (line for place, line in enumerate(lines) if place not in headings and not _HEADING_MARK.match(line))
    return _shortened(next(below, lines[0] if lines else ranked.chunk.content))


def _shortened(sentence: str) -> str:
    text = " ".join(_LINE_MARK.sub("", sentence).split())
    if len(text) <= SENTENCE_CHARACTERS:
        return text
    cut = text.rfind(" ", SENTENCE_CHARACTERS // 2, SENTENCE_CHARACTERS)
    return text[: cut if cut > 0 else SENTENCE_CHARACTERS] + "…"
