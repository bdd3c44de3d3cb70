"""Connections to one Elasticsearch host, for the official client's pool of hosts, at half the CPU of those that it brings.

A retrieval asks Elasticsearch three times, and of 4 ms of CPU that it may take, urllib3 took 0.4 ms each time, the standard
library's reading of an answer's headers 0.1 ms, and the client's transport another 0.1 ms. Here a request is sent at once, and of
HTTP/1.1 only that is read which servers send to a client that asks for nothing special: a length, or chunks, or an end of the connection.
"""

import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

from elastic_transport import BaseNode, NodeConfig

P = ParamSpec("P")
T = TypeVar("T")

_HEAD_BYTES = 64 << 10
_PIECE_BYTES = 128 << 10
# Nothing has been sent by then, so the client may go on with another host.
_CONNECT_SECONDS = 3.0
_HURRIED_SECONDS = 1.0  # with less, a slow connection says nothing about the host
# What lies between us and the host may forget a connection without telling us: load balancers after a minute, or more.
_IDLE_SECONDS = 45.0
_BROKE_OFF = "the connection broke off before the answer was whole"


class Answer(NamedTuple):
    """An answer: its status, its headers by their names in lower case, its body."""

    status: int
    headers: dict[str, str]
    body: bytes | bytearray


class Node(BaseNode):
    """A host. At most `connections_per_node` connections, kept open between requests. Thread-safe."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._idle: deque[tuple[socket.socket, float]] = deque()  # and when it was used last
        self._room = threading.BoundedSemaphore(config.connections_per_node)
        host = f"[{self.host}]" if ":" in self.host else self.host
        self._first_headers = f" HTTP/1.1\r\nhost: {host}:{self.port}\r\nconnection: keep-alive\r\n"
        self._closed = False

    def ask(self, method: str, target: str, body: bytes | None = None, headers: str = "", *, seconds: float) -> Answer:
        """The answer to one request, whole, within `seconds`: waiting for a connection and making one included.

        `headers` are lines, each with its end. Raises `TimeoutError`, and `OSError` for all else, a host that takes too long to
        connect to included.
        """
        end = time.monotonic() + seconds
        length = "" if body is None and method not in ("POST", "PUT") else f"content-length: {len(body or b'')}\r\n"
        head = f"{method} {self.path_prefix}{target}{self._first_headers}{headers}{length}\r\n".encode("latin-1")
        if not self._room.acquire(timeout=seconds):
            raise TimeoutError
        try:
            return self._exchange(method, head + (body or b""), end)
        except ValueError as exc:
            raise ConnectionError(str(exc)) from exc
        finally:
            self._room.release()

    def close(self) -> None:
        """Close the connections that are not in use; the others close with their requests."""
        self._closed = True
        while self._idle:
            self._idle.popleft()[0].close()

    def _exchange(self, method: str, request: bytes, end: float) -> Answer:
        connection = self._take() or self._connect(_left(end))
        kept = False
        try:
            exchange = _Exchange(connection, end)
            exchange.send(request)
            status, headers = exchange.head()
            if method == "HEAD" or status in (204, 304):
                data, whole = b"", True
            else:
                data, whole = exchange.body(headers)
            kept = whole and not self._closed and headers.get("connection", "").lower() != "close"
            return Answer(status, headers, data)
        finally:
            if kept:
                self._idle.append((connection, time.monotonic()))
            else:
                connection.close()

    def _take(self) -> socket.socket | None:
        """The connection used last that the host has not closed meanwhile, and that was used a short while ago."""
        while True:
            try:
                connection, used = self._idle.pop()
            except IndexError:
                return None
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            if time.monotonic() - used < _IDLE_SECONDS and not poll.poll(0):
                return connection
            connection.close()

    def _connect(self, seconds: float) -> socket.socket:
        hurried = seconds < _HURRIED_SECONDS
        patience = seconds if hurried else min(_CONNECT_SECONDS, seconds / 2)
        try:
            connection = socket.create_connection((self.host, self.port), timeout=patience)
        except TimeoutError as exc:
            if hurried:
                raise
            raise ConnectionError("the host does not take the connection") from exc
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self.scheme == "https":
                connection = self.config.ssl_context.wrap_socket(connection, server_hostname=self.host)
            connection.setblocking(False)  # with a timeout of its own, each call to the system would be three
        except BaseException:
            connection.close()
            raise
        return connection


def _left(end: float) -> float:
    """Seconds until then. Raises `TimeoutError` when there are none."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Exchange:
    """A request and its answer over a connection, until `end`. Raises `OSError`, `TimeoutError`, `ValueError` for what is no HTTP."""

    def __init__(self, connection: socket.socket, end: float) -> None:
        self._connection = connection
        self._end = end
        self._buffer = bytearray()

    def send(self, request: bytes) -> None:
        """Send it whole."""
        rest = memoryview(request)
        while rest:
            rest = rest[self._when_ready(select.POLLOUT, self._connection.send, rest) :]

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers, their names in lower case."""
        first, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, *_ = first.split(" ", 2)
        if not version.startswith("HTTP/1."):
            raise ValueError("the answer is not HTTP")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(status), headers

    def body(self, headers: dict[str, str]) -> tuple[bytes | bytearray, bool]:
        """The bytes, and whether the connection can be used again."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            pieces = []
            while length := int(self._until(b"\r\n").partition(b";")[0], 16):
                pieces.append(self._exactly(length + 2))
                del pieces[-1][-2:]  # the end of the line
            while self._until(b"\r\n"):  # trailing headers
                pass
            return pieces[0] if len(pieces) == 1 else b"".join(pieces), True
        if "content-length" in headers:
            return self._exactly(int(headers["content-length"])), True
        while piece := self._receive():
            self._buffer += piece
        return bytes(self._buffer), False

    def _until(self, mark: bytes) -> bytes:
        start = 0
        while (place := self._buffer.find(mark, start)) < 0:
            start = max(0, len(self._buffer) - len(mark))
            if start > _HEAD_BYTES:
                raise ValueError("the answer's head does not end")
            self._buffer += self._more()
        found = bytes(self._buffer[:place])
        del self._buffer[: place + len(mark)]
        return found

    def _exactly(self, count: int) -> bytearray:
        if len(self._buffer) >= count:
            found = self._buffer[:count]
            del self._buffer[:count]
            return found
        found = bytearray(count)
        filled = len(self._buffer)
        found[:filled] = self._buffer
        self._buffer.clear()
        view = memoryview(found)
        while filled < count:
            received = self._when_ready(select.POLLIN, self._connection.recv_into, view[filled:])
            if not received:
                raise ConnectionError(_BROKE_OFF)
            filled += received
        view.release()
        return found

    def _more(self) -> bytes:
        piece = self._receive()
        if not piece:
            raise ConnectionError(_BROKE_OFF)
        return piece

    def _receive(self) -> bytes:
        return self._when_ready(select.POLLIN, self._connection.recv, _PIECE_BYTES)

    def _when_ready(self, event: int, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the call returns as soon as it has not to wait, for `event` without TLS."""
        while True:
            left = _left(self._end)
            try:
                return call(*args, **kwargs)
            except BlockingIOError:
                awaited = event
            except ssl.SSLWantReadError:
                awaited = select.POLLIN
            except ssl.SSLWantWriteError:
                awaited = select.POLLOUT
            poll = select.poll()
            poll.register(self._connection, awaited)
            poll.poll(left * 1000.0)
