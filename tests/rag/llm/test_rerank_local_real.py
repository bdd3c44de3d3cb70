"""The local cross-encoder on a graph of real size: six layers of MiniLM's weights under a random head."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from rag.deadline import within
from rag.errors import DeadlineExceeded, Overloaded
from rag.llm.bert_graph import Safetensors
from rag.llm.model_directory import bundled_model_path
from rag.llm.registry import ModelSpec, Registry
from rag.llm.rerank_chain import FailoverReranker, RerankFailed
from rag.llm.rerank_local import LocalReranker, read_cross_encoder
from rag.llm.transport import Transport
from rag.nlp.search import async_rerank_by_model
from rag.threads import Lane
from tests.cross_encoder import EPSILON, HEADS, LAYERS, WIDTH, head, make_cross_encoder

QUERY = "when does water boil?"
TEXTS = [
    "Water boils at 100 °C at sea level.", "Iron melts.", "The sea is warm in June, and the mountains are high. " * 12,
    "boil", "水は百度で沸騰する", "",
]  # fmt: skip
MANY = [f"passage {number}: " + "the mill stands beside the river and turns in the wind " * 8 for number in range(64)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("cross-encoder"))


@pytest.fixture(scope="module")
def reranker(directory: Path) -> LocalReranker:
    return LocalReranker("tiny@Local", read_cross_encoder(directory))


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("rerank", 1, 4)
    yield lane
    lane.close()


class Reference:
    """The same network by numpy, a pair at a time: no padding, no batch, no mask. https://arxiv.org/abs/1810.04805"""

    def __init__(self) -> None:
        source = bundled_model_path()
        with (source / "model.safetensors").open("rb") as file:
            tensors = Safetensors(file)
            self.tensors = {name: tensors[name] for name in tensors._entries if name != "embeddings.position_ids"}
        self.tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(512)

    def score(self, query: str, text: str) -> float:
        pair = self.tokenizer.encode(query, text)
        t = self.tensors
        hidden = t["embeddings.word_embeddings.weight"][pair.ids] + t["embeddings.token_type_embeddings.weight"][pair.type_ids]
        hidden = self.normed("embeddings.LayerNorm", hidden + t["embeddings.position_embeddings.weight"][: len(pair.ids)])
        for number in range(LAYERS):
            prefix = f"encoder.layer.{number}."
            query_, key, value = (
                self.project(f"{prefix}attention.self.{name}", hidden).reshape(-1, HEADS, WIDTH // HEADS).transpose(1, 0, 2)
                for name in ("query", "key", "value")
            )
            scores = np.exp(query_ @ key.transpose(0, 2, 1) / np.sqrt(WIDTH // HEADS))
            mixed = (scores / scores.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(-1, WIDTH)
            hidden = self.normed(f"{prefix}attention.output.LayerNorm", self.project(f"{prefix}attention.output.dense", mixed) + hidden)
            wide = self.project(f"{prefix}intermediate.dense", hidden)
            # 1 - erf by its series is long; tanh's approximation of GELU differs by less than 1e-3 a layer
            activated = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
            hidden = self.normed(f"{prefix}output.LayerNorm", self.project(f"{prefix}output.dense", activated) + hidden)
        dense, last = head()
        return float(1 / (1 + np.exp(-(np.tanh(hidden[0] @ dense) @ last)[0])))

    def project(self, name: str, hidden: np.ndarray) -> np.ndarray:
        return hidden @ self.tensors[name + ".weight"].T + self.tensors[name + ".bias"]

    def normed(self, name: str, hidden: np.ndarray) -> np.ndarray:
        centred = hidden - hidden.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON) * self.tensors[name + ".weight"]
            + self.tensors[name + ".bias"]
        )


def test_scores_are_those_of_each_pair_alone(reranker: LocalReranker) -> None:
    scores, tokens = reranker.similarity(QUERY, TEXTS)
    reference = Reference()
    assert scores.tolist() == pytest.approx([reference.score(QUERY, text) for text in TEXTS], abs=0.02)
    assert scores.max() - scores.min() > 0.2
    assert tokens == sum(len(reference.tokenizer.encode(QUERY, text).ids) for text in TEXTS)


def test_scores_do_not_depend_on_the_other_texts_or_their_order(reranker: LocalReranker) -> None:
    together, _ = reranker.similarity(QUERY, TEXTS)
    alone = [reranker.similarity(QUERY, [text])[0][0] for text in TEXTS]
    backwards, _ = reranker.similarity(QUERY, TEXTS[::-1])
    assert together.tolist() == pytest.approx(alone, abs=1e-4)
    assert together.tolist() == pytest.approx(backwards[::-1].tolist(), abs=1e-4)


async def test_it_runs_in_the_lane_and_the_loop_goes_on(reranker: LocalReranker, lane: Lane) -> None:
    task = asyncio.create_task(async_rerank_by_model(QUERY, MANY, reranker, lane))
    turns = 0
    while not task.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 20
    assert (await task).shape == (64,)


class Begun:
    """The reranker, which tells when it begins."""

    def __init__(self, reranker: LocalReranker) -> None:
        self._reranker = reranker
        self._loop = asyncio.get_running_loop()
        self.event = asyncio.Event()

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        self._loop.call_soon_threadsafe(self.event.set)
        return self._reranker.similarity(query, texts)


async def test_questions_are_embedded_while_it_reads(
    directory: Path, lane: Lane, transport: Transport, document_lane: Lane, graph_cache: Path
) -> None:
    query_lane = Lane("query", 1, 4)
    spec = ModelSpec("tiny", "Local", "rerank", path=directory)
    models = Registry([spec], {}, transport, query_lane=query_lane, document_lane=document_lane, rerank_lane=lane, cache_dir=graph_cache)
    try:
        await models.warm()
        reranking = [asyncio.create_task(models.reranker("tiny@Local").async_similarity(QUERY, MANY * 10)) for _ in range(3)]
        for number in range(5):
            await models.embedder().embed_query(f"question {number}")
        assert (lane.state.busy, lane.state.queued) == (1, 2)
        assert not reranking[0].done()
        for task in reranking:
            task.cancel()
        await asyncio.gather(*reranking, return_exceptions=True)
    finally:
        query_lane.close()


async def test_its_thread_is_free_soon_after_nobody_waits_any_more(reranker: LocalReranker, lane: Lane) -> None:
    begun = Begun(reranker)
    chain = FailoverReranker({"tiny@Local": begun}, lane, 60.0)
    task = asyncio.create_task(chain.async_similarity(QUERY, MANY * 20))  # a quarter of a minute's reading
    await begun.event.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert lane.state.busy == 1
    started = time.monotonic()
    await lane.run(lambda: None)
    assert time.monotonic() - started < 5.0


async def test_it_keeps_to_its_time(reranker: LocalReranker, lane: Lane) -> None:
    started = time.monotonic()
    with within(0.3), pytest.raises(DeadlineExceeded, match="1280 texts"):
        await lane.run(reranker.similarity, QUERY, MANY * 20)
    with pytest.raises(RerankFailed, match=r"^model tiny@Local did not "):
        await FailoverReranker({"tiny@Local": reranker}, lane, 0.3).async_similarity(QUERY, MANY * 20)
    assert time.monotonic() - started < 10.0


async def test_who_finds_the_queue_full_is_told_at_once(reranker: LocalReranker) -> None:
    lane = Lane("rerank", 1, 1)
    try:
        waiting = [asyncio.create_task(lane.run(reranker.similarity, QUERY, MANY)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="rerank queue is full"):
            await async_rerank_by_model(QUERY, TEXTS, reranker, lane)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        lane.close()
