"""Connections to one Elasticsearch host, for the official client's transport, at half the CPU of the two that it brings.

A retrieval asks Elasticsearch three times, and of 4 ms of CPU that it may take, urllib3 took 0.4 ms each time, and the standard
library's reading of an answer's headers 0.1 ms. Here a request is one `sendall`, and of HTTP/1.1 only that is read which servers
send to a client that asks for nothing special: a length, or chunks, or an end of the connection.
"""

import math
import select
import socket
import ssl
import threading
import time
from collections import deque
from typing import NamedTuple

from elastic_transport import (
    ApiResponseMeta,
    BaseNode,
    ConnectionError,
    ConnectionTimeout,
    HttpHeaders,
    NodeConfig,
    TlsError,
)
from elastic_transport.client_utils import DEFAULT, DefaultType

_HEAD_BYTES = 64 << 10
_PIECE_BYTES = 64 << 10
# Nothing has been sent by then, so the client may go on with another host.
_CONNECT_SECONDS = 3.0
_HURRIED_SECONDS = 1.0  # with less, a slow connection says nothing about the host
# What lies between us and the host may forget a connection without telling us: load balancers after a minute, or more.
_IDLE_SECONDS = 45.0
_BROKE_OFF = "the connection broke off before the answer was whole"


class Answer(NamedTuple):
    """What the transport takes of an answer."""

    meta: ApiResponseMeta
    body: bytes


class Node(BaseNode):
    """At most `connections_per_node` connections, kept open between requests. Thread-safe."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._idle: deque[tuple[socket.socket, float]] = deque()  # and when it was used last
        self._room = threading.BoundedSemaphore(config.connections_per_node)
        self._host = f"[{self.host}]" if ":" in self.host else self.host
        self._closed = False

    def perform_request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: HttpHeaders | None = None,
        request_timeout: DefaultType | float | None = DEFAULT,
    ) -> Answer:
        """The answer to one request, whole, within `request_timeout`: waiting for a connection and making one included.

        Raises `ConnectionTimeout`, `TlsError`, `ConnectionError`; the last one also for a host that takes too long to connect to.
        """
        started, begun = time.time(), time.monotonic()
        seconds = self.config.request_timeout if request_timeout is DEFAULT else request_timeout
        lines = [f"{method} {self.path_prefix}{target} HTTP/1.1", f"host: {self._host}:{self.port}", "connection: keep-alive"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None or method in ("POST", "PUT"):
            lines.append(f"content-length: {len(body or b'')}")
        request = "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
        try:
            if not self._room.acquire(timeout=seconds):
                raise TimeoutError
            try:
                end = None if seconds is None else begun + seconds
                status, answered, data = self._exchange(method, request, end)
            finally:
                self._room.release()
        except TimeoutError as exc:
            raise ConnectionTimeout("no answer in time", errors=(exc,)) from exc
        except ssl.SSLError as exc:
            raise TlsError(str(exc), errors=(exc,)) from exc
        except (OSError, ValueError) as exc:
            raise ConnectionError(str(exc), errors=(exc,)) from exc
        meta = ApiResponseMeta(
            node=self.config, duration=time.time() - started, http_version="1.1", status=status, headers=HttpHeaders(answered)
        )  # fmt: skip
        return Answer(meta, data)

    def close(self) -> None:
        """Close the connections that are not in use; the others close with their requests."""
        self._closed = True
        while self._idle:
            self._idle.popleft()[0].close()

    def _exchange(self, method: str, request: bytes, end: float | None) -> tuple[int, dict[str, str], bytes]:
        connection = self._take() or self._connect(_left(end))
        kept = False
        try:
            connection.settimeout(_left(end))
            connection.sendall(request)
            reader = _Reader(connection, end)
            status, headers = reader.head()
            if method == "HEAD" or status in (204, 304):
                data, whole = b"", True
            else:
                data, whole = reader.body(headers)
            kept = whole and not self._closed and headers.get("connection", "").lower() != "close"
            return status, headers, data
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

    def _connect(self, seconds: float | None) -> socket.socket:
        hurried = seconds is not None and seconds < _HURRIED_SECONDS
        patience = seconds if hurried else min(_CONNECT_SECONDS, (seconds or math.inf) / 2)
        try:
            connection = socket.create_connection((self.host, self.port), timeout=patience)
        except TimeoutError as exc:
            if hurried:
                raise
            raise OSError("the host does not take the connection") from exc
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.scheme != "https":
            return connection
        try:
            return self.config.ssl_context.wrap_socket(connection, server_hostname=self.host)
        except BaseException:
            connection.close()
            raise


def _left(end: float | None) -> float | None:
    """Seconds until then, None for ever. Raises `TimeoutError` when there are none."""
    if end is None:
        return None
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _Reader:
    """Reads one answer from a connection, until `end`. Raises `OSError`, `TimeoutError`, `ValueError` for what is no HTTP."""

    def __init__(self, connection: socket.socket, end: float | None) -> None:
        self._connection = connection
        self._end = end
        self._buffer = bytearray()

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

    def body(self, headers: dict[str, str]) -> tuple[bytes, bool]:
        """The bytes, and whether the connection can be used again."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            pieces = []
            while length := int(self._until(b"\r\n").partition(b";")[0], 16):
                pieces.append(self._exactly(length))
                self._exactly(2)
            while self._until(b"\r\n"):  # trailing headers
                pass
            return b"".join(pieces), True
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

    def _exactly(self, count: int) -> bytes:
        if len(self._buffer) >= count:
            found = bytes(self._buffer[:count])
            del self._buffer[:count]
            return found
        found = bytearray(count)
        filled = len(self._buffer)
        found[:filled] = self._buffer
        self._buffer.clear()
        view = memoryview(found)
        while filled < count:
            self._wait()
            received = self._connection.recv_into(view[filled:])
            if not received:
                raise OSError(_BROKE_OFF)
            filled += received
        view.release()
        return bytes(found)

    def _more(self) -> bytes:
        piece = self._receive()
        if not piece:
            raise OSError(_BROKE_OFF)
        return piece

    def _receive(self) -> bytes:
        self._wait()
        return self._connection.recv(_PIECE_BYTES)

    def _wait(self) -> None:
        if self._end is not None:
            self._connection.settimeout(_left(self._end))
