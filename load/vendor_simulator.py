"""A model vendor on this machine: speaks the OpenAI wire format over real sockets, with a set latency and every way to fail.

Tests and load runs put it where a vendor would be. It writes raw bytes, since a proper HTTP library would refuse to be as broken
as some vendors are. As a program: `python -m load.vendor_simulator --port 9999 --latency 0.3`.
"""

import argparse
import asyncio
import base64
import gzip
import hashlib
import json
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

FAILURES = (
    "hang", "hang_after_headers", "hang_mid_stream", "trickle", "reset", "reset_mid_stream", "broken_off", "html", "garbage",
    "truncated", "short_body", "huge", "error_body", "error_event", "bad_gzip", "gzip_bomb", "not_streamed", "trickle_body",
)  # fmt: skip
HUGE_BYTES = 100 << 20

_REASONS = {200: "OK", 302: "Found", 400: "Bad Request", 401: "Unauthorized", 429: "Too Many Requests"}
_VENDOR_TEXT = "vendor says: key sk-secret is wrong"


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How requests are answered. `failure` is one of `FAILURES`, or "" for none.

    `latency_seconds` passes before the first byte, `gap_seconds` between events. `words` and `reasoning` are the chat answer's
    pieces. `reply` replaces a JSON answer, given the request's body; `events` the data of a stream's events.
    """

    failure: str = ""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    latency_seconds: float = 0.0
    gap_seconds: float = 0.0
    words: tuple[str, ...] = ("Water ", "boils ", "at 100 °C.")
    reasoning: tuple[str, ...] = ()
    dimension: int = 8
    reply: Callable[[Mapping[str, Any]], Any] | None = None
    events: tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived; header names in lower case."""

    path: str
    headers: Mapping[str, str]
    body: Any
    raw: bytes = b""


@dataclass(slots=True)
class VendorSimulator:
    """A running simulator. `behaviour` holds for all requests but the next ones in `script`, which is used up from its front.

    `choose`, where given, takes the place of `behaviour` and decides by the request.

    `requests` holds the last ones, at least `kept` of them: a load run sends more than fit into memory. `connections` counts those
    accepted, `open_requests` the requests whose answer is not finished. `hung_up` is set when a client closes its connection in
    the middle of an answer.
    """

    behaviour: Behaviour = Behaviour()
    script: list[Behaviour] = field(default_factory=list)
    choose: Callable[[Request], Behaviour] | None = None
    requests: list[Request] = field(default_factory=list)
    kept: int = 1000
    connections: int = 0
    open_requests: int = 0
    most_open_requests: int = 0
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    base_url: str = ""

    @asynccontextmanager
    async def listen(self, port: int = 0) -> AsyncIterator["VendorSimulator"]:
        """Serve inside the context on 127.0.0.1; port 0 takes a free one."""
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._connection(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", port, backlog=1024)
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        early = b""
        try:
            while (request := await _read_request(reader, early)) is not None:
                early = await self._serve(request, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _serve(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Answer one request, unless the client hangs up first. Returns what was read of the next request."""
        self.requests.append(request)
        if len(self.requests) > 2 * self.kept:
            del self.requests[: -self.kept]
        self.arrived.set()
        self.open_requests += 1
        self.most_open_requests = max(self.most_open_requests, self.open_requests)
        behaviour = self._behaviour_for(request)
        next_byte = asyncio.ensure_future(_next_byte(reader))
        answer = asyncio.ensure_future(_answer(request, behaviour, writer))
        try:
            await asyncio.wait((next_byte, answer), return_when=asyncio.FIRST_COMPLETED)
            if next_byte.done() and next_byte.result() == b"":
                self.hung_up.set()
                raise ConnectionResetError
            await answer
            return next_byte.result() if next_byte.done() else b""
        finally:
            self.open_requests -= 1
            for task in (next_byte, answer):
                task.cancel()
            await asyncio.gather(next_byte, answer, return_exceptions=True)

    def _behaviour_for(self, request: Request) -> Behaviour:
        if self.script:
            return self.script.pop(0)
        return self.choose(request) if self.choose else self.behaviour


async def _next_byte(reader: asyncio.StreamReader) -> bytes:
    """The next byte of the connection, b"" when the client closed it."""
    try:
        return await reader.read(1)
    except ConnectionError:
        return b""


async def _read_request(reader: asyncio.StreamReader, early: bytes) -> Request | None:
    try:
        head = early + await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(first.split(" ")[1], headers, json.loads(body) if body else None, body)


async def _answer(request: Request, behaviour: Behaviour, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(behaviour.latency_seconds)
    match behaviour.failure:
        case "hang":
            await asyncio.Event().wait()
        case "reset":
            _reset(writer)
        case "html":
            await _send(writer, b"<html><body>" + _VENDOR_TEXT.encode() + b"</body></html>", content_type="text/html")
        case "garbage":
            writer.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            raise ConnectionResetError
        case "truncated":
            await _send(writer, b'{"choices": [{"message": {"content": "Wat')
        case "short_body":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5000\r\n\r\n{")
            raise ConnectionResetError
        case "huge":
            await _send_huge(writer)
        case "trickle_body":
            await _trickle(writer)
        case "error_body":
            await _send(writer, json.dumps({"error": {"message": _VENDOR_TEXT}}).encode())
        case "gzip_bomb":
            await _send(writer, _gzip_bomb(), headers=(("content-encoding", "gzip"),))
        case "gzip":  # no failure: a gateway that packs what it was asked to send plain
            await _send(writer, gzip.compress(json.dumps(_reply(request, behaviour)).encode()), headers=(("content-encoding", "gzip"),))
        case "mislabelled":  # no failure: JSON by another name
            await _send(writer, json.dumps(_reply(request, behaviour)).encode(), content_type="text/plain")
        case "bad_gzip":
            await _send(writer, b"this is not gzip", headers=(("content-encoding", "gzip"),))
        case _ if behaviour.status != 200:
            await _send(writer, json.dumps({"error": {"message": _VENDOR_TEXT}}).encode(), behaviour.status, behaviour.headers)
        case _ if request.body.get("stream") and behaviour.failure != "not_streamed":
            await _stream(request, behaviour, writer)
        case _:
            await _send(writer, json.dumps(_reply(request, behaviour)).encode(), headers=behaviour.headers)


async def _send(
    writer: asyncio.StreamWriter,
    body: bytes,
    status: int = 200,
    headers: tuple[tuple[str, str], ...] = (),
    content_type: str = "application/json",
) -> None:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}", f"content-type: {content_type}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()


@cache
def _gzip_bomb() -> bytes:
    """A tenth of a megabyte that unpacks to a hundred."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    pieces = [packer.compress(b" " * 65536) for _ in range(HUGE_BYTES // 65536)]
    return b"".join([*pieces, packer.flush()])


async def _send_huge(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % HUGE_BYTES)
    for _ in range(HUGE_BYTES // 65536):
        writer.write(b" " * 65536)
        await writer.drain()


async def _trickle(writer: asyncio.StreamWriter) -> None:
    """An answer that never ends, a blank at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _stream(request: Request, behaviour: Behaviour, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    events = behaviour.events if behaviour.events is not None else _chat_events(request, behaviour)
    if behaviour.failure == "hang_after_headers":
        await writer.drain()
        await asyncio.Event().wait()
    for number, event in enumerate(events):
        if number == 2:
            await _fail_in_stream(behaviour.failure, writer)
        await _send_event(writer, event)
        await asyncio.sleep(behaviour.gap_seconds)
    if behaviour.failure != "broken_off":
        await _send_event(writer, "[DONE]")
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _fail_in_stream(failure: str, writer: asyncio.StreamWriter) -> None:
    match failure:
        case "hang_mid_stream":
            await asyncio.Event().wait()
        case "reset_mid_stream":
            _reset(writer)
        case "error_event":
            await _send_event(writer, {"error": {"message": _VENDOR_TEXT}})
        case "trickle":
            while True:
                writer.write(b"1\r\nx\r\n")
                await writer.drain()
                await asyncio.sleep(0.02)


async def _send_event(writer: asyncio.StreamWriter, event: Any) -> None:
    data = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
    chunk = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    raise ConnectionResetError


def _chat_events(request: Request, behaviour: Behaviour) -> list[dict[str, Any]]:
    """As OpenAI streams: a first delta without content, the pieces, the finish reason, and the usage without choices."""
    if behaviour.failure == "broken_off":
        deltas = [{"role": "assistant", "content": None}, *({"content": word} for word in behaviour.words[:1])]
        return [_chunk(delta) for delta in deltas]
    deltas = [{"role": "assistant", "content": None}]
    deltas += [{"reasoning_content": piece} for piece in behaviour.reasoning] + [{"content": word} for word in behaviour.words]
    events = [*(_chunk(delta) for delta in deltas), _chunk({}, finish_reason="stop")]
    if (request.body.get("stream_options") or {}).get("include_usage"):
        events.append({"object": "chat.completion.chunk", "choices": [], "usage": _usage(request, behaviour)})
    return events


def _chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"object": "chat.completion.chunk", "choices": [choice], "usage": None}


def _reply(request: Request, behaviour: Behaviour) -> Any:
    if behaviour.reply is not None:
        return behaviour.reply(request.body)
    if request.path.endswith("/embeddings"):
        texts = request.body["input"]
        as_base64 = request.body.get("encoding_format") == "base64"
        entries = [{"index": i, "embedding": _embedding(text, behaviour.dimension, as_base64)} for i, text in enumerate(texts)]
        return {"object": "list", "data": entries[::-1], "usage": {"prompt_tokens": len(texts), "total_tokens": len(texts)}}
    message = {"role": "assistant", "content": "".join(behaviour.words), "reasoning_content": "".join(behaviour.reasoning) or None}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice], "usage": _usage(request, behaviour)}


def _embedding(text: str, dimension: int, as_base64: bool) -> str | list[float]:
    """The same vector for the same text; not of unit length, as some vendors' are not."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = (3.0 * np.random.default_rng(seed).standard_normal(dimension)).astype("<f4")
    return base64.b64encode(vector.tobytes()).decode() if as_base64 else vector.tolist()


def _usage(request: Request, behaviour: Behaviour) -> dict[str, Any]:
    prompt = sum(len(message["content"].split()) for message in request.body["messages"])
    reasoning = len(behaviour.reasoning)
    completion = len(behaviour.words) + reasoning
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


async def _main() -> None:
    parser = argparse.ArgumentParser(description="an OpenAI-compatible vendor with a set latency")
    parser.add_argument("--port", type=int, default=9999)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before the first byte")
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between streamed words")
    parser.add_argument("--words", type=int, default=50, help="words of a chat answer")
    parser.add_argument("--dimension", type=int, default=384, help="length of an embedding")
    parser.add_argument("--failure", choices=FAILURES, default="", help="fail like this on every request")
    given = parser.parse_args()
    words = tuple(f"word{number} " for number in range(given.words))
    behaviour = Behaviour(given.failure, latency_seconds=given.latency, gap_seconds=given.gap, words=words, dimension=given.dimension)
    async with VendorSimulator(behaviour, kept=1).listen(given.port) as vendor:
        print(f"listening on {vendor.base_url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
