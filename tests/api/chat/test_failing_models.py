"""What callers see when a model fails or a stage hangs: an answer in time, which says what it had to do without and why."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest

from api.app import create_app
from load.rerank_simulator import WIRES, RerankVendors
from load.vendor_simulator import Behaviour, Request
from rag.ports import ChunkStore
from rag.types import Candidates, SearchRequest
from tests.api.chat.conftest import IRON, WATER, Server

QUESTION = {"question": "When does water boil at sea level?"}
MESSAGES = [{"role": "user", "content": QUESTION["question"]}]
ANSWER = Behaviour(words=("It boils.",))
BASES = tuple(wire.base + "/" for wire in WIRES.values())


@pytest.fixture
def rerankers() -> tuple[str, ...]:
    return ("Jina", "LocalAI")


@pytest.fixture
def settings(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"rerank_timeout_seconds": 1.0}


def fail(server: Server, *behaviours: Behaviour, others: Behaviour = ANSWER) -> None:
    """The rerank vendors fail like this, the first as the first behaviour says; every other model answers."""
    answer = RerankVendors()

    def choose(request: Request) -> Behaviour:
        if not request.path.startswith(BASES):
            return others
        if request.path.startswith("/jina/") and behaviours:
            return behaviours[0]
        return behaviours[1] if len(behaviours) > 1 else answer(request)

    server.vendor.choose = choose


async def retrieved(server: Server, dataset: str, **more: Any) -> dict[str, Any]:
    body = QUESTION | {"dataset_ids": [dataset], "similarity_threshold": 0.0, "rerank_id": "m@Jina"} | more
    status, answer = await server.call("POST", "/retrieval", body)
    assert (status, answer["code"]) == (200, 0), answer
    return answer["data"]


REFUSED = Behaviour(status=401)
REASONS = {
    "rerank": "the endpoint of model m@Jina refused the key that is configured for it; "
    "the endpoint of model m@LocalAI refused the key that is configured for it"
}


async def test_every_route_says_that_reranking_failed_whose_and_why(server: Server) -> None:
    fail(server, REFUSED, REFUSED)
    dataset = await server.dataset("facts", WATER, IRON)
    chat = await server.chat(dataset_ids=[dataset], rerank_id="m@Jina")
    config = {"kb_ids": [dataset], "rerank_id": "m@Jina", "similarity_threshold": 0.0}
    search = (await server.data("POST", "/searches", {"name": "finder", "search_config": config}))["search_id"]
    as_openai = {"model": "model", "messages": MESSAGES}
    root = {"model": "assistant", "messages": MESSAGES}
    told = {
        "retrieval": await retrieved(server, dataset),
        "chat": await server.data("POST", f"/chats/{chat}/completions", QUESTION | {"stream": False}),
        "chat streamed": (await server.stream(f"/chats/{chat}/completions", QUESTION))[-2]["data"],
        "chat by messages": (await server.stream("/chat/completions", {"messages": MESSAGES, "chat_id": chat}))[-2]["data"],
        "search": (await server.stream(f"/searches/{search}/completions", QUESTION))[-2]["data"],
        "openai": (await server.call("POST", f"/openai/{chat}/chat/completions", as_openai))[1],
        "openai streamed": (await server.stream(f"/openai/{chat}/chat/completions", as_openai | {"stream": True}))[-2],
        "/v1": (await server.call("POST", "/v1/chat/completions", root))[1],
        "/v1 streamed": (await server.stream("/v1/chat/completions", root | {"stream": True}))[-2],
    }
    for route, body in told.items():
        assert (body["degraded"], body["reasons"]) == (["rerank"], REASONS), route


async def test_one_that_stands_in_is_told_too(server: Server) -> None:
    dataset = await server.dataset("facts", WATER, IRON)
    fail(server)
    wanted = await retrieved(server, dataset)
    fail(server, REFUSED)
    found = await retrieved(server, dataset)
    assert "degraded" not in wanted
    assert [chunk["similarity"] for chunk in found["chunks"]] == pytest.approx([chunk["similarity"] for chunk in wanted["chunks"]])
    assert found["degraded"] == ["rerank"]
    assert found["reasons"]["rerank"] == (
        "the endpoint of model m@Jina refused the key that is configured for it; model m@LocalAI answered instead"
    )


FAILURES = {
    "hangs": Behaviour("hang"),
    "trickles": Behaviour("trickle_body"),
    "resets": Behaviour("reset"),
    "breaks off": Behaviour("short_body"),
    "html": Behaviour("html"),
    "no http": Behaviour("garbage"),
    "no json": Behaviour("truncated"),
    "100 MB": Behaviour("huge"),
    "packed 100 MB": Behaviour("gzip_bomb"),
    "an error under 200": Behaviour("error_body"),
    "nan": Behaviour(reply=lambda body: {"results": [{"index": i, "relevance_score": float("nan")} for i in range(2)]}),
    "a missing index": Behaviour(reply=lambda body: {"results": [{"index": 0, "relevance_score": 0.5}]}),
    "a doubled index": Behaviour(reply=lambda body: {"results": [{"index": 0, "relevance_score": 0.5}] * 2}),
    "a foreign index": Behaviour(reply=lambda body: {"results": [{"index": i + 1, "relevance_score": 0.5} for i in range(2)]}),
    "400": Behaviour(status=400),
    "401": Behaviour(status=401),
    "404": Behaviour(status=404),
    "429": Behaviour(status=429, headers=(("retry-after", "30"),)),
    "500": Behaviour(status=500),
    "503": Behaviour(status=503),
    "redirects": Behaviour(status=302, headers=(("location", "http://127.0.0.1:1/"),)),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_any_failure_leaves_the_fused_order_in_time_and_is_told_in_our_own_words(server: Server, failure: str) -> None:
    dataset = await server.dataset("facts", WATER, IRON)
    fused = await retrieved(server, dataset, rerank_id="")
    fail(server, FAILURES[failure], FAILURES[failure])
    started = time.monotonic()
    found = await retrieved(server, dataset)
    assert time.monotonic() - started < 2.0
    assert [chunk["id"] for chunk in found["chunks"]] == [chunk["id"] for chunk in fused["chunks"]]
    assert found["degraded"] == ["rerank"]
    reason = found["reasons"]["rerank"]
    assert "m@Jina" in reason
    assert "m@LocalAI" in reason
    assert "vendor says" not in reason
    assert "sk-secret" not in reason
    assert "127.0.0.1" not in reason


async def test_a_caller_who_leaves_in_mid_rerank_frees_the_turn_at_once(server: Server) -> None:
    dataset = await server.dataset("facts", WATER, IRON)
    fail(server, Behaviour("hang"), Behaviour("hang"))
    server.vendor.arrived.clear()
    task = asyncio.create_task(retrieved(server, dataset, rerank_id="m@LocalAI"))
    while not any(request.path.startswith(BASES) for request in server.vendor.requests):
        await server.vendor.arrived.wait()
        server.vendor.arrived.clear()
    task.cancel()
    await asyncio.wait_for(server.vendor.hung_up.wait(), 1.0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.vendor.open_requests == 0


# ---------------------------------------------------------------------------------------------------- one deadline
class Hangs:
    """A chunk store whose searches wait until they are released."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self.released = threading.Event()

    def search(self, request: SearchRequest) -> Candidates:
        self.released.wait(20)
        return self._store.search(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


SECONDS = 2.0
LATE = 0.4  # what a busy machine may take on top


@pytest.fixture
def impatient(settings: dict[str, Any]) -> None:
    settings |= {"request_timeout_seconds": SECONDS, "chat_timeout_seconds": SECONDS, "rerank_timeout_seconds": 60.0}
    settings |= {"embed_timeout_seconds": 60.0}


Ask = Callable[[], Awaitable[Mapping[str, Any]]]


@dataclasses.dataclass
class Asker:
    """Asks /retrieval or a chat, with everything a question can have: help of the chat model, both arms, a reranker."""

    server: Server
    dataset: str
    chat: str

    async def retrieval(self) -> tuple[int, Mapping[str, Any]]:
        body = QUESTION | {"dataset_ids": [self.dataset], "similarity_threshold": 0.0, "rerank_id": "m@Jina", "keyword": True}
        status, answer = await self.server.call("POST", "/retrieval", body)
        return status, answer.get("data") or {}

    async def completion(self) -> tuple[int, Mapping[str, Any]]:
        status, answer = await self.server.call("POST", f"/chats/{self.chat}/completions", QUESTION | {"stream": False})
        return status, answer.get("data") or {}


@pytest.fixture
async def asker(impatient: None, server: Server) -> Asker:
    server.vendor.choose = None
    dataset = await server.dataset("facts", WATER, IRON)
    chat = await server.chat(dataset_ids=[dataset], rerank_id="m@Jina")
    return Asker(server, dataset, chat)


def only(hanging: str) -> Callable[[Request], Behaviour]:
    """The models of that path hang."""
    rerank = RerankVendors()

    def choose(request: Request) -> Behaviour:
        if hanging in request.path:
            return Behaviour("hang")
        return rerank(request) if request.path.startswith(BASES) else ANSWER

    return choose


@pytest.mark.parametrize(
    ("hanging", "missing"), [("embeddings", ["embed"]), ("rerank", ["rerank"]), ("chat/completions", ["keyword"]), ("", None)]
)
async def test_a_search_whose_models_hang_is_answered_within_its_deadline(asker: Asker, hanging: str, missing: list[str] | None) -> None:
    asker.server.vendor.choose = only(hanging)
    started = time.monotonic()
    status, found = await asker.retrieval()
    assert time.monotonic() - started < SECONDS + LATE
    assert status == 200
    assert len(found["chunks"]) == 2
    assert sorted(found["degraded"]) == (missing or ["embed", "keyword", "rerank"])
    assert found["reasons"].keys() == set(found["degraded"])


@pytest.mark.parametrize(("hanging", "missing"), [("embeddings", ["embed"]), ("rerank", ["rerank"])])
async def test_a_chat_whose_search_models_hang_is_answered_within_its_deadline(asker: Asker, hanging: str, missing: list[str]) -> None:
    asker.server.vendor.choose = only(hanging)
    started = time.monotonic()
    status, found = await asker.completion()
    assert time.monotonic() - started < SECONDS + LATE
    assert (status, found["answer"], found["degraded"]) == (200, "It boils.", missing)


async def test_a_chat_model_that_hangs_over_the_question_leaves_time_for_the_answer(asker: Asker) -> None:
    models = only("nothing")
    asker.server.vendor.choose = lambda request: (
        Behaviour("hang") if "messages" in request.body and not request.body.get("stream") else models(request)
    )
    chat = await asker.server.chat("keen", dataset_ids=[asker.dataset], prompt_config={"keyword": True})
    started = time.monotonic()
    status, found = await dataclasses.replace(asker, chat=chat).completion()
    assert time.monotonic() - started < SECONDS + LATE
    assert (status, found["answer"], found["degraded"]) == (200, "It boils.", ["keywords"])


async def test_a_chat_model_that_hangs_ends_the_answer_at_its_deadline(asker: Asker) -> None:
    asker.server.vendor.choose = only("chat/completions")
    started = time.monotonic()
    status, _ = await asker.completion()
    assert time.monotonic() - started < SECONDS + LATE
    assert status in (502, 503, 504)


@pytest.fixture
def held_up(server: Server) -> Iterator[threading.Event]:
    released = threading.Event()
    yield released
    released.set()


async def test_a_database_that_hangs_ends_the_request_at_its_deadline(asker: Asker, held_up: threading.Event) -> None:
    lane = asker.server.parts.lanes.db
    for _ in range(lane.state.threads):
        lane.submit(held_up.wait, 20)
    for ask, known in ((asker.retrieval, True), (asker.completion, True), (asker.completion, False)):
        if not known:
            asker.server.app.keys.forget(asker.server.key)
        started = time.monotonic()
        status, _ = await ask()
        assert time.monotonic() - started < SECONDS + LATE
        assert status in (503, 504)


async def test_a_store_that_hangs_ends_the_request_at_its_deadline(asker: Asker) -> None:
    store = Hangs(asker.server.parts.store)
    server = dataclasses.replace(asker.server, app=create_app(dataclasses.replace(asker.server.parts, store=store)))
    try:
        for ask in (dataclasses.replace(asker, server=server).retrieval, dataclasses.replace(asker, server=server).completion):
            started = time.monotonic()
            status, _ = await ask()
            assert time.monotonic() - started < SECONDS + LATE
            assert status in (503, 504)
    finally:
        store.released.set()
