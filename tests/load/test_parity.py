"""Both stores answer `/retrieval` alike: the same first ten, second page and page within half of the documents."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from load.eval import EvalSet, local_embedder
from load.parity import VIEWS, Parity, compare_set
from rag.llm.local import LocalEmbedder
from tests.services.elasticsearch import Node

DOCUMENTS, QUESTIONS = 60, 12
WORDS = """
mill river wheat flour meadow spring swallow roof iron copper harbour island heron weir lock barge miller grain stone wheel bridge valley
flood drought clay brick kiln timber forest charcoal
"""


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEmbedder]:
    with local_embedder(None, ("en",), tmp_path_factory.mktemp("models")) as made:
        yield made


def some_set() -> EvalSet:
    """Texts that share words with each other and with every question; two of them say the same."""
    dice, words = random.Random(5), WORDS.split()
    texts = [f"The {' '.join(dice.choices(words, k=20))}." for _ in range(DOCUMENTS)]
    texts[-1] = texts[0]
    documents = [{"id": f"d{number}", "title": dice.choice(words), "text": text} for number, text in enumerate(texts)]
    questions = {f"q{number}": f"Where is the {' '.join(dice.sample(words, 3))}?" for number in range(QUESTIONS)}
    return EvalSet("some", documents, questions, {name: {f"d{dice.randrange(DOCUMENTS)}": 1} for name in questions})


async def test_both_stores_answer_retrieval_alike(elasticsearch_node: Node, embedder: LocalEmbedder, tmp_path: Path) -> None:
    parity = await compare_set(some_set(), elasticsearch_node.url, embedder, tmp_path)
    assert parity.shared == dict.fromkeys(VIEWS, 1.0)
    assert (parity.totals, parity.embedded) == (1.0, parity.elastic)
    assert parity.holds


@pytest.mark.parametrize(("elastic", "page_2", "holds"), [(0.8049, 0.98, True), (0.806, 1.0, False), (0.8, 0.979, False)])
def test_stores_that_rank_apart_or_show_other_pages_are_told(elastic: float, page_2: float, holds: bool) -> None:
    assert Parity(some_set(), 0.8, elastic, {"page 1": 1.0, "page 2": page_2}, 1.0).holds == holds
