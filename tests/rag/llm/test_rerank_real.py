"""A real reranker: llama.cpp's server with a tiny model of random weights, through the registry and the retrieval's own hook."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rag.errors import ProviderBusy
from rag.llm.endpoint import Endpoint
from rag.llm.registry import ModelSpec, Registry
from rag.llm.rerank_model import TextEmbeddingsInferenceRerank, VendorReranker
from rag.llm.resilience import Guard
from rag.llm.transport import Transport
from rag.nlp.search import async_rerank_by_model
from rag.threads import Lane
from tests.model_server import model_server

QUERY = "when does water boil?"
TEXTS = [f"text number {number} about {subject}" for number, subject in enumerate(["water", "the sea", "mountains", "cooking"] * 9)]


@pytest.fixture(scope="module")
def rerank_server() -> Iterator[str]:
    with model_server("rerank") as base_url:
        yield base_url


@pytest.fixture
def models(rerank_server: str, transport: Transport, query_lane: Lane, document_lane: Lane, graph_cache: Path) -> Registry:
    specs = [
        ModelSpec(name="tiny", provider=provider, kind="rerank", base_url=base_url, context_tokens=512, concurrency=2)
        for provider, base_url in (("llama.cpp", rerank_server), ("LocalAI", rerank_server + "/v1"), ("Jina", rerank_server))
    ]
    return Registry(specs, {}, transport, query_lane=query_lane, document_lane=document_lane, rerank_lane=query_lane, cache_dir=graph_cache)


@pytest.mark.parametrize("name", ["tiny@llama.cpp", "tiny@LocalAI", "tiny@Jina"])
async def test_a_real_servers_logits_become_scores(models: Registry, query_lane: Lane, name: str) -> None:
    scores = await async_rerank_by_model(QUERY, TEXTS, models.reranker(name), query_lane)
    assert scores.shape == (len(TEXTS),)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert len(set(scores.tolist())) > len(TEXTS) // 2
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = await async_rerank_by_model(QUERY, [TEXTS[index] for index in order], models.reranker(name), query_lane)
    assert np.allclose(shuffled, scores[order], atol=1e-4)


async def test_a_real_server_counts_tokens_and_scores_alike_on_a_thread(models: Registry) -> None:
    reranker = models.reranker("tiny@llama.cpp")
    awaited, tokens = await reranker.async_similarity(QUERY, TEXTS[:5])
    waited, tokens_on_thread = await asyncio.to_thread(reranker.similarity, QUERY, TEXTS[:5])
    assert np.allclose(awaited, waited, atol=1e-5)
    assert tokens == tokens_on_thread
    assert tokens is not None
    assert tokens > 5 * 10


async def test_the_other_form_is_served_too(rerank_server: str, transport: Transport, models: Registry) -> None:
    endpoint = Endpoint("tiny@TEI", rerank_server + "/rerank")
    other: VendorReranker = TextEmbeddingsInferenceRerank("tiny", endpoint, transport, Guard("tiny@TEI", 2, 30.0))
    scores, tokens = await other.async_similarity(QUERY, TEXTS)
    usual, _ = await models.reranker("tiny@llama.cpp").async_similarity(QUERY, TEXTS)
    assert np.allclose(scores, usual, atol=1e-3)
    assert tokens is None


async def test_texts_longer_than_the_model_are_cut_to_what_a_real_server_takes(models: Registry) -> None:
    long = ["plain English words which are usual in a report " * 200, "水は百度で沸騰する" * 400, "word " * 10]
    scores, _ = await models.reranker("tiny@llama.cpp").async_similarity(QUERY * 100, long)
    assert np.isfinite(scores).all()


async def test_a_real_server_at_its_limit_answers_all_who_wait(models: Registry) -> None:
    answers = await asyncio.gather(
        *(models.reranker("tiny@llama.cpp").async_similarity(QUERY, TEXTS[:4]) for _ in range(10)), return_exceptions=True
    )
    assert not [answer for answer in answers if isinstance(answer, BaseException) and not isinstance(answer, ProviderBusy)]
