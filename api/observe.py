"""Round every request: its line in the access log and its place in the metrics. Never a path, a query or a body: those are users' texts."""

import time
from typing import Any

import structlog
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPResponseBodyEvent, HTTPResponseStartEvent, Scope
from quart import Quart, request

from api.drain import Drain
from api.metrics import UNMATCHED, Metrics
from rag import tracing
from rag.stages import Stages, recording

ROUTE = "millrace.route"
REFUSED = "refused"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
CLIENT_GONE = 499
SERVER_ERROR = 500
EVENT_STREAM = b"text/event-stream"
FLOWS_WITH_TOTAL = frozenset({"retrieval", "chat"})

log = structlog.get_logger("millrace.access")


class Answer:
    """What is seen of an answer on its way. A request whose answer never starts was given up by its client."""

    def __init__(self) -> None:
        self.status = CLIENT_GONE
        self.request_id: str | None = None
        self.streamed = False
        self._ended = False
        self._missing: int | None = None

    @property
    def complete(self) -> bool:
        """Whether the client got all of it; it may hang up as soon as it has as many bytes as were announced."""
        return self._ended or self._missing == 0

    def start(self, event: HTTPResponseStartEvent) -> None:
        """Take in status and headers."""
        self.status = event["status"]
        for name, value in event["headers"]:
            match name.lower():
                case b"x-request-id":
                    self.request_id = value.decode()
                case b"content-type":
                    self.streamed = value.startswith(EVENT_STREAM)
                case b"content-length":
                    self._missing = int(value)

    def go_on(self, event: HTTPResponseBodyEvent) -> None:
        """Take in a piece of the body."""
        if self._missing is not None:
            self._missing -= len(event["body"])
        self._ended = not event["more_body"]


class Observed:
    """An ASGI application that logs, counts, times and traces the requests of the one it wraps."""

    def __init__(self, app: Any, metrics: Metrics, drain: Drain) -> None:
        self._app = app
        self._metrics = metrics
        self._drain = drain

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one request. A websocket is refused: there is none here."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})  # shared with what the application makes of the scope
        answer = Answer()

        async def observed_send(event: ASGISendEvent) -> None:
            if event["type"] == "http.response.start":
                answer.start(event)
                if answer.streamed:
                    self._metrics.streams.inc()
                if self._drain.draining:
                    event = event | {"headers": [*event["headers"], (b"connection", b"close")]}
            elif event["type"] == "http.response.body":
                answer.go_on(event)
            await send(event)

        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.in_flight.inc()
        with tracing.server_span(method, scope["headers"]) as span, recording() as record:
            trace_id = tracing.trace_id()
            if trace_id is not None:
                structlog.contextvars.bind_contextvars(trace_id=trace_id)
            try:
                await self._app(scope, receive, observed_send)
            finally:
                self._metrics.in_flight.dec()
                if answer.streamed:
                    self._metrics.streams.dec()
                self._record(method, scope["state"].get(ROUTE, UNMATCHED), answer, record, span)

    def _record(self, method: str, route: str, answer: Answer, record: Stages, span: tracing.Span) -> None:
        seconds = time.perf_counter() - record.started
        self._metrics.request(method, route, answer.status, seconds)
        stages = record.seconds.copy()  # a thread of a request that was given up may still add to it
        if record.flow in FLOWS_WITH_TOTAL:
            stages["total"] = seconds
        self._metrics.stages(record.flow, stages)
        _describe(span, method, route, answer)
        if route in QUIET or route == REFUSED:
            return  # refusals are counted: a line for each would cost more than the refusal
        log.info(
            "request",
            method=method,
            route=route,
            status=answer.status,
            ms=round(seconds * 1000, 1),
            request_id=answer.request_id,
            complete=answer.complete,
        )


def _describe(span: tracing.Span, method: str, route: str, answer: Answer) -> None:
    span.rename(f"{method} {route}")
    span.set("http.request.method", method)
    span.set("http.route", route)
    span.set("http.response.status_code", answer.status)
    if answer.status >= SERVER_ERROR or not answer.complete:
        span.fail(str(answer.status) if answer.status >= SERVER_ERROR else "client_gone")


def observe(app: Quart, metrics: Metrics, drain: Drain) -> None:
    """Observe every request of `app`."""

    async def note_route() -> None:
        if request.url_rule is not None:
            request.scope["state"][ROUTE] = request.url_rule.rule

    app.before_request(note_route)  # not after it: a request that is given up has a route, too
    app.asgi_app = Observed(app.asgi_app, metrics, drain)  # type: ignore[method-assign]
