"""Every HTTP byte to a vendor passes here, and every failure becomes an error of our own.

A message names the configured model and the limit, nothing else: a vendor's text, status, address or key never leaves this
module, neither in a message nor as the cause of an error.
"""

import asyncio
import json
import re
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, TypeVar

import aiohttp
import httpx
import httpx_aiohttp
import orjson

from rag import tracing
from rag.deadline import seconds_left
from rag.errors import ProviderBadReply, ProviderBusy, ProviderError, ProviderRefused, ProviderUnreachable, Unavailable
from rag.llm.endpoint import Endpoint

T = TypeVar("T")

MAX_EVENT_BYTES = 1 << 20

_CONNECT_SECONDS = 10.0
_KEEPALIVE_SECONDS = 30.0
_UNPACKED_BYTES = 1 << 16
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?", re.ASCII)
_END_OF_STREAM = b"[DONE]"
_REST_SECONDS = 0.05
# What a response holds of its request, in place of the real one: that has the whole prompt, and a stream may last for minutes.
_SENT = httpx.Request("POST", "http://sent")


class ConnectionLost(ProviderUnreachable):
    """The connection failed before any byte of an answer: the same request may be sent once more."""


class RequestTimeout(ProviderUnreachable):
    """The endpoint waited too long for our request and dropped it (408; RFC 9110, 15.5.9): it may be sent again."""


class RequestRejected(ProviderRefused):
    """The endpoint knows us and the model, but takes no request of this form (400, 413, 422 ...)."""


def open_client() -> httpx.AsyncClient:
    """The one client of a process. Call it inside the running loop, close it with `aclose`.

    httpx is the interface, aiohttp does the work: at 100 requests at a time httpx's own pool costs six times the CPU.
    """

    # One TLS context for all vendors; connections are bounded for each endpoint by its Guard, not here.
    def open_session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, ssl=ssl_context, keepalive_timeout=_KEEPALIVE_SECONDS)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    ssl_context: ssl.SSLContext = httpx.create_ssl_context(trust_env=False)
    return _PlainClient(httpx_aiohttp.AiohttpTransport(verify=ssl_context, trust_env=False, client=open_session))


class _PlainClient(httpx.AsyncClient):
    """Hands a request to the transport as it is: no redirects, cookies, hooks or authentication, and no log, which would hold the URL.

    For all of these httpx itself does, request by request, as much as the transport does to send it.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        super().__init__(transport=transport, timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS), trust_env=False)
        self._to_vendors = transport

    async def send(self, request: httpx.Request, *, stream: bool = False, **_: Any) -> httpx.Response:
        """The answer; its body unread with `stream`."""
        response = await self._to_vendors.handle_async_request(request)
        if not stream:
            await response.aread()
        return response


class Transport:
    """Posts JSON and reads JSON or server-sent events, within an endpoint's limits."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        """Make it on the loop that the client was opened on."""
        self._client = client
        self._limits = {"timeout": client.timeout.as_dict()}
        self._loop = _running_loop()

    def wait_for(self, call: Coroutine[Any, Any, T]) -> T:
        """The call's result, for code on a thread of its own: the call runs on the client's loop while the thread waits.

        So blocking callers share connections, limits and breakers with all others. Raises `Unavailable` when the loop does not
        run, `RuntimeError` on the loop's own thread, which would wait for itself.
        """
        if self._loop is None or not self._loop.is_running():
            call.close()
            raise Unavailable("the connection to model endpoints is not open")
        if _running_loop() is self._loop:
            call.close()
            raise RuntimeError("a blocking call on the event loop; await the asynchronous one")
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    async def post_json(self, endpoint: Endpoint, body: Mapping[str, Any]) -> Any:
        """The answer's JSON, within the endpoint's time or what the request has left. Raises `ProviderError`.

        Cancelling closes the connection.
        """
        seconds = min(endpoint.timeout_seconds, seconds_left())
        with _own_errors(endpoint, seconds):
            async with asyncio.timeout(seconds):
                response = await self._open(endpoint, body)
                try:
                    raw = await _read(response, endpoint)
                finally:
                    await response.aclose()
        return _parse(raw, endpoint)

    async def stream_events(self, endpoint: Endpoint, body: Mapping[str, Any]) -> AsyncIterator[dict[str, Any] | None]:
        """Each event's JSON as it comes, and a last None when the endpoint said that the stream is complete.

        An endpoint that answers in one piece gives that as the only event, followed by None. Close the iterator (`aclosing`) to
        close the connection. Raises `ProviderError`.
        """
        end = asyncio.get_running_loop().time() + endpoint.stream_seconds
        seconds = min(endpoint.timeout_seconds, seconds_left())
        with _own_errors(endpoint, seconds):
            async with asyncio.timeout(seconds):
                response = await self._open(endpoint, body)
            try:
                if _is_json(response):
                    async with asyncio.timeout(seconds):
                        raw = await _read(response, endpoint)
                    yield _parse(raw, endpoint)
                    yield None
                    return
                async with aclosing(_read_events(response, endpoint, end)) as events:
                    async for data in events:
                        if data == _END_OF_STREAM:
                            await _rest(events)
                            yield None
                            return
                        yield _parse(data, endpoint)
            finally:
                await response.aclose()

    async def _open(self, endpoint: Endpoint, body: Mapping[str, Any]) -> httpx.Response:
        """The response, its body unread. The caller closes it."""
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if endpoint.authorization:
            headers["authorization"] = endpoint.authorization
        tracing.add_context(headers)
        request = httpx.Request("POST", _parsed(endpoint.url), content=_dump(body), headers=headers, extensions=self._limits)
        with _own_errors(endpoint, _CONNECT_SECONDS, lost=ConnectionLost):
            response = await self._client.send(request, stream=True)
        if response.is_success:
            response.request = _SENT
            return response
        await response.aclose()
        raise _refusal(response, endpoint)


_parsed = lru_cache(maxsize=1024)(httpx.URL)  # endpoints are few, and parsing one takes longer than what follows


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _dump(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:
        # A lone surrogate in a text, which no JSON can hold, becomes a question mark.
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


async def _pieces(response: httpx.Response, endpoint: Endpoint) -> AsyncIterator[bytes]:
    """The body as it comes. Some gateways compress though they were asked not to: a piece never unpacks to more than 64 KiB at once."""
    packing = response.headers.get("content-encoding", "identity").strip().lower()
    if packing in ("identity", ""):
        async for piece in response.stream:
            yield piece
        return
    if packing not in ("gzip", "x-gzip", "deflate"):
        raise ProviderBadReply(f"model {endpoint.model} answered in an encoding that it was not asked for")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # finds out by the header which of the two it is
    try:
        async for piece in response.stream:
            while piece:
                if unpacked := unpacker.decompress(piece, _UNPACKED_BYTES):
                    yield unpacked
                piece = unpacker.unconsumed_tail
    except zlib.error:
        raise ProviderBadReply(f"model {endpoint.model} answered something that cannot be unpacked") from None
    if not unpacker.eof:
        raise ProviderUnreachable(f"the connection to model {endpoint.model} failed")


async def _read(response: httpx.Response, endpoint: Endpoint) -> bytes:
    """The body, refused as soon as it is over the limit."""
    body = bytearray()
    async for piece in _pieces(response, endpoint):
        body += piece
        if len(body) > endpoint.max_reply_bytes:
            body.clear()  # the error's traceback would keep it
            raise _too_long(endpoint, endpoint.max_reply_bytes)
    return bytes(body)


async def _read_events(response: httpx.Response, endpoint: Endpoint, end: float) -> AsyncIterator[bytes]:
    """The data of each server-sent event; each has to be complete within the endpoint's time, comments do not count.

    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    loop = asyncio.get_running_loop()
    pieces = _pieces(response, endpoint)
    parser = EventParser()
    due = min(end, loop.time() + endpoint.timeout_seconds)
    received = 0
    started = False
    while True:
        try:
            async with asyncio.timeout_at(due):
                piece = await anext(pieces, None)
        except TimeoutError:
            if due < end:
                raise
            raise ProviderUnreachable(f"model {endpoint.model} did not finish within {endpoint.stream_seconds:g} seconds") from None
        if piece is None and not started:
            raise ProviderBadReply(f"model {endpoint.model} answered something that is not an event stream")
        if piece is None:
            return
        received += len(piece)
        events = parser.feed(piece)
        if parser.pending_bytes > MAX_EVENT_BYTES:
            raise _too_long(endpoint, MAX_EVENT_BYTES)
        if received > endpoint.max_reply_bytes:
            raise _too_long(endpoint, endpoint.max_reply_bytes)
        for data in events:
            yield data
        if events:
            started = True
            due = min(end, loop.time() + endpoint.timeout_seconds)


async def _rest(events: AsyncIterator[bytes]) -> None:
    """Wait a moment for the body's own end behind the last event: only a connection that was read to it can be used again."""
    with suppress(TimeoutError, httpx.HTTPError, ProviderError):
        async with asyncio.timeout(_REST_SECONDS):
            async for _ in events:
                pass


class EventParser:
    """Cuts a byte stream into the data of server-sent events."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    @property
    def pending_bytes(self) -> int:
        """How much of an event that is not complete yet is held."""
        return len(self._rest) + sum(map(len, self._data))

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that the piece completes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        events = []
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events


def _is_json(response: httpx.Response) -> bool:
    return response.headers.get("content-type", "").lower().startswith("application/json")


def _parse(raw: bytes, endpoint: Endpoint) -> Any:
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise ProviderBadReply(f"model {endpoint.model} answered something that is not JSON") from None
    if isinstance(parsed, dict) and parsed.get("error"):
        raise ProviderBadReply(f"model {endpoint.model} answered with an error instead of a result")
    return parsed


def _refusal(response: httpx.Response, endpoint: Endpoint) -> ProviderError:
    """The error for a status that is not a success."""
    match response.status_code:
        case 401 | 403:
            return ProviderRefused(f"the endpoint of model {endpoint.model} refused the key that is configured for it")
        case 404:
            return ProviderRefused(f"the endpoint of model {endpoint.model} does not know the model or the address")
        case 429 | 503:
            wait = _retry_after(response.headers)
            return ProviderBusy(f"the endpoint of model {endpoint.model} is busy", retry_after_seconds=wait)
        case 408:
            return RequestTimeout(f"the endpoint of model {endpoint.model} did not get the whole request in its time")
        case 502 | 504:
            return ProviderUnreachable(f"model {endpoint.model} cannot be reached through its gateway")
        case status if 300 <= status < 400:
            return ProviderRefused(f"the endpoint of model {endpoint.model} redirects; configure the address it points to")
        case status if 400 <= status < 500:
            return RequestRejected(f"the endpoint of model {endpoint.model} rejected the request")
    return ProviderError(f"the endpoint of model {endpoint.model} failed")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that the endpoint asks for; None when it does not, or in no form that is known.

    `Retry-After` is a number of seconds or a date (RFC 9110, 10.2.3). `retry-after-ms` is more exact, where a vendor sends it.
    """
    if _NUMBER.fullmatch(milliseconds := headers.get("retry-after-ms", "")):
        return float(milliseconds) / 1000
    value = headers.get("retry-after", "")
    if _NUMBER.fullmatch(value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # a year or an hour of twenty digits
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())


def _too_long(endpoint: Endpoint, limit: int) -> ProviderBadReply:
    return ProviderBadReply(f"model {endpoint.model} answered more than {limit} bytes")


@contextmanager
def _own_errors(endpoint: Endpoint, seconds: float, lost: type[ProviderUnreachable] = ProviderUnreachable) -> Iterator[None]:
    """Turns what the HTTP client raises into our errors, without a cause: theirs hold addresses.

    `seconds` is how long was waited when it was too long, `lost` for a broken connection.
    """
    try:
        yield
    except (httpx.DecodingError, httpx.RemoteProtocolError, aiohttp.ClientResponseError, UnicodeError):  # a status line of any bytes
        raise ProviderBadReply(f"model {endpoint.model} answered something that is not HTTP") from None
    except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError) as error:
        if _is_timeout(error):
            raise ProviderUnreachable(f"model {endpoint.model} did not answer within {seconds:.3g} seconds") from None
        raise lost(f"the connection to model {endpoint.model} failed") from None


def _is_timeout(error: BaseException) -> bool:
    # httpx-aiohttp calls every lost connection a connect timeout; its cause tells.
    lost = isinstance(error.__cause__, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
    return isinstance(error, TimeoutError | httpx.TimeoutException) and not lost
