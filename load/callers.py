"""Many callers in one cheap process: keep-alive HTTP/1.1 over raw sockets, one epoll loop, no parsing beyond the answer's length.

It shares its cores with the server it drives, so every instruction counts: about 0.1 ms of CPU a request.
"""

import multiprocessing
import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

RECEIVE_BYTES = 1 << 18
STALLED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Driven:
    """What the callers saw. `latencies` are seconds, one an answered request, by the order of the answers; `seconds` is wall clock
    from the first request to the last answer, `cpu_seconds` what the callers themselves took."""

    seconds: float
    latencies: tuple[float, ...]
    cpu_seconds: float
    answer_bytes: int
    failed: int


def post_requests(url: str, api_key: str, path: str, bodies: Sequence[dict]) -> list[bytes]:
    """One raw request for each body."""
    head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {api_key}\r\nContent-Type: application/json\r\n"
    encoded = [orjson.dumps(body) for body in bodies]
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in encoded]


def drive(url: str, requests: Sequence[bytes], callers: int, seconds: float | None = None) -> Driven:
    """Send every request once, `callers` at a time, from a process of their own; with `seconds` no new one after that time."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, url, requests, callers, seconds), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _report(sender, url: str, requests: Sequence[bytes], callers: int, seconds: float | None) -> None:
    sender.send(_drive(url, requests, callers, seconds))


def _drive(url: str, requests: Sequence[bytes], callers: int, seconds: float | None) -> Driven:
    parts = urlsplit(url)
    waiting = iter(requests)
    latencies: list[float] = []
    total_bytes = failed = 0
    cpu = time.process_time()
    started = time.perf_counter()
    until = started + seconds if seconds is not None else float("inf")
    with selectors.EpollSelector() as selector:
        for _ in range(callers):
            caller = _Caller(socket.create_connection((parts.hostname, parts.port)))
            if caller.ask(waiting):
                selector.register(caller.socket, selectors.EVENT_READ, caller)
        while selector.get_map():
            events = selector.select(STALLED_SECONDS)
            if not events:
                raise TimeoutError(f"no answer for {STALLED_SECONDS:g} seconds")
            for key, _ in events:
                caller = key.data
                if not caller.receive():
                    continue
                latencies.append(time.perf_counter() - caller.asked)
                total_bytes += caller.needed
                failed += not caller.ok
                if time.perf_counter() > until or not caller.ask(waiting):
                    selector.unregister(caller.socket)
                    caller.socket.close()
    elapsed = time.perf_counter() - started
    return Driven(elapsed, tuple(latencies), time.process_time() - cpu, total_bytes, failed)


class _Caller:
    """One connection that asks, waits for the whole answer and asks again."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asked = 0.0
        self.ok = False
        self.needed = 0
        self._got = 0
        self._head = b""

    def ask(self, waiting: Iterator[bytes]) -> bool:
        """Send the next request; False when there is none."""
        request = next(waiting, None)
        if request is None:
            return False
        self._head, self._got, self.needed, self.asked = b"", 0, 0, time.perf_counter()
        self.socket.sendall(request)
        return True

    def receive(self) -> bool:
        """Take in what has arrived; True when the answer is whole. Raises `ConnectionError` when it ends early."""
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed a connection before its answer was whole")
        self._got += len(data)
        if not self.needed:
            self._head += data
            head, end, _ = self._head.partition(b"\r\n\r\n")
            if not end:
                return False
            self.ok = head.startswith(b"HTTP/1.1 200 ")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.needed = len(head) + len(end) + int(length)
        return self._got >= self.needed
