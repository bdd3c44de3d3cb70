"""Many callers in one cheap process: keep-alive HTTP/1.1 over raw sockets, one epoll loop, no parsing beyond the answer's length.

It shares its cores with the server it drives, so every instruction counts: about 0.1 ms of CPU a request.
"""

import heapq
import selectors
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson

from load.own_process import answer_parent, connect, in_own_process, received

RECEIVE_BYTES = 1 << 18
STALLED_SECONDS = 60.0
OK, TOO_MANY, BUSY = 200, 429, 503
REFUSED = (TOO_MANY, BUSY)


@dataclass(frozen=True, slots=True)
class Driven:
    """What the callers saw. `latencies` are seconds, one an answered request, by the order of the answers; `seconds` is wall clock
    from the first request to the last answer, `cpu_seconds` what the callers themselves took. `ended` and `statuses` go with
    `latencies`: seconds since the first request, and the status, 0 where the connection ended before the answer was whole, -503 for
    a 503 that names no time to come back.
    """

    seconds: float
    latencies: tuple[float, ...]
    cpu_seconds: float
    answer_bytes: int
    failed: int
    ended: tuple[float, ...] = ()
    statuses: tuple[int, ...] = ()

    def between(self, start: float, end: float) -> "Driven":
        """The answers of that part of the time. CPU and bytes are those of the whole."""
        kept = [place for place, at in enumerate(self.ended) if start <= at < end]
        statuses = tuple(self.statuses[place] for place in kept)
        return Driven(
            end - start, tuple(self.latencies[place] for place in kept), self.cpu_seconds, self.answer_bytes,
            sum(status != OK for status in statuses), tuple(self.ended[place] for place in kept), statuses,
        )  # fmt: skip

    def with_status(self, *statuses: int) -> list[float]:
        """The latencies of the answers with one of these statuses, ascending."""
        return sorted(latency for latency, status in zip(self.latencies, self.statuses, strict=True) if status in statuses)


def quantile(ascending: Sequence[float], share: float) -> float:
    """The value below which that share of the values lies; not a number without values."""
    return ascending[min(len(ascending) - 1, int(len(ascending) * share))] if ascending else float("nan")


def post_requests(url: str, api_key: str, path: str, bodies: Sequence[dict]) -> list[bytes]:
    """One raw request for each body."""
    head = f"POST {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {api_key}\r\nContent-Type: application/json\r\n"
    encoded = [orjson.dumps(body) for body in bodies]
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in encoded]


def drive(url: str, requests: Sequence[bytes], callers: int, seconds: float | None = None, *, ramp_seconds: float = 0.0) -> Driven:
    """Send every request once, `callers` at a time, from a process of their own; with `seconds` no new one after that time.

    The callers begin one after the other within `ramp_seconds`: those who begin together stay together, and a server that is
    asked in waves is idle between them. One that is refused asks its next question when the answer says that it may.
    """
    return Driven(*in_own_process("load.callers", url, list(requests), callers, seconds, ramp_seconds))


def offer(url: str, requests: Sequence[bytes], stretches: Sequence[tuple[float, float]]) -> Driven:
    """Send every request at its time, whatever became of those before: arrivals from a whole world.

    `stretches` are rates (requests a second) and how many seconds each lasts, one after the other. Latencies count from the time at
    which a request was due, so that a client which comes too late hides nothing.
    """
    return Driven(*in_own_process("load.callers", url, list(requests), list(stretches), words=("offer",)))


def _offer(url: str, requests: Sequence[bytes], stretches: Sequence[tuple[float, float]]) -> Driven:
    waiting = iter(requests)
    seen = _Seen()
    idle: list[_Caller] = []
    dues = _times(seen.started, stretches)
    due = next(dues, None)
    with selectors.EpollSelector() as selector:
        while True:
            now = time.perf_counter()
            while due is not None and due <= now:
                caller = idle.pop() if idle else _Caller(url)
                if not caller.ask(waiting):
                    due = None
                    break
                caller.asked = due
                selector.register(caller.socket, selectors.EVENT_READ, caller)
                due = next(dues, None)
            if due is None and not selector.get_map():
                break
            events = selector.select(STALLED_SECONDS if due is None else max(0.0, due - now))
            if not events and due is None and selector.get_map():
                raise TimeoutError(f"no answer for {STALLED_SECONDS:g} seconds")
            for key, _ in events:
                if key.data.receive():
                    seen.note(key.data)
                    selector.unregister(key.data.socket)
                    idle.append(key.data)
    return seen.driven()


def _times(started: float, stretches: Sequence[tuple[float, float]]) -> Iterator[float]:
    for rate, seconds in stretches:
        yield from (started + place / rate for place in range(int(rate * seconds)))
        started += seconds


class _Seen:
    """Gathers answers."""

    def __init__(self) -> None:
        self.latencies: list[float] = []
        self.ended: list[float] = []
        self.statuses: list[int] = []
        self.bytes = 0
        self.cpu = time.process_time()
        self.started = time.perf_counter()

    def note(self, caller: "_Caller") -> float:
        """Count the caller's answer; what time it is."""
        now = time.perf_counter()
        self.latencies.append(now - caller.asked)
        self.ended.append(now - self.started)
        self.statuses.append(caller.status)
        self.bytes += caller.needed
        return now

    def driven(self) -> Driven:
        """All of it."""
        seconds = time.perf_counter() - self.started
        failed = sum(status != OK for status in self.statuses)
        return Driven(
            seconds, tuple(self.latencies), time.process_time() - self.cpu, self.bytes, failed, tuple(self.ended), tuple(self.statuses)
        )


def _drive(url: str, requests: Sequence[bytes], callers: int, seconds: float | None, ramp_seconds: float = 0.0) -> Driven:
    waiting = iter(requests)
    seen = _Seen()
    # when each caller asks next, until it has asked; then it is the selector that knows
    due = [(seen.started + ramp_seconds * place / callers, place) for place in range(callers)]
    everyone = [_Caller(url) for _ in due]
    until = seen.started + seconds if seconds is not None else float("inf")
    with selectors.EpollSelector() as selector:
        while True:
            now = time.perf_counter()
            while due and due[0][0] <= now:
                caller = everyone[heapq.heappop(due)[1]]
                if now < until and caller.ask(waiting):
                    selector.register(caller.socket, selectors.EVENT_READ, caller)
            if not due and not selector.get_map():
                break
            events = selector.select(max(0.0, due[0][0] - now) if due else STALLED_SECONDS)
            if not events and not due:
                raise TimeoutError(f"no answer for {STALLED_SECONDS:g} seconds")
            for key, _ in events:
                caller = key.data
                if not caller.receive():
                    continue
                selector.unregister(caller.socket)
                now = seen.note(caller)
                if caller.pause:
                    heapq.heappush(due, (now + caller.pause, everyone.index(caller)))
                elif now < until and caller.ask(waiting):
                    selector.register(caller.socket, selectors.EVENT_READ, caller)
    for caller in everyone:
        caller.socket.close()
    return seen.driven()


def _pause(head: bytes) -> float:
    """Seconds after which a refused caller may come back; 0 where the lower-case head does not say."""
    for name, unit in ((b"\r\nretry-after-ms:", 0.001), (b"\r\nretry-after:", 1.0)):
        value = head.partition(name)[2].partition(b"\r\n")[0].strip()
        if value.isdigit():
            return max(0.001, int(value) * unit)
    return 0.0


class _Caller:
    """One connection that asks, waits for the whole answer and asks again; a new one where the server ends it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.asked = 0.0
        self.status = 0
        self.pause = 0.0
        self.needed = 0
        self._got = 0
        self._head = b""
        self._ends = False
        self.socket = connect(url)

    def ask(self, waiting: Iterator[bytes]) -> bool:
        """Send the next request; False when there is none."""
        request = next(waiting, None)
        if request is None:
            return False
        if self._ends:
            self.socket.close()
            self.socket = connect(self._url)
        self._head, self._got, self.needed, self.status, self.pause, self._ends = b"", 0, 0, 0, 0.0, False
        self.asked = time.perf_counter()
        try:
            self.socket.sendall(request)
        except ConnectionError:
            self._ends = True  # seen again when the answer is read
        return True

    def receive(self) -> bool:
        """Take in what has arrived; True when the answer is whole, or when it will never be: then `status` is 0."""
        data = received(self.socket, RECEIVE_BYTES)
        if not data:
            self.status, self._ends = 0, True
            return True
        self._got += len(data)
        if not self.needed:
            self._head += data
            head, end, _ = self._head.partition(b"\r\n\r\n")
            if not end:
                return False
            fields = head.lower()
            self.status = int(head[9:12])
            self.pause = _pause(fields) if self.status in REFUSED else 0.0
            if self.status == BUSY and not self.pause:
                self.status = -BUSY
            self._ends = b"\r\nconnection: close" in fields
            length = fields.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self.needed = len(head) + len(end) + int(length)
        return self._got >= self.needed


if __name__ == "__main__":
    answer_parent(_offer if sys.argv[1:] == ["offer"] else _drive)
