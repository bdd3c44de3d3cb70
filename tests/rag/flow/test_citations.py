"""rag/flow/citations.py: comparisons happen where the words do not tell, are bounded, and their failure leaves the words."""

import asyncio
from collections.abc import Sequence

import pytest

from rag.errors import ProviderUnreachable
from rag.flow import citations
from rag.flow.citations import CheckedCitations, Compare
from rag.types import RankedChunk
from tests.rag.flow.passages import IRON, WATER, ranked

CHUNKS = [ranked(WATER, 0), ranked(IRON, 1)]
PARAPHRASE = "Liquids turn into steam when heated enough [ID:0]. "


def checked(compare: Compare | None, failures: dict[str, Exception] | None = None) -> CheckedCitations:
    return CheckedCitations([WATER, IRON], CHUNKS, compare, {} if failures is None else failures, add=True)


async def said(filter_: CheckedCitations, *texts: str) -> str:
    pieces = [piece for text in texts for piece in [piece async for piece in filter_.feed(text)]]
    return "".join(pieces) + "".join([piece async for piece in filter_.finish()])


def scoring(*cosines: float, asked: list[str] | None = None) -> Compare:
    async def compare(sentence: str, chunks: Sequence[RankedChunk]) -> Sequence[float]:
        assert list(chunks) == CHUNKS
        if asked is not None:
            asked.append(sentence)
        return cosines

    return compare


async def test_a_rightful_citation_in_other_words_stays() -> None:
    assert await said(checked(scoring(0.8, 0.2)), PARAPHRASE) == PARAPHRASE
    assert "[ID:" not in await said(checked(scoring(0.2, 0.8)), PARAPHRASE)
    assert "[ID:" not in await said(checked(None), PARAPHRASE)


async def test_nothing_is_compared_where_the_words_tell_nor_before_a_citation() -> None:
    asked: list[str] = []
    await said(checked(scoring(0.9, 0.9, asked=asked)), "Liquids turn into steam. ", "Water boils at 100 °C at sea level [ID:0].")
    assert asked == []


async def test_the_text_before_a_citation_is_sent_before_it_is_compared() -> None:
    compared = asyncio.Event()

    async def compare(_: str, __: Sequence[RankedChunk]) -> Sequence[float]:
        await compared.wait()
        return 0.9, 0.0

    pieces = checked(compare).feed(PARAPHRASE)
    assert await anext(pieces) == "Liquids turn into steam when heated enough"
    compared.set()
    assert (await anext(pieces)).startswith(" [ID:0]")


@pytest.mark.parametrize("error", [ProviderUnreachable("the model cannot be reached"), None], ids=["refused", "hangs"])
async def test_a_comparison_that_fails_is_told_and_the_last_one(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(citations, "COMPARE_SECONDS", 0.01)
    asked, failures = [], {}

    async def compare(sentence: str, _: Sequence[RankedChunk]) -> Sequence[float]:
        asked.append(sentence)
        if error is not None:
            raise error
        await asyncio.Event().wait()
        return ()

    text = await said(checked(compare, failures), PARAPHRASE, PARAPHRASE, "Water boils at 100 °C at sea level [ID:0].")
    assert text.endswith("Water boils at 100 °C at sea level [ID:0].")
    assert text.count("[ID:") == 1
    assert len(asked) == 1
    assert failures.keys() == {"cite"}


async def test_only_so_many_sentences_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(citations, "MOST_COMPARED", 2)
    asked: list[str] = []
    text = await said(checked(scoring(0.9, 0.0, asked=asked)), *[f"{letter} {PARAPHRASE}" for letter in "ABCD"])
    assert (len(asked), text.count("[ID:0]")) == (2, 2)
