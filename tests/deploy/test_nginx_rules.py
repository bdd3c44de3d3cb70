"""The nginx configuration in deploy/, before servers that tell what reached them."""

import http.client
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.services import nginx
from tests.services.missing import missing

Handler = Callable[[http.server.BaseHTTPRequestHandler], None]
SECONDS = 20


class Upstream:
    """A server on the loopback that answers as `handle` does; `seen` are the requests' first lines."""

    def __init__(self, handle: Handler) -> None:
        self.seen: list[str] = []
        upstream = self

        class Answering(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_any(self) -> None:
                upstream.seen.append(f"{self.command} {self.path}")
                handle(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_any  # noqa: N815 - the names that http.server looks for

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


def answer(request: http.server.BaseHTTPRequestHandler) -> None:
    body = str(request.headers.get("X-Request-Id")).encode()
    request.rfile.read(int(request.headers.get("Content-Length", "0")))
    request.send_response(200)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def hang_up(request: http.server.BaseHTTPRequestHandler) -> None:
    request.rfile.read(int(request.headers.get("Content-Length", "0")))
    request.close_connection = True
    request.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(autouse=True)
def _installed() -> None:
    if nginx.program() is None:
        missing(nginx.MISSING)


@contextmanager
def serving(*handlers: Handler) -> Iterator[list[Upstream]]:
    upstreams = [Upstream(handler) for handler in handlers]
    try:
        yield upstreams
    finally:
        for upstream in upstreams:
            upstream.close()


def ask(url: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=SECONDS)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_a_stream_comes_through_frame_by_frame(tmp_path: Path) -> None:
    read = threading.Event()

    def stream(request: http.server.BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers["Content-Length"]))
        request.send_response(200)
        request.send_header("Content-Type", "text/event-stream")
        request.send_header("X-Accel-Buffering", "no")  # as api/sse.py does
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(b"data: one\n\n")
        assert read.wait(SECONDS), "the first frame was not given out"
        request.wfile.write(b"data: two\n\n")
        request.close_connection = True

    with serving(stream) as (upstream,), nginx.nginx(tmp_path, [upstream.address]) as front:
        connection = http.client.HTTPConnection(front.url.removeprefix("http://"), timeout=SECONDS)
        connection.request("POST", "/api/v1/chats/1/completions", b"{}")
        reply = connection.getresponse()
        assert reply.readline() == b"data: one\n"
        read.set()
        assert reply.read() == b"\ndata: two\n\n"
        connection.close()


def test_a_file_reaches_the_server_while_it_comes_in(tmp_path: Path) -> None:
    arrived = threading.Event()

    def take(request: http.server.BaseHTTPRequestHandler) -> None:
        assert request.rfile.read(4) == b"half"
        arrived.set()
        request.rfile.read(int(request.headers["Content-Length"]) - 4)
        answer_nothing(request)

    with serving(take) as (upstream,), nginx.nginx(tmp_path, [upstream.address]) as front:
        host, port = front.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=SECONDS) as client:
            client.sendall(b"POST /api/v1/datasets/0a/documents HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
            assert arrived.wait(SECONDS), "nginx waits for the whole file"
            client.sendall(b"rest")
            assert client.recv(12) == b"HTTP/1.1 204"


def answer_nothing(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(204)
    request.end_headers()


def test_a_server_that_does_not_listen_is_passed_over_for_every_method(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        refused = f"127.0.0.1:{nobody.getsockname()[1]}"
    with serving(answer) as (upstream,), nginx.nginx(tmp_path, [refused, upstream.address]) as front:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            for _ in range(3):
                assert ask(front.url, method, "/api/v1/datasets", b"{}")[0] == 200


@pytest.mark.parametrize("path", ["/api/v1/retrieval", "/v1/retrieval"])
def test_a_search_is_answered_by_another_server_when_the_first_one_dies(path: str, tmp_path: Path) -> None:
    with serving(hang_up, answer) as upstreams, nginx.nginx(tmp_path, [upstream.address for upstream in upstreams]) as front:
        assert [ask(front.url, "POST", path, b"{}")[0] for _ in range(4)] == [200] * 4
        assert upstreams[0].seen, "the dying one was asked"


def test_what_changes_something_is_sent_once(tmp_path: Path) -> None:
    with serving(hang_up, hang_up) as upstreams, nginx.nginx(tmp_path, [upstream.address for upstream in upstreams]) as front:
        status, _ = ask(front.url, "POST", "/api/v1/datasets/0a/chunks", b"{}")
        assert status == 502
        assert sum(len(upstream.seen) for upstream in upstreams) == 1


def test_a_large_body_is_refused_by_millrace_and_not_by_nginx(tmp_path: Path) -> None:
    with serving(answer) as (upstream,), nginx.nginx(tmp_path, [upstream.address]) as front:
        assert ask(front.url, "POST", "/api/v1/retrieval", bytes(20 << 20))[0] == 200


def test_a_request_keeps_the_id_that_its_caller_gave_it(tmp_path: Path) -> None:
    with serving(answer) as (upstream,), nginx.nginx(tmp_path, [upstream.address]) as front:
        assert ask(front.url, "GET", "/api/v1/datasets", X_Request_Id="mine")[1] == b"mine"
        given = ask(front.url, "GET", "/api/v1/datasets")[1]
        assert len(given) == 32


def test_the_servers_answers_are_not_replaced(tmp_path: Path) -> None:
    def refuse(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(503)
        request.send_header("Retry-After", "2")
        request.send_header("Content-Length", "4")
        request.end_headers()
        request.wfile.write(b"full")

    with serving(refuse, refuse) as upstreams, nginx.nginx(tmp_path, [upstream.address for upstream in upstreams]) as front:
        assert ask(front.url, "GET", "/api/v1/datasets") == (503, b"full")
        assert sum(len(upstream.seen) for upstream in upstreams) == 1, "a server that is full is not asked elsewhere again"
