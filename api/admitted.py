"""Puts `Admission` before the application: a request that is refused never reaches it, and its body is never kept."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import orjson
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, HTTPScope, Scope

from api.admission import PROBE_SECONDS, Admission, Ticket
from api.auth import KeyRing, token_of
from api.errors import ENVELOPES, failure_of
from api.observe import REFUSED, ROUTE
from api.respond import EXPOSED, JSON_TYPE
from api.routes import BASE, Kind, RouteSpec
from rag.errors import Overloaded, TooManyRequests, Unauthenticated
from rag.ports import RateLimit
from rag.threads import current_load

CHAT_PATIENCE = 5.0  # a streamed answer takes its time anyway
LINGER_SECONDS = 5.0
SYSTEM = BASE + "/system/"


class Admitted:
    """An ASGI application that lets the wrapped one see only what `Admission` lets in.

    What is public (health, figures, documentation), what tells of the server itself, and preflights are never refused.
    """

    def __init__(
        self, app: Any, admission: Admission, keys: KeyRing, specs: Iterable[RouteSpec], *, rate_limit: RateLimit | None = None,
        on_refused: Callable[[str], None] | None = None,
    ) -> None:  # fmt: skip
        """`rate_limit` holds for each API key; `on_refused("rate")` is told of each request beyond it."""
        self._app = app
        self._rate_limit = rate_limit
        self._on_refused = on_refused or (lambda reason: None)
        self._admission = admission
        self._keys = keys
        self._watching = False
        specs = list(specs)
        self._free = {rule for spec in specs if spec.public for rule in spec.rules}
        self._words = {part for spec in specs for rule in spec.rules for part in rule.split("/") if "<" not in part}
        # for each shape that a route's paths have: how many times as long its requests may wait
        self._patience = {
            self._shape(method, rule): CHAT_PATIENCE if spec.stream and method == "POST" else 1.0
            for spec in specs for rule in spec.rules for method in spec.methods
        }  # fmt: skip
        self._kinds: dict[str, Kind] = {_section(rule): spec.kind for spec in specs for rule in spec.rules}

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http" or self._is_free(scope):
            await self._app(scope, receive, send)
            return
        authorization = next((value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"authorization"), None)
        shape = self._shape(scope["method"], scope["path"])
        route = shape if shape in self._patience else ""  # all that no route has count as one
        try:
            if self._rate_limit is not None and authorization:
                await self._keep_rate(self._rate_limit, authorization)
            ticket = self._admission.admit(self._keys.remembered(authorization), route, self._patience.get(route, 1.0))
        except Overloaded as error:
            await self._refuse(scope, receive, send, error)
            return
        self._watch()
        await self._serve(ticket, scope, receive, send)

    async def _keep_rate(self, rate_limit: RateLimit, authorization: str) -> None:
        """Raises `TooManyRequests` for a key that asks too often, whether it is a valid one or not."""
        try:
            key = token_of(authorization)
        except Unauthenticated:
            return  # refused where keys are looked up
        seconds = await rate_limit.wait_seconds(hashlib.blake2b(key.encode(), digest_size=16).hexdigest())
        if seconds > 0:
            self._on_refused("rate")
            raise TooManyRequests("this API key asks more often than its limit allows", seconds)

    def _is_free(self, scope: HTTPScope) -> bool:
        return scope["method"] == "OPTIONS" or scope["path"] in self._free or scope["path"].startswith(SYSTEM)

    def _shape(self, method: str, path: str) -> str:
        """What a path has in common with its route: the words of routes that are in it, `*` for each other part, and the method."""
        return method + " " + "/".join([part if part in self._words else "*" for part in path.split("/")])

    async def _serve(self, ticket: Ticket, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        status = 0

        async def patient_send(event: ASGISendEvent) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
            ticket.leave()  # the client's time, not ours
            try:
                await send(event)
            finally:
                ticket.come_back()

        token = current_load.set(ticket)
        answered = False
        try:
            await self._app(scope, receive, patient_send)
            answered = status == 200
        finally:
            current_load.reset(token)
            ticket.done(answered=answered)

    async def _refuse(self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable, error: Overloaded) -> None:
        """Answer first; then let the rest of the request come in and drop it, so that the connection can be used again."""
        failure = failure_of(error)
        scope.setdefault("state", {})[ROUTE] = REFUSED
        body = orjson.dumps(ENVELOPES[self._kinds.get(_section(scope["path"]), "J")](failure))
        headers = [(name.lower().encode(), value.encode()) for name, value in failure.headers.items()]
        headers += [
            (b"content-type", JSON_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"access-control-allow-origin", b"*"),
            (b"access-control-expose-headers", EXPOSED.encode()),
        ]
        await send({"type": "http.response.start", "status": failure.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] != "http.request" or not message.get("more_body", False):
                        break
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    # ------------------------------------------------------------------------------------------------ how late the loop is
    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._next_probe(asyncio.get_running_loop())

    def _next_probe(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(PROBE_SECONDS, self._probe, loop, time.perf_counter() + PROBE_SECONDS)

    def _probe(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._watching = self._admission.probe(max(0.0, time.perf_counter() - due))
        if self._watching:
            self._next_probe(loop)


def _section(path: str) -> str:
    """What routes of one envelope share: their first segment, or the one behind `/api/v1`."""
    inside = path.removeprefix(BASE)
    return inside.split("/", 2)[1] if inside.startswith("/") else ""
