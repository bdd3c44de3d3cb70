"""The simulated vendors speak every wire format, fail in every way, and keep nothing of what they are asked."""

import asyncio
import json
import random
import urllib.error
import urllib.request

import pytest

from load.rerank_simulator import MODELS, WIRES
from load.vendor_simulator import FAILURES as KNOWN_FAILURES
from load.vendor_simulator import Request, VendorSimulator
from load.vendors import FAILURES, RERANKERS, SETTINGS_PATH, STREAM_FAILURES, Choice, Mood, vendors
from rag.settings import ModelSettings

CHAT = Request("/v1/chat/completions", {}, {"stream": True, "messages": []})
RERANK = Request("/jina/v1/rerank", {"authorization": "Bearer key"}, {"model": "m", "query": "q", "documents": ["a"]})


def test_every_way_to_fail_of_the_simulator_is_used():
    assert {*FAILURES, *STREAM_FAILURES} >= set(KNOWN_FAILURES)


def test_all_kinds_of_failures_come_round_and_are_counted():
    choice = Choice(Mood(failure_rate=1.0), dice=random.Random(1))
    for _ in range(2_000):
        choice(CHAT)
    assert choice.failed.keys() == {*FAILURES, *STREAM_FAILURES}
    assert choice.answered[CHAT.path] == 2_000


def test_a_request_that_is_not_streamed_fails_in_no_way_of_a_stream():
    choice = Choice(Mood(failure_rate=1.0), dice=random.Random(1))
    for _ in range(1_000):
        choice(RERANK)
    assert choice.failed.keys() <= FAILURES.keys()


def test_the_share_of_failures_is_what_was_asked_for():
    choice = Choice(Mood(failure_rate=0.2), dice=random.Random(1))
    for _ in range(2_000):
        choice(RERANK)
    assert choice.failed.total() / 2_000 == pytest.approx(0.2, abs=0.03)


def test_latencies_vary_by_their_share():
    choice = Choice(Mood(rerank_seconds=0.1, jitter=0.5), dice=random.Random(1))
    latencies = [choice(RERANK).latency_seconds for _ in range(500)]
    assert 0.05 <= min(latencies) < 0.06
    assert 0.14 < max(latencies) <= 0.15


def test_the_process_answers_as_it_is_told_to_from_then_on():
    body = json.dumps(RERANK.body).encode()
    with vendors(rerank_seconds=0.0) as simulated:
        request = urllib.request.Request(simulated.url + RERANK.path, body, {"authorization": "Bearer key"})
        with urllib.request.urlopen(request, timeout=10) as reply:
            assert len(json.loads(reply.read())["results"]) == 1
        assert simulated.change(failing="status_500")["answered"] == {RERANK.path: 1}
        with pytest.raises(urllib.error.HTTPError, match="500"):
            urllib.request.urlopen(request, timeout=10)


def test_the_models_are_settings_of_a_server_for_all_ten_rerankers():
    with vendors() as simulated:
        models = [ModelSettings.model_validate(model) for model in simulated.models(rerankers=10)]
    rerankers = {model.provider: model.name for model in models if model.kind == "rerank"}
    assert rerankers == {provider: MODELS.get(provider, "reranker") for provider in WIRES}
    assert RERANKERS[0] == "Jina"


async def test_a_simulator_keeps_only_the_last_requests():
    async with VendorSimulator(choose=Choice(Mood()), kept=3).listen() as simulator:
        request = urllib.request.Request(simulator.base_url + SETTINGS_PATH, json.dumps({}).encode())
        for _ in range(20):
            await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=10).close())
        assert 3 <= len(simulator.requests) <= 6
