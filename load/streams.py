"""Many readers of streamed answers in one cheap process: raw sockets, one epoll loop, a few microseconds an event.

Each reader asks a chat, reads the answer's events to the end and asks again.
"""

import heapq
import selectors
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from load.own_process import answer_parent, connect, in_own_process, received

RECEIVE_BYTES = 1 << 16
STALLED_SECONDS = 90.0
PAUSE_SECONDS = 1.0

_WORD = b'"answer":"'
_NO_WORD = b'"answer":""'
_ERROR = b'data:{"code":5'
_UNPLANNED = b"nternal server error"
_END = b'"data":true}\n\n'
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Streamed:
    """What the readers saw, an entry an answer: when it was asked for, its first word came and it ended, in seconds since the first
    request; `first` is not a number where there was no word. `failed` tells of answers that were no answers: status, error, early end.
    """

    seconds: float
    cpu_seconds: float
    asked: tuple[float, ...]
    first: tuple[float, ...]
    ended: tuple[float, ...]
    events: tuple[int, ...]
    failed: tuple[str, ...]


def read(url: str, requests: Sequence[bytes], readers: int, seconds: float, ramp_seconds: float) -> Streamed:
    """Send the requests, `readers` at a time, from a process of their own; no new one after `seconds`, and none begun is cut.

    The readers begin one after the other within `ramp_seconds`.
    """
    return Streamed(*in_own_process("load.streams", url, list(requests), readers, seconds, ramp_seconds))


class _Reader:
    """One connection."""

    def __init__(self, url: str) -> None:
        self.socket = connect(url)
        self.asked = 0.0
        self._reset()

    def _reset(self) -> None:
        self.first = float("nan")
        self.events = 0
        self.failure = ""
        self._head = b""
        self._tail = b""
        self._in_body = False

    def ask(self, request: bytes) -> None:
        """Send the request."""
        self._reset()
        self.asked = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Take in what has arrived; True when the answer has ended."""
        data = received(self.socket, RECEIVE_BYTES)
        if not data:
            self.failure = self.failure or "cut"
            return True
        if not self._in_body:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return False
            self._in_body = True
            if not head.startswith(b"HTTP/1.1 200 "):
                self.failure = f"status {int(head[9:12])}"
                return True  # its body is of no interest, and neither is the connection
        self.events += data.count(b"\n\n")
        if self.first != self.first and data.count(_WORD) > data.count(_NO_WORD):
            self.first = time.perf_counter()
        if _ERROR in data:
            self.failure = "unplanned error in the stream" if _UNPLANNED in data else "error in the stream"
        self._tail = (self._tail + data)[-64:]
        if not self._tail.endswith(_LAST_CHUNK):
            return False
        if not self.failure and _END not in self._tail:
            self.failure = "no end"
        return True


def _read(url: str, requests: Sequence[bytes], readers: int, seconds: float, ramp_seconds: float) -> Streamed:
    waiting: Iterator[bytes] = iter(requests)
    answers: list[tuple[float, float, float, int]] = []
    failed: list[str] = []
    cpu, started = time.process_time(), time.perf_counter()
    due = [started + ramp_seconds * place / readers for place in range(readers)]
    heapq.heapify(due)
    with selectors.EpollSelector() as selector:
        while True:
            now = time.perf_counter()
            while due and due[0] <= now:
                heapq.heappop(due)
                if now < started + seconds and (request := next(waiting, None)) is not None:
                    reader = _Reader(url)
                    reader.ask(request)
                    selector.register(reader.socket, selectors.EVENT_READ, reader)
            if not due and not selector.get_map():
                break
            events = selector.select(max(0.0, due[0] - now) if due else STALLED_SECONDS)
            if not events and not due and selector.get_map():
                raise TimeoutError(f"no event for {STALLED_SECONDS:g} seconds")
            for key, _ in events:
                reader = key.data
                if not reader.receive():
                    continue
                now = time.perf_counter()
                answers.append((reader.asked - started, reader.first - started, now - started, reader.events))
                if reader.failure:
                    failed.append(reader.failure)
                    selector.unregister(reader.socket)
                    reader.socket.close()
                    heapq.heappush(due, now + PAUSE_SECONDS)  # on a new connection
                elif now < started + seconds and (request := next(waiting, None)) is not None:
                    reader.ask(request)
                else:
                    selector.unregister(reader.socket)
                    reader.socket.close()
    asked, first, ended, events = zip(*answers, strict=True) if answers else ((), (), (), ())
    return Streamed(time.perf_counter() - started, time.process_time() - cpu, asked, first, ended, events, tuple(failed))


if __name__ == "__main__":
    answer_parent(_read)
