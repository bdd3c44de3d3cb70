"""Connections to one Elasticsearch host, for the official client's transport, at half the CPU of the two that it brings.

A retrieval asks Elasticsearch three times, and of 4 ms of CPU that it may take, urllib3 took 0.3 ms each time. This is what is left
without a second pool's bookkeeping: a request is one `sendall`, the answer is read by the standard library's HTTP parser.
"""

import http.client
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


class Answer(NamedTuple):
    """What the transport takes of an answer."""

    meta: ApiResponseMeta
    body: bytes


class Node(BaseNode):
    """At most `connections_per_node` connections, kept open between requests. Thread-safe."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config)
        self._idle: deque[socket.socket] = deque()
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
        """The answer to one request. `request_timeout` bounds each wait for the host.

        Raises `ConnectionTimeout`, `TlsError`, `ConnectionError`.
        """
        started = time.time()
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
                response, data = self._exchange(method, request, seconds)
            finally:
                self._room.release()
        except TimeoutError as exc:
            raise ConnectionTimeout("no answer in time", errors=(exc,)) from exc
        except ssl.SSLError as exc:
            raise TlsError(str(exc), errors=(exc,)) from exc
        except (OSError, http.client.HTTPException) as exc:
            raise ConnectionError(str(exc), errors=(exc,)) from exc
        meta = ApiResponseMeta(
            node=self.config, duration=time.time() - started, http_version="1.1", status=response.status,
            headers=HttpHeaders(response.headers),
        )  # fmt: skip
        return Answer(meta, data)

    def close(self) -> None:
        """Close the connections that are not in use; the others close with their requests."""
        self._closed = True
        while self._idle:
            self._idle.popleft().close()

    def _exchange(self, method: str, request: bytes, seconds: float | None) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._take() or self._connect(seconds)
        kept = False
        try:
            connection.settimeout(seconds)
            connection.sendall(request)
            with http.client.HTTPResponse(connection, method=method) as response:
                response.begin()
                data = response.read()
                kept = not response.will_close and not self._closed
            return response, data
        finally:
            if kept:
                self._idle.append(connection)
            else:
                connection.close()

    def _take(self) -> socket.socket | None:
        """The connection used last that the host has not closed meanwhile."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            if not poll.poll(0):
                return connection
            connection.close()

    def _connect(self, seconds: float | None) -> socket.socket:
        connection = socket.create_connection((self.host, self.port), timeout=seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.scheme != "https":
            return connection
        try:
            return self.config.ssl_context.wrap_socket(connection, server_hostname=self.host)
        except BaseException:
            connection.close()
            raise
