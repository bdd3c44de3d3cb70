"""Events to text/event-stream. An error after the first byte becomes one error frame; the stream still ends as its readers expect."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

import orjson
import structlog
from quart import Response, request

from api.drain import Drain
from api.errors import Failure, failure_of, is_unexpected

log = structlog.get_logger("millrace.http")

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-control": "no-cache",
    "X-Accel-Buffering": "no",
}
DONE = b"data:[DONE]\n\n"


def frame(payload: Any) -> bytes:
    """One event: `data:` and the JSON on one line, non-ASCII as it is, NaN as null."""
    return b"data:" + orjson.dumps(payload) + b"\n\n"


LAST = frame({"code": 0, "message": "", "data": True})


def native_stream(events: AsyncIterator[Any], drain: Drain) -> Response:
    """The contract's stream (11.2): each of `events` is a frame's `data`; an error says so in a frame of code 500."""
    return _response(_frames(events, drain, _native, _native_error, LAST))


def openai_stream(events: AsyncIterator[Any], drain: Drain) -> Response:
    """OpenAI's stream: each of `events` is a chunk; an error is a chunk `{"error": …}`, which their clients raise."""
    return _response(_frames(events, drain, frame, _openai_error, DONE))


def _response(frames: AsyncIterator[bytes]) -> Response:
    # HTTP/2 has no such field and refuses it
    connection = {"Connection": "keep-alive"} if request.http_version.startswith("1") else {}
    return Response(frames, headers=HEADERS | connection)


async def _frames(
    events: AsyncIterator[Any], drain: Drain, encode: Callable[[Any], bytes], encode_error: Callable[[Failure], bytes], last: bytes
) -> AsyncIterator[bytes]:
    """The frames, the last one always. Closed when the client goes away, and closes `events` then, at once."""
    async with aclosing(events):  # type: ignore[type-var]
        try:
            while True:
                async with drain.stream():  # around the wait only: the time a slow client takes is not to be cut here
                    event = await anext(events, None)
                if event is None:
                    break
                yield encode(event)
        except Exception as error:
            if is_unexpected(error):
                log.error("stream failed", exc_info=error)
            yield encode_error(failure_of(error))
    yield last


def _native(data: Any) -> bytes:
    return frame({"code": 0, "message": "", "data": data})


def _native_error(failure: Failure) -> bytes:
    text = failure.message
    return frame({"code": 500, "message": text, "data": {"answer": f"**ERROR**: {text}", "reference": []}})


def _openai_error(failure: Failure) -> bytes:
    kind = "invalid_request_error" if failure.status < 500 else "server_error"
    return frame({"error": {"message": failure.message, "type": kind, "code": failure.code, "param": None}})
