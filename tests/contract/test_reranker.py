"""What every reranker does: the ten vendors and the servers that share a class with one, an eleventh, and those over them.

Vendors are simulated over HTTP (`load.rerank_simulator`); each refuses what is not its own wire format.
"""

import asyncio
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import pytest

from load.rerank_simulator import MODELS, NIM, TEI, WIRES, Entries, RerankVendors, Wire, relevance
from load.vendor_simulator import Behaviour, Request, VendorSimulator
from rag.deadline import seconds_left, within
from rag.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ProviderBadReply,
    ProviderBusy,
    ProviderError,
    ProviderRefused,
    ProviderUnreachable,
)
from rag.llm.breaker import CircuitOpen, VendorBreaker
from rag.llm.endpoint import Endpoint, authorization
from rag.llm.rerank_chain import FailoverReranker
from rag.llm.rerank_model import VENDORS, VendorReranker, vendor_class
from rag.llm.resilience import Guard
from rag.llm.transport import Transport, open_client
from rag.nlp.search import async_rerank_by_model
from rag.ports import Reranker
from rag.threads import Lane

KEY = "sk-secret"
QUERY = "how warm is the sea"
TEXTS = ["nothing of that", "the sea is warm", "the mountain is high", "how warm is the sea in june", "warm soup"]


@dataclass(frozen=True, slots=True)
class Server:
    """A vendor's server: which provider name stands for it, and the simulated wire."""

    name: str
    provider: str
    wire: Wire


SERVERS = [
    *(Server(provider, provider, wire) for provider, wire in WIRES.items()),
    Server("TEI", "OpenAI-API-Compatible", TEI),
    Server("NIM", "NVIDIA", NIM),
]


class OnlySimilarity:
    """The eleventh: a class of somebody else's that knows nothing but `similarity`."""

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        return np.array([relevance(query, text) for text in texts], dtype=np.float32), None


@pytest.fixture
def vendors() -> RerankVendors:
    return RerankVendors()


@pytest.fixture
async def simulator(vendors: RerankVendors) -> AsyncIterator[VendorSimulator]:
    async with VendorSimulator(choose=vendors).listen() as simulator:
        yield simulator


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with open_client() as client:
        yield Transport(client)


@pytest.fixture
def lane() -> Iterator[Lane]:
    lane = Lane("model", 2, 64)
    yield lane
    lane.close()


Opener = Callable[..., VendorReranker]


@pytest.fixture
def reranker_at(simulator: VendorSimulator, transport: Transport) -> Opener:
    def opened(server: Server, *, seconds: float = 5.0, concurrency: int = 8, breaker: VendorBreaker | None = None) -> VendorReranker:
        vendor, base_url = vendor_class(server.provider), simulator.base_url + server.wire.base
        model = MODELS.get(server.provider, "some/model")
        name = f"{model}@{server.provider}"
        endpoint = Endpoint(name, vendor.url(base_url, model), authorization(base_url, KEY), timeout_seconds=seconds)
        return vendor(model, endpoint, transport, Guard(name, concurrency, seconds, breaker=breaker, repeats_failures=True))

    return opened


@pytest.fixture(params=[*SERVERS, "eleventh", "chain"], ids=lambda param: getattr(param, "name", param))
def reranker(request: pytest.FixtureRequest, reranker_at: Opener, lane: Lane) -> Reranker:
    match request.param:
        case Server() as server:
            return reranker_at(server)
        case "chain":
            return FailoverReranker({"eleventh": OnlySimilarity(), "jina": reranker_at(SERVERS[1])}, lane, 5.0)
    return OnlySimilarity()


@pytest.fixture(params=SERVERS, ids=lambda server: server.name)
def server(request: pytest.FixtureRequest) -> Server:
    return request.param


async def at_every_server(check: Callable[[Server], Awaitable[None]]) -> None:
    """The check at all servers at once, which takes as long as at one."""
    async with asyncio.TaskGroup() as group:
        for server in SERVERS:
            group.create_task(check(server), name=server.name)


def failures_first(vendors: RerankVendors, failure: Behaviour, times: int) -> Callable[[Request], Behaviour]:
    """Every server fails this often, then answers."""
    asked: Counter[str] = Counter()

    def choose(request: Request) -> Behaviour:
        asked[request.path] += 1
        return failure if asked[request.path] <= times else vendors(request)

    return choose


def best_first(scores: np.ndarray) -> list[int]:
    return np.argsort(-scores, kind="stable").tolist()


EXPECTED = best_first(np.array([relevance(QUERY, text) for text in TEXTS]))


def test_the_ten_classes_are_there_under_their_names() -> None:
    assert [vendor.__name__ for vendor in VENDORS] == [
        "OpenAI_APIRerank", "JinaRerank", "XInferenceRerank", "LocalAIRerank", "NvidiaRerank", "SILICONFLOWRerank", "GPUStackRerank",
        "NovitaRerank", "GiteeRerank", "JiekouAIRerank",
    ]  # fmt: skip
    assert {vendor.provider for vendor in VENDORS} == set(WIRES)


async def test_any_reranker_scores_the_texts_in_the_order_given(reranker: Reranker, lane: Lane) -> None:
    scores = await async_rerank_by_model(QUERY, TEXTS, reranker, lane)
    assert scores.shape == (len(TEXTS),)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    assert best_first(scores) == EXPECTED


async def test_any_reranker_works_on_a_thread(reranker: Reranker) -> None:
    scores, _ = await asyncio.to_thread(reranker.similarity, QUERY, TEXTS)
    assert (scores.dtype, scores.shape) == (np.float32, (len(TEXTS),))
    assert best_first(scores) == EXPECTED


async def test_both_ways_send_the_same_bytes_and_read_the_same_scores(
    server: Server, reranker_at: Opener, simulator: VendorSimulator
) -> None:
    reranker = reranker_at(server)
    await reranker.async_similarity(QUERY, TEXTS)  # an OpenAI-compatible endpoint is asked once which form it takes
    simulator.requests.clear()
    awaited, tokens = await reranker.async_similarity(QUERY, TEXTS)
    waited, tokens_on_thread = await asyncio.to_thread(reranker.similarity, QUERY, TEXTS)
    first, second = simulator.requests
    assert (first.path, first.headers, first.raw) == (second.path, second.headers, second.raw)
    assert np.array_equal(awaited, waited)
    assert tokens == tokens_on_thread == (None if server.name in ("NVIDIA", "NIM", "TEI") else 10 * len(TEXTS))


async def test_a_request_carries_the_key_and_the_chunks_own_texts(server: Server, reranker_at: Opener, simulator: VendorSimulator) -> None:
    await reranker_at(server).async_similarity(QUERY, TEXTS)
    request = simulator.requests[-1]
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert server.wire.texts(request.body) == TEXTS
    assert server.wire.query(request.body) == QUERY


async def test_no_texts_make_no_call(server: Server, reranker_at: Opener, simulator: VendorSimulator) -> None:
    scores, tokens = await reranker_at(server).async_similarity(QUERY, [])
    assert (scores.shape, scores.dtype, tokens) == ((0,), np.float32, 0)
    assert simulator.requests == []


async def test_a_blank_text_is_not_sent_and_scores_nothing(server: Server, reranker_at: Opener, simulator: VendorSimulator) -> None:
    scores, _ = await reranker_at(server).async_similarity(QUERY, ["", TEXTS[1], " \n\t"])
    assert scores[[0, 2]].tolist() == [0.0, 0.0]
    assert scores[1] > 0
    assert server.wire.texts(simulator.requests[-1].body) == [TEXTS[1]]


@pytest.mark.parametrize(
    ("query", "texts"), [("", ["a"]), (" \n", ["a"]), (QUERY, "a text, not texts"), (QUERY, ["a", None]), (None, ["a"])]
)
async def test_arguments_of_the_wrong_kind_are_refused_before_a_call(
    reranker_at: Opener, simulator: VendorSimulator, query: str, texts: Sequence[str]
) -> None:
    with pytest.raises(InvalidArgument):
        await reranker_at(SERVERS[1]).async_similarity(query, texts)
    assert simulator.requests == []


async def test_any_characters_reach_the_vendor(server: Server, reranker_at: Opener, simulator: VendorSimulator) -> None:
    texts = ["日本語の海", "emoji 🌊", 'quote " and \\ and \x00', "half \ud83c a pair"]
    scores, _ = await reranker_at(server).async_similarity("海 🌊", texts)
    assert np.isfinite(scores).all()
    assert server.wire.texts(simulator.requests[-1].body) == [*texts[:3], "half ? a pair"]


async def test_many_texts_go_in_batches_the_vendor_takes(server: Server, reranker_at: Opener, simulator: VendorSimulator) -> None:
    texts = [f"text {number} {'sea' if number % 3 else 'warm sea'}" for number in range(600)]
    reranker = reranker_at(server)
    await reranker.async_similarity(QUERY, TEXTS)
    simulator.requests.clear()
    scores, _ = await reranker.async_similarity(QUERY, texts)
    assert best_first(scores) == best_first(np.array([relevance(QUERY, text) for text in texts]))
    sizes = [len(server.wire.texts(request.body)) for request in simulator.requests]
    assert sum(sizes) == len(texts)
    assert max(sizes) <= server.wire.most_texts


FAILURES = [
    (Behaviour("hang"), ProviderUnreachable),
    (Behaviour("trickle_body"), ProviderUnreachable),
    (Behaviour("reset"), ProviderUnreachable),
    (Behaviour("short_body"), ProviderUnreachable),
    (Behaviour("html"), ProviderBadReply),
    (Behaviour("garbage"), ProviderBadReply),
    (Behaviour("truncated"), ProviderBadReply),
    (Behaviour("huge"), ProviderBadReply),
    (Behaviour("gzip_bomb"), ProviderBadReply),
    (Behaviour("bad_gzip"), ProviderBadReply),
    (Behaviour("error_body"), ProviderBadReply),
    (Behaviour(reply=lambda body: {"code": 20012, "message": "vendor says: no", "data": None}), ProviderBadReply),
    (Behaviour(reply=lambda body: {"detail": "vendor says: no"}), ProviderBadReply),
    (Behaviour(reply=lambda body: [1, 2, 3, 4, 5]), ProviderBadReply),
    (Behaviour(reply=lambda body: "vendor says: no"), ProviderBadReply),
    (Behaviour(reply=lambda body: None), ProviderBadReply),
    (Behaviour(status=400), ProviderRefused),
    (Behaviour(status=401), ProviderRefused),
    (Behaviour(status=403), ProviderRefused),
    (Behaviour(status=404), ProviderRefused),
    (Behaviour(status=422), ProviderRefused),
    (Behaviour(status=302, headers=(("location", "http://127.0.0.1:1/"),)), ProviderRefused),
    (Behaviour(status=429), ProviderBusy),
    (Behaviour(status=429, headers=(("retry-after", "3600"),)), ProviderBusy),
    (Behaviour(status=429, headers=(("retry-after", "Fri, 31 Dec 2100 23:59:59 GMT"),)), ProviderBusy),
    (Behaviour(status=429, headers=(("retry-after-ms", "3600000"),)), ProviderBusy),
    (Behaviour(status=429, headers=(("retry-after", "soon"),)), ProviderBusy),
    (Behaviour(status=413), ProviderRefused),
    (Behaviour(status=503), ProviderBusy),
    (Behaviour(status=500), ProviderError),
    (Behaviour(status=502), ProviderUnreachable),
]


@pytest.mark.parametrize(("behaviour", "error"), FAILURES)
async def test_a_failing_vendor_becomes_an_error_of_ours_in_time(
    reranker_at: Opener, simulator: VendorSimulator, behaviour: Behaviour, error: type[ProviderError]
) -> None:
    simulator.choose = lambda request: behaviour
    hangs = behaviour.failure in ("hang", "trickle_body")

    async def check(server: Server) -> None:
        started = time.monotonic()
        with pytest.raises(error) as caught:
            await reranker_at(server, seconds=0.5 if hangs else 20.0).async_similarity(QUERY, TEXTS)
        assert time.monotonic() - started < (5.0 if hangs else 20.0)
        assert f"@{server.provider}" in str(caught.value)
        shown = "".join(traceback.format_exception(caught.value))
        assert KEY not in shown
        assert "vendor says" not in shown
        assert "127.0.0.1" not in str(caught.value)

    await at_every_server(check)


SPOILERS: dict[str, Callable[[Entries], Entries]] = {
    "missing": lambda entries: entries[:-1],
    "none": lambda entries: [],
    "one_more": lambda entries: [*entries, entries[0]],
    "doubled": lambda entries: [entries[0], *entries[:-1]],
    "out_of_range": lambda entries: [{**entries[0], "index": len(entries)}, *entries[1:]],
    "negative_index": lambda entries: [{**entries[0], "index": -1}, *entries[1:]],
    "index_as_text": lambda entries: [{**entries[0], "index": "0"}, *entries[1:]],
    "index_true": lambda entries: [{**entry, "index": bool(entry["index"])} if entry["index"] < 2 else entry for entry in entries],
    "without_index": lambda entries: [{key: value for key, value in entry.items() if key != "index"} for entry in entries],
    "nan": lambda entries: [changed(entries[0], float("nan")), *entries[1:]],
    "infinite": lambda entries: [changed(entries[0], float("inf")), *entries[1:]],
    "null_score": lambda entries: [changed(entries[0], None), *entries[1:]],
    "score_as_text": lambda entries: [changed(entries[0], "0.5"), *entries[1:]],
    "score_true": lambda entries: [changed(entries[0], True), *entries[1:]],
    "without_scores": lambda entries: [{"index": entry["index"]} for entry in entries],
    "not_objects": lambda entries: [[entry["index"], 0.5] for entry in entries],
}


def changed(entry: dict, score: object) -> dict:
    return {key: score if key in ("relevance_score", "score", "logit") else value for key, value in entry.items()}


@pytest.mark.parametrize("spoiler", SPOILERS)
async def test_a_score_that_is_not_there_is_an_error_not_a_zero(reranker_at: Opener, vendors: RerankVendors, spoiler: str) -> None:
    vendors.spoil = SPOILERS[spoiler]

    async def check(server: Server) -> None:
        with pytest.raises(ProviderBadReply):
            await reranker_at(server).async_similarity(QUERY, TEXTS)

    await at_every_server(check)


async def test_a_refused_connection_is_an_error_of_ours(server: Server, reranker_at: Opener, simulator: VendorSimulator) -> None:
    async with VendorSimulator().listen() as gone:
        pass
    simulator.base_url = gone.base_url
    with pytest.raises(ProviderUnreachable):
        await reranker_at(server).async_similarity(QUERY, TEXTS)


@pytest.mark.parametrize(
    "failure",
    [
        Behaviour(status=500),
        Behaviour(status=502),
        Behaviour(status=503),
        Behaviour(status=503, headers=(("retry-after", "0"),)),
        Behaviour(status=429, headers=(("retry-after", "0"),)),
        Behaviour(status=429, headers=(("retry-after", "0.05"),)),
        Behaviour(status=429, headers=(("retry-after", "60"), ("retry-after-ms", "50"))),
        Behaviour(status=429, headers=(("retry-after", "Thu, 01 Jan 2015 00:00:00 GMT"),)),
        Behaviour("trickle_body"),
        Behaviour("short_body"),
        Behaviour("reset"),
        Behaviour("hang"),
    ],
)
async def test_a_failure_that_may_pass_is_tried_once_more(
    reranker_at: Opener, simulator: VendorSimulator, vendors: RerankVendors, failure: Behaviour
) -> None:
    simulator.choose = failures_first(vendors, failure, 1)

    async def check(server: Server) -> None:
        scores, _ = await reranker_at(server, seconds=2.0).async_similarity(QUERY, TEXTS)
        assert best_first(scores) == EXPECTED

    await at_every_server(check)


@pytest.mark.parametrize("odd", ["gzip", "mislabelled"])
async def test_an_answer_in_odd_wrapping_is_an_answer(
    reranker_at: Opener, simulator: VendorSimulator, vendors: RerankVendors, odd: str
) -> None:
    simulator.choose = lambda request: replace(vendors(request), failure=odd if vendors(request).status == 200 else "")

    async def check(server: Server) -> None:
        scores, _ = await reranker_at(server).async_similarity(QUERY, TEXTS)
        assert best_first(scores) == EXPECTED

    await at_every_server(check)


@pytest.mark.parametrize("failure", ["huge", "gzip_bomb"])
async def test_a_huge_reply_is_never_held_in_memory(reranker_at: Opener, simulator: VendorSimulator, failure: str) -> None:
    simulator.choose = lambda request: Behaviour(failure)
    with suppress(ProviderBadReply):  # what is made once is not counted
        await reranker_at(SERVERS[0]).async_similarity(QUERY, TEXTS)
    tracemalloc.start()
    try:
        for server in SERVERS:
            with pytest.raises(ProviderBadReply, match=r"more than \d+ bytes"):
                await reranker_at(server).async_similarity(QUERY, TEXTS)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 << 20


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_a_refusal_is_not_tried_again(reranker_at: Opener, simulator: VendorSimulator, vendors: RerankVendors, status: int) -> None:
    async def check(server: Server) -> None:
        reranker = reranker_at(server)
        await reranker.async_similarity(QUERY, TEXTS)
        refusing.add(server.wire.base)
        with pytest.raises(ProviderRefused):
            await reranker.async_similarity(QUERY, TEXTS)

    refusing: set[str] = set()
    refused: Counter[str] = Counter()

    def choose(request: Request) -> Behaviour:
        base = next((base for base in refusing if request.path.startswith(base + "/")), None)
        if base is None:
            return vendors(request)
        refused[base] += 1
        return Behaviour(status=status)

    simulator.choose = choose
    await at_every_server(check)
    assert refused == Counter(refusing)


async def test_a_vendor_that_asks_for_patience_is_left_alone(server: Server, reranker_at: Opener, simulator: VendorSimulator) -> None:
    simulator.choose = lambda request: Behaviour(status=429, headers=(("retry-after", "30"),))
    reranker = reranker_at(server)
    with pytest.raises(ProviderBusy):
        await reranker.async_similarity(QUERY, TEXTS)
    with pytest.raises(CircuitOpen):
        await reranker.async_similarity(QUERY, TEXTS)
    assert len(simulator.requests) == 1


async def test_the_callers_deadline_leaves_time_for_something_else(reranker_at: Opener, simulator: VendorSimulator) -> None:
    simulator.choose = lambda request: Behaviour("hang")

    async def check(server: Server) -> None:
        with within(1.0):
            with pytest.raises(ProviderUnreachable):
                await reranker_at(server, seconds=60.0).async_similarity(QUERY, TEXTS)
            assert seconds_left() > 0

    await at_every_server(check)


async def test_without_time_nothing_is_sent(server: Server, reranker_at: Opener, simulator: VendorSimulator) -> None:
    with within(-1.0), pytest.raises(DeadlineExceeded):
        await reranker_at(server).async_similarity(QUERY, TEXTS)
    assert simulator.requests == []


async def test_cancelling_closes_the_connection_and_frees_the_turn(
    server: Server, reranker_at: Opener, simulator: VendorSimulator, vendors: RerankVendors
) -> None:
    reranker = reranker_at(server, concurrency=1)
    simulator.script = [Behaviour("hang")]
    task = asyncio.create_task(reranker.async_similarity(QUERY, TEXTS))
    await simulator.arrived.wait()
    task.cancel()
    await asyncio.wait_for(simulator.hung_up.wait(), 1)
    with pytest.raises(asyncio.CancelledError):
        await task
    scores, _ = await reranker.async_similarity(QUERY, TEXTS)
    assert best_first(scores) == EXPECTED


async def test_no_more_calls_than_allowed_are_under_way(
    server: Server, reranker_at: Opener, simulator: VendorSimulator, vendors: RerankVendors
) -> None:
    vendors.latency_seconds = 0.005
    reranker = reranker_at(server, concurrency=3)
    answers = await asyncio.gather(*(reranker.async_similarity(QUERY, TEXTS) for _ in range(20)))
    assert all(best_first(scores) == EXPECTED for scores, _ in answers)
    assert simulator.most_open_requests == 3


async def test_a_dead_vendor_is_not_asked_until_it_may_be_well_again(
    server: Server, reranker_at: Opener, simulator: VendorSimulator, vendors: RerankVendors
) -> None:
    now = 0.0
    reranker = reranker_at(server, breaker=VendorBreaker("P", min_calls=2, rest_seconds=5.0, clock=lambda: now))
    simulator.choose = lambda request: Behaviour(status=401 if len(simulator.requests) == 1 else 500)
    for expected in (ProviderRefused, ProviderError, ProviderError):
        with pytest.raises(expected):
            await reranker.async_similarity(QUERY, TEXTS)
    asked = len(simulator.requests)
    with pytest.raises(CircuitOpen):
        await reranker.async_similarity(QUERY, TEXTS)
    assert len(simulator.requests) == asked
    now, simulator.choose = 5.0, vendors
    scores, _ = await reranker.async_similarity(QUERY, TEXTS)
    assert best_first(scores) == EXPECTED


async def test_texts_and_query_are_cut_to_what_the_model_reads(
    server: Server, reranker_at: Opener, simulator: VendorSimulator, transport: Transport
) -> None:
    reranker = reranker_at(server)
    small = type(reranker)(reranker.name, reranker._endpoint, transport, reranker._guard, context_tokens=256)
    await small.async_similarity("q" * 10_000, ["word " * 10_000, "海" * 10_000, "short"])
    body = simulator.requests[-1].body
    long, han, short = server.wire.texts(body)
    assert len(server.wire.query(body)) / 3 + len(long) / 3 <= 256
    assert 200 < len(long) < 400
    assert 80 < len(han) <= 128
    assert short == "short"


async def test_in_a_chain_the_next_one_answers_for_a_failing_one(reranker_at: Opener, simulator: VendorSimulator, lane: Lane) -> None:
    dead = reranker_at(replace(SERVERS[1], wire=replace(WIRES["Jina"], base="/nowhere")))
    chain = FailoverReranker({"dead": dead, "alive": reranker_at(SERVERS[2])}, lane, 5.0)
    scores, tokens = await chain.async_similarity(QUERY, TEXTS)
    assert best_first(scores) == EXPECTED
    assert tokens == 10 * len(TEXTS)
