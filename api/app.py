"""The HTTP application: `create_app(parts)` puts blueprints, authentication, limits and the error table together."""

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import structlog
from quart import Quart, Response, g, request
from quart.typing import ResponseReturnValue

from api import openapi
from api.admission import Admission
from api.admitted import Admitted
from api.apps import (
    chat_app,
    chunk_app,
    conversation_app,
    dataset_app,
    dify_app,
    document_app,
    metadata_app,
    openai_app,
    parse_app,
    retrieval_app,
    search_app,
    session_app,
    system_app,
)
from api.asgi import Connection, PressingRequest
from api.auth import KeyRing
from api.context import request_id
from api.errors import error_response
from api.parts import Parts
from api.respond import EXPOSED
from api.routes import Routes, RouteSpec
from api.upload import Uploader
from db.services import dataset_service
from rag.deadline import within
from rag.errors import DeadlineExceeded, MillraceError

T = TypeVar("T")

BLUEPRINTS: tuple[Routes, ...] = (
    system_app.api,
    system_app.root,
    dataset_app.api,
    document_app.api,
    parse_app.api,
    chunk_app.api,
    retrieval_app.api,
    metadata_app.api,
    dify_app.api,
    chat_app.api,
    session_app.api,
    conversation_app.api,
    search_app.api,
    openai_app.api,
    openai_app.root,
    openapi.api,
)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
READING = frozenset({"GET", "HEAD", "OPTIONS"})
CHANGED_SECONDS = 1.0
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "*, Authorization, Content-Type",
    "Access-Control-Max-Age": "86400",
}


class Application(Quart):
    """Quart, without what an API has no use for: cookie sessions, redirects, forms on disk."""

    request_class = PressingRequest
    asgi_http_class = Connection

    def __init__(self, parts: Parts, blueprints: Sequence[Routes]) -> None:
        super().__init__(__name__, static_folder=None)
        self.url_map.strict_slashes = False
        self.url_map.merge_slashes = False
        self.config["RESPONSE_TIMEOUT"] = None  # a download or a stream takes as long as it takes
        self.config["BODY_TIMEOUT"] = None
        self.config["PROPAGATE_EXCEPTIONS"] = False
        self.keys = KeyRing(parts.session)
        self.specs: dict[str, RouteSpec] = {}
        self.extensions["parts"] = parts
        self.extensions["keys"] = self.keys
        self.extensions["uploader"] = Uploader(parts.blobs, parts.lanes.blob, parts.settings.max_upload_bytes)
        self._session = parts.session
        self._seconds = parts.settings.request_timeout_seconds
        self._chat_seconds = parts.settings.chat_timeout_seconds
        for blueprint in blueprints:
            self.register_blueprint(blueprint)
            self.specs |= {spec.endpoint: spec for spec in blueprint.specs}
        self.register_error_handler(Exception, self._answer_error)
        self.after_request(_finish)

    async def dispatch_request(self, request_context: Any = None) -> ResponseReturnValue:
        """Authenticate, then run the handler, both within the request's deadline."""
        _begin()
        if request.routing_exception is not None:
            raise request.routing_exception
        if request.method == "OPTIONS":
            return Response("", 204, PREFLIGHT)
        spec = self.specs[request.endpoint or ""]
        handler: Callable[..., Awaitable[ResponseReturnValue]] = self.view_functions[spec.endpoint]
        end = time.monotonic() + self._seconds
        if not spec.public:
            g.tenant_id = await _in_time(end, self._seconds, self.keys.tenant_of(request.headers.get("Authorization")))
        arguments = request.view_args or {}
        answer = handler(**arguments)
        if "dataset_id" in arguments and request.method not in READING:
            answer = self._changing(arguments["dataset_id"].replace("-", ""), answer)
        if not spec.stream:
            return await _in_time(end, self._seconds, answer)
        if spec.body is None:  # an upload or a download takes as long as its bytes come
            return await answer
        return await _in_time(end - self._seconds + self._chat_seconds, self._chat_seconds, answer)

    async def _changing(self, dataset_id: str, answer: Awaitable[ResponseReturnValue]) -> ResponseReturnValue:
        """The answer to a request that may have changed a dataset's data: from then on nobody finds results of before."""
        changed = partial(self._session.write, dataset_service.changed, dataset_id, g.tenant_id)
        try:
            answered = await answer
        except BaseException:
            # Part of it may be done. What a request that was given up still does is done within moments: see api/results.py.
            with suppress(MillraceError, TimeoutError):
                async with asyncio.timeout(CHANGED_SECONDS):
                    await changed()
            raise
        await changed()
        return answered

    async def _answer_error(self, error: Exception) -> Response:
        spec = self.specs.get(request.endpoint or "")
        return error_response(error, "J" if spec is None else spec.kind)


def create_app(parts: Parts, blueprints: Sequence[Routes] = BLUEPRINTS) -> Application:
    """The application over these parts, to be served by any ASGI server."""
    app = Application(parts, blueprints)
    admission = parts.admission or Admission(parts.settings.patience_seconds, on_refused=parts.metrics.refused)
    app.extensions["admission"] = admission
    parts.metrics.watch_admission(lambda: admission.active, lambda: admission.at_work[0] > 0)
    rate_limit = parts.memory.rate_limit if parts.memory is not None else None
    app.asgi_app = Admitted(  # type: ignore[method-assign]
        app.asgi_app, admission, app.keys, app.specs.values(), rate_limit=rate_limit, on_refused=parts.metrics.refused
    )  # fmt: skip
    return app


async def _in_time(end: float, seconds: float, work: Awaitable[T]) -> T:
    """What the work returns, until `end` (`time.monotonic`), which is `seconds` after the request began."""
    left = end - time.monotonic()
    try:
        async with asyncio.timeout(left):
            with within(left):
                return await work
    except TimeoutError:
        raise DeadlineExceeded(f"the request took longer than {seconds:g} seconds") from None


def _begin() -> None:
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex[:16]
    structlog.contextvars.bind_contextvars(request_id=g.request_id)


async def _finish(response: Response) -> Response:
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.headers["Access-Control-Expose-Headers"] = EXPOSED
    response.headers["X-Request-Id"] = request_id()
    return response
