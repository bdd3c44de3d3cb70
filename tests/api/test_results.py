"""api/results.py: no edit is followed by a result of before it, no tenant gets another one's, nothing degraded is kept."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from api.app import create_app
from api.memory import Memory
from api.results import SETTLED_SECONDS, Results, decode, encode, key_of
from rag.cache.local import LocalCache
from rag.llm.registry import Kind, ModelSpec
from rag.nlp.search import RetrievalRequest
from rag.nlp.tokenize import chunk_terms
from rag.types import Chunk, DocumentCount, RankedChunk, Retrieval
from tests.api.conftest import MODEL, Server, multipart

REQUEST = RetrievalRequest("what boils?", "t" * 32, ("d" * 32,))


def found(text: str = "Water boils.", degraded: tuple[str, ...] = ()) -> Retrieval:
    chunk = Chunk(
        "0" * 16, "d" * 32, "e" * 32, "wäter.txt", text, chunk_terms("water", ("a",), text), version=2, position=3, headings=("a", "b"),
        keywords=("k",), questions=("q?",), tags=("t",), positions=((1, 0, 10, 5, 6),), kind="table", available=True, created_at=1.5,
        extra={"image_id": "x", "tag_feas": {"a": 1}},
    )  # fmt: skip
    ranked = RankedChunk(chunk, 0.7654321, 0.1, 0.9, "<em>Water</em> boils.")
    return Retrieval(17, (ranked, ranked), (DocumentCount("e" * 32, "wäter.txt", 17),), degraded)


class World:
    """Results by a clock of the tests, counted."""

    def __init__(self) -> None:
        self.now = 50.0
        self.asked: list[bool] = []
        self.searches = 0
        self.cache = LocalCache(1 << 20)
        self.results = Results(self.cache, 60, clock=lambda: self.now, on_asked=lambda _, hit: self.asked.append(hit))

    async def ask(self, version: int = 1, answer: Retrieval | None = None, request: RetrievalRequest = REQUEST, **beside: Any) -> Retrieval:
        async def search() -> Retrieval:
            self.searches += 1
            return answer or found()

        return await self.results.remembered(request, (version,), beside, search)


@pytest.fixture
def world() -> World:
    return World()


def test_what_is_kept_comes_back_as_it_was() -> None:
    assert decode(encode(found())) == found()
    assert decode(encode(Retrieval(0, (), ()))) == Retrieval(0, (), ())


@pytest.mark.parametrize("kept", [b"", b"null", b"[]", b"[1, [[1]], []]", b"{", b'[1, [], [["a"]]]', encode(found())[:-1]])
def test_what_is_no_result_is_a_miss(kept: bytes) -> None:
    assert decode(kept) is None


async def test_a_version_must_have_been_seen_for_a_moment_before_its_results_are_kept(world: World) -> None:
    for _ in range(2):
        await world.ask()
    world.now += SETTLED_SECONDS
    await world.ask()
    assert await world.ask() == found()
    assert (world.searches, world.asked) == (3, [False, False, False, True])


async def test_a_new_version_is_searched_anew_and_an_old_one_is_not_mistaken_for_it(world: World) -> None:
    for version in (1, 2):
        await world.ask(version)
    world.now += SETTLED_SECONDS
    await world.ask(1, found("old"))
    assert (await world.ask(2, found("new"))).chunks[0].chunk.content == "new"
    assert (await world.ask(1)).chunks[0].chunk.content == "old"
    assert (await world.ask(2)).chunks[0].chunk.content == "new"


async def test_degraded_and_empty_results_are_not_kept(world: World) -> None:
    await world.ask()
    world.now += SETTLED_SECONDS
    for answer in (found(degraded=("rerank",)), Retrieval(0, (), ())):
        await world.ask(answer=answer)
    assert (await world.ask()) == found()
    assert world.asked == [False] * 4


def test_the_key_changes_with_everything_that_an_answer_depends_on() -> None:
    others = {
        "question": "what melts?", "tenant_id": "u" * 32, "document_ids": ("e" * 32,), "page": 2, "page_size": 5,
        "similarity_threshold": 0.1,
        "vector_similarity_weight": 0.5, "top_k": 7, "highlight": True, "explain": True, "available": None, "keep_vector_only": False,
        "rerank_limit": 9,
    }  # fmt: skip
    ignored = {"dataset_ids", "embed_seconds"}
    assert set(REQUEST.__dataclass_fields__) == others.keys() | ignored, "say whether an answer depends on the new field"
    keys = {key_of(REQUEST, (1,), {}), key_of(REQUEST, (2,), {}), key_of(REQUEST, (1,), {"reranker": "x"})}
    keys |= {key_of(replace(REQUEST, dataset_ids=("e" * 32,)), (1,), {})}
    keys |= {key_of(replace(REQUEST, **{name: value}), (1,), {}) for name, value in others.items()}
    assert len(keys) == 4 + len(others)


# ---------------------------------------------------------------------------------------------------- over HTTP
@pytest.fixture
async def caching(api: Server) -> AsyncIterator[Server]:
    """A server that remembers results from the first time on: the hardest case."""
    cache = LocalCache(1 << 20)
    clock = iter(range(0, 1_000_000_000, 10))
    asked: list[bool] = []
    results = Results(cache, 600, clock=lambda: float(next(clock)), on_asked=lambda _, hit: asked.append(hit))
    results._settled = lambda *_: True  # type: ignore[method-assign]
    api.parts = replace(api.parts, memory=Memory(cache, results))
    api.app = create_app(api.parts)
    api.client = api.app.test_client()
    api.asked = asked  # type: ignore[attr-defined]
    return api


async def search(api: Server, dataset: str, question: str = "water iron", key: str | None = None, **more: Any) -> Any:
    answer = await api.call(
        "POST", "/retrieval", {"dataset_ids": [dataset], "question": question, "similarity_threshold": 0, **more}, key=key
    )  # fmt: skip
    return answer.body


async def test_a_question_asked_again_is_answered_from_memory(caching: Server) -> None:
    dataset = await caching.dataset()
    await caching.parsed(dataset)
    first = await search(caching, dataset)
    assert await search(caching, dataset) == first
    assert caching.asked == [False, True]
    assert len(first["data"]["chunks"]) == 2


async def test_another_tenant_never_gets_what_was_remembered(caching: Server) -> None:
    dataset = await caching.dataset()
    await caching.parsed(dataset)
    await search(caching, dataset)
    answer = await search(caching, dataset, key=caching.other_key)
    assert answer["code"] == 102
    assert caching.asked == [False]


@pytest.mark.parametrize(
    ("model", "change"),
    [(MODEL, {"languages": ("en", "de")}), (MODEL, {"query_prompt": "query: "}), ("reader@Sim", {"base_url": "http://localhost:8/v1"})],
)
async def test_a_model_configured_otherwise_gets_none_of_what_was_remembered(
    caching: Server, monkeypatch: pytest.MonkeyPatch, model: str, change: dict[str, Any]
) -> None:
    class Reader:
        excuse = ""

        async def async_similarity(self, query: str, texts: Sequence[str]) -> tuple[list[float], None]:
            return [0.5] * len(texts), None

    dataset = await caching.dataset()
    await caching.parsed(dataset)
    models = caching.parts.models
    resolve = models.resolve
    monkeypatch.setattr(models, "reranker", lambda name: Reader())
    more = {"rerank_id": model} if model == "reader@Sim" else {}
    for _ in range(2):
        await search(caching, dataset, **more)

    def otherwise(name: str, kind: Kind) -> ModelSpec:
        spec = resolve(name, kind)
        return replace(spec, **change) if spec.identifier == model else spec

    monkeypatch.setattr(models, "resolve", otherwise)
    await search(caching, dataset, **more)
    assert caching.asked == [False, True, False]


async def test_a_number_of_any_size_is_remembered_by(caching: Server) -> None:
    dataset = await caching.dataset()
    await caching.parsed(dataset)
    for _ in range(2):
        assert len((await search(caching, dataset, top_k=1e30))["data"]["chunks"]) == 2
    config = {"kb_ids": [dataset], "top_k": 1e30}
    saved = (await caching.call("POST", "/searches", {"name": "s", "search_config": config})).data["search_id"]
    for _ in range(2):
        answer = await caching.call("POST", "/chat/mindmap", {"question": "water iron", "kb_ids": [dataset], "search_id": saved})
        assert answer.status == 200, answer.body
    assert caching.asked == [False, True, False, True]


async def test_an_explanation_is_of_this_search(caching: Server) -> None:
    dataset = await caching.dataset()
    await caching.parsed(dataset)
    for _ in range(2):
        assert "timings" in (await search(caching, dataset, explain=True))["data"]
    assert caching.asked == []


class Editor:
    """Edits a dataset in every way there is, at random."""

    def __init__(self, api: Server, dataset: str, dice: random.Random) -> None:
        self.api, self.dataset, self.dice = api, dataset, dice
        self.path = f"/datasets/{dataset}"
        self.documents: list[str] = []
        self.number = 0

    async def edit(self) -> str:
        ways: list[Callable[[], Any]] = [self.add_document]
        if self.documents:
            ways += [
                self.delete_document, self.rename, self.switch, self.metadata, self.add_chunk, self.edit_chunk, self.delete_chunk,
                self.switch_chunk, self.parse_again, self.stop,
            ]  # fmt: skip
        way = self.dice.choice(ways)
        answer = await way()
        assert answer is None or answer.status in (200, 404, 409), (way.__name__, answer.body)
        return way.__name__

    def document(self) -> str:
        return f"{self.path}/documents/{self.dice.choice(self.documents)}"

    def text(self) -> str:
        self.number += 1
        return f"water number {self.number} and iron"

    async def add_document(self) -> None:
        self.documents.append(await self.api.document(self.dataset, f"{self.number}.txt", f"{self.text()}\n{self.text()}".encode()))
        await self.parse(self.documents[-1])

    async def delete_document(self) -> Any:
        gone = self.documents.pop(self.dice.randrange(len(self.documents)))
        return await self.api.call("DELETE", f"{self.path}/documents", {"ids": [gone]})

    async def rename(self) -> Any:
        self.number += 1
        return await self.api.call("PUT", self.document(), {"name": f"renamed {self.number}.txt"})

    async def switch(self) -> Any:
        return await self.api.call("PUT", self.document(), {"enabled": self.dice.choice([0, 1])})

    async def metadata(self) -> Any:
        return await self.api.call("PUT", self.document(), {"meta_fields": {"year": self.dice.choice(["1", "2"])}})

    async def chunks(self) -> tuple[str, list[str]]:
        path = f"{self.document()}/chunks"
        listed = await self.api.call("GET", path)
        return path, [chunk["id"] for chunk in listed.body.get("data", {}).get("chunks", [])]

    async def add_chunk(self) -> Any:
        return await self.api.call("POST", f"{self.document()}/chunks", {"content": self.text()})

    async def edit_chunk(self) -> Any:
        path, ids = await self.chunks()
        return await self.api.call("PUT", f"{path}/{self.dice.choice(ids)}", {"content": self.text()}) if ids else None

    async def switch_chunk(self) -> Any:
        path, ids = await self.chunks()
        wanted = {"chunk_ids": ids[:1], "available": self.dice.choice([True, False])}
        return await self.api.call("PATCH", path, wanted) if ids else None

    async def delete_chunk(self) -> Any:
        path, ids = await self.chunks()
        return await self.api.call("DELETE", path, {"chunk_ids": ids[:1]}) if ids else None

    async def parse_again(self) -> Any:
        return await self.parse(self.dice.choice(self.documents))

    async def parse(self, document: str) -> Any:
        answer = await self.api.call("POST", f"{self.path}/chunks", {"document_ids": [document]})
        await search(self.api, self.dataset)  # remembered, and of no use as soon as the worker is done
        await self.api.work()
        return answer

    async def stop(self) -> Any:
        chosen = self.dice.choice(self.documents)
        await self.api.call("POST", f"{self.path}/chunks", {"document_ids": [chosen]})
        return await self.api.call("DELETE", f"{self.path}/chunks", {"document_ids": [chosen]})


@pytest.mark.parametrize("seed", range(3))
async def test_after_every_edit_a_search_finds_what_a_server_without_memory_finds(caching: Server, seed: int) -> None:
    dice = random.Random(seed)
    dataset = await caching.dataset()
    editor = Editor(caching, dataset, dice)
    bare = create_app(replace(caching.parts, memory=None)).test_client()
    ways = set()
    conditions = [{}, {"metadata_condition": {"conditions": [{"name": "year", "comparison_operator": "is", "value": "1"}]}}]
    for _ in range(60):
        way = await editor.edit()
        ways.add(way)
        for more in conditions:
            answers = [await search(caching, dataset, **more) for _ in range(2)]
            fresh = await bare.post(
                "/api/v1/retrieval",
                json={"dataset_ids": [dataset], "question": "water iron", "similarity_threshold": 0, **more},
                headers={"Authorization": f"Bearer {caching.key}"},
            )
            assert answers == [await fresh.get_json()] * 2, way
    assert len(ways) > 8
    assert True in caching.asked


async def test_under_concurrent_edits_no_search_finds_what_was_gone_before_it_began(caching: Server) -> None:
    dataset = await caching.dataset()
    document = await caching.parsed(dataset, content=b"water iron")
    path = f"/datasets/{dataset}/documents/{document}/chunks"
    chunk = (await caching.call("GET", path)).data["chunks"][0]["id"]
    acknowledged = 0

    async def edit() -> None:
        nonlocal acknowledged
        for number in range(1, 40):
            answer = await caching.call("PUT", f"{path}/{chunk}", {"content": f"water iron {number}"})
            assert answer.status == 200, answer.body
            acknowledged = number

    async def read(stop: asyncio.Task[None]) -> int:
        searches = 0
        while not stop.done():
            least = acknowledged
            body = await search(caching, dataset)
            seen = body["data"]["chunks"][0]["content"].split()[2:]
            assert int(seen[0] if seen else 0) >= least
            searches += 1
        return searches

    editing = asyncio.create_task(edit())
    counts = await asyncio.gather(*(read(editing) for _ in range(4)))
    await editing
    assert sum(counts) > 40


async def test_an_upload_through_a_broken_form_leaves_results_right(caching: Server) -> None:
    dataset = await caching.dataset()
    await caching.parsed(dataset)
    before = await search(caching, dataset)
    body, content_type = multipart(("nothing", None, b"x"))
    refused = await caching.call("POST", f"/datasets/{dataset}/documents", data=body, headers={"Content-Type": content_type})
    assert refused.status >= 400
    assert (await search(caching, dataset))["data"] == before["data"]
