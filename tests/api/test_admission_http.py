"""api/admitted.py: what a refused caller gets, what is never refused, and who frees a place."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from api.admission import Admission, Route, Ticket
from api.app import create_app
from api.asgi import PressingBody
from api.memory import Memory
from api.observe import observe
from rag.cache.local import LocalCache, LocalRateLimit
from rag.threads import away, current_load
from tests.api.conftest import Server


@pytest.fixture
def admission(api: Server) -> Admission:
    return api.app.extensions["admission"]


@pytest.fixture
def full(api: Server, admission: Admission) -> Iterator[Admission]:
    """A server that has no place left for keys that were not used yet."""
    held = [admission.admit("") for _ in range(50)]
    admission.era, admission.limit, admission._last_refusal = 1, 10.0, float("inf")
    yield admission
    for ticket in held:
        ticket.done(answered=False)


async def ask(api: Server, method: str, path: str, body: list[bytes] | None = None) -> tuple[list[dict[str, Any]], int]:
    """What the server sends for one request, and how many pieces of the body it took before it began to answer."""
    sent: list[dict[str, Any]] = []
    pieces, taken = list(body or [b""]), 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        if not pieces:
            await asyncio.Event().wait()
        taken += not sent
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "http_version": "1.1",
        "scheme": "http", "headers": [(b"authorization", f"Bearer {api.key}".encode()), (b"host", b"x")], "asgi": {}, "state": {},
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "root_path": "", "extensions": {},
    }  # fmt: skip
    await api.app(scope, receive, send)
    return sent, taken


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/v1/retrieval"), ("GET", "/api/v1/datasets"), ("POST", "/api/v1/chat/completions"), ("POST", "/v1/chat/completions")],
)
async def test_a_refusal_is_an_answer_of_the_route_with_the_time_to_come_back(
    api: Server, full: Admission, method: str, path: str
) -> None:  # fmt: skip
    sent, taken = await ask(api, method, path, [b"{", b"}"])
    head, answer = sent[0], orjson.loads(sent[1]["body"])
    headers = dict(head["headers"])
    assert head["status"] in (429, 503)
    assert taken == 0  # nothing of the body was read before the answer
    milliseconds = int(headers[b"retry-after-ms"])
    assert int(headers[b"retry-after"]) >= milliseconds / 1000
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"Retry-After-Ms" in headers[b"access-control-expose-headers"]
    body = answer["error"] if path.startswith("/v1") else answer
    assert (body["code"], body["retry_after_ms"]) == (head["status"], milliseconds)
    assert ("data" in body) == (path == "/api/v1/chat/completions")
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_health_figures_and_documentation_are_never_refused(api: Server, full: Admission) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/api/v1/system/ping"):
        sent, _ = await ask(api, "GET", path)
        assert "retry-after-ms" not in dict(sent[0]["headers"]), path
        assert full.active == 50


async def test_refusals_are_counted_and_leave_no_line_in_the_access_log(api: Server, full: Admission) -> None:
    observe(api.app, api.parts.metrics, api.parts.drain)
    with capture_logs() as lines:
        sent, _ = await ask(api, "GET", "/api/v1/datasets")
    assert not lines
    assert sent[0]["status"] == 503
    text = api.parts.metrics.text().decode()
    assert 'millrace_refused_total{reason="overload"} 1.0' in text
    assert f'millrace_requests_total{{method="GET",route="refused",status="{sent[0]["status"]}"}} 1.0' in text


async def test_each_route_is_known_by_what_it_usually_takes_and_unknown_paths_are_one(api: Server, admission: Admission) -> None:
    dataset = await api.dataset()
    for path in ("/datasets", f"/datasets/{dataset}", f"/datasets/{'0' * 32}", "/x", "/datasets/x/y/z", "/datasets/documents/documents"):
        await api.call("GET", path)
    assert sorted(admission.routes) == ["", "GET /api/v1/datasets", "GET /api/v1/datasets/*", "POST /api/v1/datasets"]
    assert [route.active for route in admission.routes.values()] == [0, 0, 0, 0]


async def test_another_tenant_gets_its_share(api: Server, admission: Admission) -> None:
    for key in (api.key, api.other_key):
        assert (await api.call("GET", "/datasets", key=key)).status == 200  # a key that was used is known
    held = [admission.admit(api.tenant) for _ in range(50)]
    admission.era, admission.limit, admission._last_refusal = 1, 10.0, float("inf")
    refused = await api.call("GET", "/datasets")
    assert (await api.call("GET", "/datasets", key=api.other_key)).status == 200
    again = await api.call("GET", "/datasets")
    assert (refused.status, again.status) == (429, 429)
    for ticket in held:
        ticket.done(answered=False)


async def test_an_answered_request_frees_its_place(api: Server, admission: Admission) -> None:
    assert (await api.call("GET", "/datasets")).status == 200
    assert (await api.call("GET", "/datasets/x/y/z")).status == 404
    assert admission.active == 0


async def test_a_request_cancelled_in_mid_rerank_frees_its_place_at_once(api: Server, admission: Admission) -> None:
    asked, seen = asyncio.Event(), []

    async def rerank() -> None:
        with away():
            seen.append((admission.active, current_load.get()))
            asked.set()
            await asyncio.Event().wait()

    async def handler() -> None:
        seen.append(admission.active)
        await rerank()

    api.app.view_functions["dataset.list_datasets"] = handler
    task = asyncio.create_task(ask(api, "GET", "/api/v1/datasets"))
    await asked.wait()
    assert seen[0] == 1
    assert seen[1][0] == 0  # a vendor's time takes no place
    task.cancel()
    await asyncio.wait({task})
    assert admission.active == 0


async def test_the_wait_for_a_clients_body_takes_no_place(admission: Admission) -> None:
    body, left = PressingBody(None, None), asyncio.Event()

    class Noted(Ticket):
        def leave(self) -> None:
            super().leave()
            left.set()

    ticket = Noted(admission, "", Route(time.monotonic))
    token = current_load.set(ticket)
    reading = asyncio.create_task(anext(body))
    current_load.reset(token)
    await left.wait()
    assert admission.active == 0
    body.append(b"came")
    assert await reading == b"came"
    assert admission.active == 1
    ticket.done(answered=False)


async def test_a_key_that_asks_more_often_than_its_limit_is_told_when_to_come_back(api: Server) -> None:
    limited = replace(api.parts, memory=Memory(LocalCache(1 << 20), rate_limit=LocalRateLimit(0.5, 2)))
    api.app = create_app(limited)
    api.client = api.app.test_client()
    answers = [await api.call("GET", "/datasets") for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 429, 429]
    assert 1000 < int(answers[2].headers["retry-after-ms"]) <= 2000
    assert (await api.call("GET", "/datasets", key=api.other_key)).status == 200
    assert (await api.call("GET", "/system/ping")).status == 200
    assert 'millrace_refused_total{reason="rate"} 2.0' in api.parts.metrics.text().decode()
