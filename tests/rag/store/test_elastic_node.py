"""What is read of HTTP: answers of every form, whole or not at all. Against a socket that sends them byte by byte or at once."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from elastic_transport import NodeConfig

from rag.errors import Unavailable
from rag.store.elastic import Cluster
from rag.store.elastic_node import Node

BIG = b"x" * 300_000
ANSWERS = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, b"hello"),
    "nothing": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b""),
    "no reason": (b"HTTP/1.1 404\r\ncontent-length: 2\r\n\r\n{}", 404, b"{}"),
    "chunks": (b"HTTP/1.1 200\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n", 200, b"hello world"),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx: y\r\n\r\n", 200, b"a"),
    "large": (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(BIG) + BIG, 200, BIG),
    "large chunk": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % len(BIG) + BIG + b"\r\n0\r\n\r\n", 200, BIG),
}  # fmt: skip


class Server:
    """Sends an answer to each request, in pieces of a size; keeps the connection, or not."""

    def __init__(self, answer: bytes, piece: int = 1 << 20, *, close: bool = False) -> None:
        self.answer, self.piece, self.close_after = answer, piece, close
        self.connections = self.requests = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                self.connections += 1
                while data := connection.recv(65536):
                    if data == b"end":
                        return
                    self.requests += 1
                    for start in range(0, len(self.answer), self.piece):
                        connection.sendall(self.answer[start : start + self.piece])
                    if self.close_after:
                        break

    def __enter__(self) -> Node:
        self.node = Node(NodeConfig("http", "127.0.0.1", self.listener.getsockname()[1], connections_per_node=2))
        return self.node

    def __exit__(self, *_: object) -> None:
        self.node.close()
        with socket.create_connection(self.listener.getsockname()) as last:
            last.sendall(b"end")
        self.thread.join()
        self.listener.close()


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("form", ANSWERS)
def test_an_answer_of_any_form_is_read_whole_and_the_connection_kept(form, piece):
    answer, status, body = ANSWERS[form]
    if len(answer) > 100_000 and piece < 1 << 20:
        piece = 9_973
    with (server := Server(answer, piece)) as node:
        for _ in range(3):
            got = node.ask("POST", "/", b"{}", seconds=10.0)
            assert (got.status, got.body) == (status, body)
    assert server.connections == 2  # ours, and the one that ends the server


@pytest.mark.parametrize("answer", [
    b"", b"HTTP/1.1 200 OK\r\ncontent-le", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
    b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"SSH-2.0-nothing\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 30_000,
])  # fmt: skip
def test_an_answer_that_is_not_whole_or_not_http_is_no_connection(answer):
    with Server(answer, close=True) as node, pytest.raises(ConnectionError):
        node.ask("GET", "/", seconds=10.0)


def test_an_end_of_the_connection_ends_an_answer_without_a_length():
    with (server := Server(b"HTTP/1.1 200 OK\r\n\r\nall of it", close=True)) as node:
        for _ in range(2):
            assert node.ask("GET", "/", seconds=10.0).body == b"all of it"
    assert server.connections == 3


def test_a_connection_that_the_host_has_closed_is_not_used_again():
    with (server := Server(ANSWERS["length"][0], close=True)) as node:
        for _ in range(3):
            assert node.ask("GET", "/", seconds=10.0).body == b"hello"
            assert is_closed(node._idle[-1][0])  # waits until the end has arrived
    assert server.requests == 3


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(5.0)
    return connection.recv(1, socket.MSG_PEEK) == b""


def test_an_answer_that_trickles_is_ended_by_the_time_of_the_whole():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        node = Node(NodeConfig("http", "127.0.0.1", listener.getsockname()[1]))
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            node.ask("GET", "/", seconds=0.4)
        assert 0.3 < time.monotonic() - started < 2.0
        stop.set()
        thread.join()
        node.close()


def test_waiting_for_a_connection_counts_as_waiting_for_the_answer():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        node = Node(NodeConfig("http", "127.0.0.1", listener.getsockname()[1], connections_per_node=1))
        ended: list[float] = []

        def ask() -> None:
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                node.ask("GET", "/", seconds=1.0)
            ended.append(time.monotonic() - started)

        first, second = threading.Thread(target=ask), threading.Thread(target=ask)
        first.start()
        with listener.accept()[0] as connection:
            assert connection.recv(1)  # the first one has the only connection
            second.start()
            first.join()
            second.join()
        assert max(ended) < 1.6
        node.close()


def test_a_host_that_takes_no_connection_leaves_time_for_another_one():
    with full_host() as dead, Server(b"HTTP/1.1 200 OK\r\nx-elastic-product: Elasticsearch\r\ncontent-length: 0\r\n\r\n") as live:
        cluster = Cluster([f"http://127.0.0.1:{dead}", f"http://127.0.0.1:{live.port}"], timeout_seconds=2.0)
        assert [cluster.ask("GET", "/").status for _ in range(2)] == [200, 200]
        cluster.close()


def test_hosts_that_break_off_have_the_time_of_one_request_together():
    with ExitStack() as stack:
        ports = [stack.enter_context(host_that_breaks_off(0.7)) for _ in range(2)]
        cluster = Cluster([f"http://127.0.0.1:{port}" for port in ports], timeout_seconds=1.0)
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no answer in time"):
            cluster.ask("GET", "/")
        assert time.monotonic() - started < 1.3
        cluster.close()


@contextmanager
def host_that_breaks_off(seconds: float) -> Iterator[int]:
    """The port of a host that takes a connection and closes it after a while."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            connection, _ = listener.accept()
            stop.wait(seconds)
            connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        stop.set()
        thread.join()


@contextmanager
def full_host() -> Iterator[int]:
    """The port of a host that answers no handshake, as one that has lost its power: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_a_connection_that_was_idle_for_long_is_not_used_again():
    """What lies between may have forgotten it."""
    with (server := Server(ANSWERS["length"][0])) as node:
        node.ask("GET", "/", seconds=10.0)
        connection, used = node._idle.pop()
        node._idle.append((connection, used - 3600.0))
        node.ask("GET", "/", seconds=10.0)
    assert server.connections == 3
