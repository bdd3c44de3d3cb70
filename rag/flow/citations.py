"""Checks an answer's citations as it streams, by words first, then by vectors: what the words do not support may be said in others."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from rag.errors import MillraceError
from rag.nlp.cite import CitationFilter
from rag.stages import stage
from rag.types import RankedChunk

COMPARE_SECONDS = 0.5  # for one sentence; the text behind its citation waits so long
MOST_COMPARED = 64  # sentences of an answer; what more there is, is judged by its words

Compare = Callable[[str, Sequence[RankedChunk]], Awaitable[Sequence[float] | None]]
"""The cosine of a sentence with each of the chunks; None where vectors cannot tell. Raises `MillraceError`."""


class CheckedCitations:
    """A citation filter whose doubts are settled by vectors as the answer goes on.

    Nothing waits before a citation that its sentence's words do not support. A comparison that fails is the last one of the answer:
    its error goes to `failures`, and the words decide from there on.
    """

    def __init__(
        self, shown: Sequence[str], chunks: Sequence[RankedChunk], compare: Compare | None, failures: dict[str, Exception], *, add: bool
    ) -> None:  # fmt: skip
        """`shown[n]` is `chunks[n]` as the model read it; none for an answer without citations. `add` as for `CitationFilter`."""
        self._filter = CitationFilter(shown, add=add, compare=compare is not None)
        self._chunks = chunks
        self._compare = compare
        self._failures = failures
        self._left = MOST_COMPARED

    def prepare(self) -> None:
        """Analyse the chunks now, which the first citation would do otherwise; blocking."""
        self._filter.prepare()

    def feed(self, text: str) -> AsyncIterator[str]:
        """More of the answer; what may be sent on now, in pieces."""
        return self._settled(self._filter.feed(text))

    def finish(self) -> AsyncIterator[str]:
        """The rest, when the answer has ended."""
        return self._settled(self._filter.finish())

    async def _settled(self, piece: str) -> AsyncIterator[str]:
        while True:
            if piece:
                yield piece
            if self._filter.doubt is None:
                return
            piece = self._filter.settle(await self._cosines(self._filter.doubt.sentence))

    async def _cosines(self, sentence: str) -> Sequence[float] | None:
        if self._compare is None or not self._left:
            return None
        self._left -= 1
        try:
            async with asyncio.timeout(COMPARE_SECONDS):
                with stage("cite"):
                    return await self._compare(sentence, self._chunks)
        except (MillraceError, TimeoutError) as error:
            self._failures["cite"] = error
            self._left = 0
            return None
