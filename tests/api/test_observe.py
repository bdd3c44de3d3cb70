from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from api.drain import Drain
from api.metrics import Metrics
from api.observe import ROUTE, Observed
from rag import stages

START = {"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"abc"), (b"content-length", b"4")]}


def body(text: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text, "more_body": more}


async def observe(
    events: Sequence[dict[str, Any]], *, drain: Drain | None = None, route: str | None = "/things/<id>", error: ValueError | None = None
) -> tuple[list[dict[str, Any]], dict[str, Any], Metrics]:
    """What the client gets, the access line and the metrics of one request that is answered with `events`."""
    sent: list[dict[str, Any]] = []
    metrics = Metrics()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if route is not None:
            scope["state"][ROUTE] = route
        for event in events:
            await send(event)
        if error is not None:
            raise error

    async def send(event: Any) -> None:
        sent.append(event)

    scope: Any = {"type": "http", "method": "GET", "path": "/things/secret", "query_string": b"q=secret", "headers": []}
    with capture_logs() as lines, suppress(ValueError):
        await Observed(app, metrics, drain or Drain())(scope, None, send)  # type: ignore[arg-type]
    return sent, (lines or [{}])[0], metrics


async def test_a_request_is_one_line_and_one_count_by_its_route_template() -> None:
    sent, line, metrics = await observe([START, body(b"some", more=True), body(b"")])
    assert sent == [START, body(b"some", more=True), body(b"")]
    assert {name: line[name] for name in ("method", "route", "status", "request_id", "complete")} == {
        "method": "GET", "route": "/things/<id>", "status": 200, "request_id": "abc", "complete": True,
    }  # fmt: skip
    assert "secret" not in str(line)
    assert 'millrace_requests_total{method="GET",route="/things/<id>",status="200"} 1.0' in metrics.text().decode()
    assert "millrace_requests_in_flight 0.0" in metrics.text().decode()


async def test_an_answer_with_as_many_bytes_as_announced_is_complete_though_its_client_hung_up() -> None:
    _, line, _ = await observe([START, body(b"some", more=True)])
    assert line["complete"]
    _, line, _ = await observe([START, body(b"som", more=True)])
    assert not line["complete"]


async def test_a_client_that_left_before_the_answer_is_a_499() -> None:
    _, line, metrics = await observe([])
    assert (line["status"], line["complete"]) == (499, False)
    assert 'status="499"} 1.0' in metrics.text().decode()


async def test_an_application_that_fails_is_counted_all_the_same() -> None:
    _, line, metrics = await observe([START], error=ValueError("x"))
    assert line["status"] == 200
    assert "millrace_requests_in_flight 0.0" in metrics.text().decode()


async def test_unknown_paths_share_one_label() -> None:
    _, line, _ = await observe([START, body(b"")], route=None)
    assert line["route"] == "unmatched"


@pytest.mark.parametrize("route", ["/healthz", "/readyz", "/metrics"])
async def test_probes_are_counted_and_not_logged(route: str) -> None:
    _, line, metrics = await observe([START, body(b"some")], route=route)
    assert line == {}
    assert f'route="{route}"' in metrics.text().decode()


async def test_answers_of_a_draining_server_close_their_connection() -> None:
    drain = Drain()
    drain.start()
    sent, _, _ = await observe([START, body(b"some")], drain=drain)
    assert (b"connection", b"close") in sent[0]["headers"]
    assert (b"connection", b"close") not in START["headers"]


async def test_a_streamed_answer_is_open_until_it_ends() -> None:
    seen: list[str] = []
    metrics = Metrics()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]})
        seen.append(metrics.text().decode())
        await send(body(b"data:1"))

    async def send(event: Any) -> None:
        return None

    await Observed(app, metrics, Drain())({"type": "http", "method": "POST", "headers": []}, None, send)  # type: ignore[arg-type, typeddict-item]
    assert "millrace_streams_open 1.0" in seen[0]
    assert "millrace_streams_open 0.0" in metrics.text().decode()


async def test_the_stages_that_a_request_went_through_are_timed_as_those_of_its_flow() -> None:
    metrics = Metrics()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        stages.flow("chat")
        stages.flow("retrieval")  # part of the chat
        for _ in range(2):
            with stages.stage("db"):
                pass
        stages.reached("first_token")
        for event in (START, body(b"some")):
            await send(event)

    async def send(event: Any) -> None:
        return None

    await Observed(app, metrics, Drain())({"type": "http", "method": "POST", "headers": []}, None, send)  # type: ignore[arg-type, typeddict-item]
    text = metrics.text().decode()
    for stage in ("db", "first_token", "total"):
        assert f'millrace_stage_seconds_count{{flow="chat",stage="{stage}"}} 1.0' in text
    assert 'flow="retrieval"' not in text
