"""What admission learns from the requests it lets in: how long they usually take, and how fast a late event loop gets through them."""

from collections import deque

from rag.ports import Clock

FIRST_SAMPLES = 20
RISE_SECONDS = 60.0
LATE_SECONDS = 0.005
WINDOW_SECONDS, WINDOWS = 0.25, 4
NEW, OLD = 1 / 32, 1 - 1 / 32


class Usual:
    """The mean of calm times. It falls soon and rises slowly: the load that ends the calm must not count as usual."""

    __slots__ = ("_at", "_samples", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self._samples = 0
        self._at = 0.0

    def take(self, sample: float, now: float) -> None:
        """Take in a sample."""
        self._samples += 1
        if self._samples <= FIRST_SAMPLES:
            share = 1 / self._samples
        else:
            share = min(NEW, (now - self._at) / RISE_SECONDS) if sample > self.value else NEW
        self.value += (sample - self.value) * share
        self._at = now


class LateLoop:
    """Seconds a request takes of an event loop that is late: the time with active requests over those that did their work in it.

    Over the last second: a machine that lets the process wait for a moment is no queue.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.passed = 0
        self._busy_seconds = 0.0
        self._busy_since: float | None = None
        self._late: list[float] = []
        self._ends_at = 0.0
        self._last: deque[tuple[float, int, float]] = deque(maxlen=WINDOWS)

    def busy(self, now: float, active: int) -> None:
        """The number of active requests has changed."""
        if active and self._busy_since is None:
            self._busy_since = now
        elif not active and self._busy_since is not None:
            self._busy_seconds += now - self._busy_since
            self._busy_since = None

    def closed(self, late_seconds: float) -> float | None:
        """Take in the loop's lateness; at a window's end the seconds, 0 where the loop was in time, None where nobody passed."""
        self._late.append(late_seconds)
        now = self._clock()
        if now < self._ends_at:
            return None
        if self._busy_since is not None:
            self._busy_seconds += now - self._busy_since
            self._busy_since = now
        self._last.append((self._busy_seconds, self.passed, sum(self._late) / len(self._late)))
        self._late.clear()
        self._busy_seconds, self.passed, self._ends_at = 0.0, 0, now + WINDOW_SECONDS
        busy, passed, late = (sum(values) for values in zip(*self._last, strict=True))
        if late / len(self._last) <= LATE_SECONDS:
            return 0.0
        return busy / passed if passed else None
