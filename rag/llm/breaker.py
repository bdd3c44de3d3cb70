"""A circuit breaker: an endpoint that keeps failing is left alone for a while, then asked by one call only.

Pattern: M. Nygard, "Release It!", chapter 5. Used on the event loop only; it has no lock.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rag.errors import ProviderBusy, ProviderError, ProviderRefused, ProviderUnreachable
from rag.ports import Clock

State = Literal["closed", "open", "half_open"]

_WINDOW_CALLS = 100


class CircuitOpen(ProviderUnreachable):
    """The endpoint failed too often and is not asked now. Nothing was sent."""


class NoTurn(ProviderBusy):
    """Our own limit of calls at once left no room for this one: no fault of the endpoint."""


class Breaker:
    """Opens when, of the calls that ended within the window, at least `min_calls` did and `failure_ratio` of them failed.

    Open, it refuses calls for `rest_seconds`, twice as long each time it opens again without a success in between, up to
    `longest_rest_seconds`. Then it is half open: one call goes through, the others are refused until that one has ended. An
    endpoint that names a time to come back is left alone until then, but not longer than the longest rest.

    A rejected request (4xx other than 429) says nothing about the endpoint's health, and neither does a cancelled call.
    """

    def __init__(
        self,
        name: str,
        *,
        window_seconds: float = 30.0,
        min_calls: int = 5,
        failure_ratio: float = 0.5,
        rest_seconds: float = 2.0,
        longest_rest_seconds: float = 60.0,
        clock: Clock = time.monotonic,
    ) -> None:
        """`name` is what messages and figures call the endpoint."""
        self.name = name
        self._window_seconds = window_seconds
        self._min_calls = min_calls
        self._failure_ratio = failure_ratio
        self._rest_seconds = rest_seconds
        self._longest_rest_seconds = longest_rest_seconds
        self._clock = clock
        self._ended: deque[tuple[float, bool]] = deque(maxlen=_WINDOW_CALLS)
        self._openings = 0
        self._open_until = 0.0
        self._probing = False
        # Counts changes of state: a call that ends in another era than it began in says nothing about this one.
        self._era = 0

    @property
    def state(self) -> State:
        """closed: calls go through; open: none does; half_open: one does."""
        if not self._openings:
            return "closed"
        return "open" if self._clock() < self._open_until else "half_open"

    def check(self) -> None:
        """Raise `CircuitOpen` when a call would be refused now."""
        if self._openings and (self._probing or self._clock() < self._open_until):
            raise CircuitOpen(f"{self.name} failed too often and is left alone for a while")

    @contextmanager
    def watch(self) -> Iterator[Callable[[ProviderError], bool]]:
        """Around one call: learns from how it ends. Raises `CircuitOpen` when the call must not be made.

        A call of several attempts tells each failed one to the function it is given, which answers whether another may be made.
        """
        self.check()
        era, probe = self._era, bool(self._openings)
        self._probing = probe
        told: list[BaseException] = []

        def attempt_failed(error: ProviderError) -> bool:
            told.append(error)
            self._learn(era, probe, error)
            return era == self._era

        try:
            yield attempt_failed
        except BaseException as error:
            if error not in told:
                self._learn(era, probe, error)
            raise
        else:
            self._learn(era, probe, None)
        finally:
            if probe and era == self._era:
                self._probing = False

    def _learn(self, era: int, probe: bool, error: BaseException | None) -> None:
        if era != self._era:
            return
        # A stream is closed (GeneratorExit) by a reader who has got what he wanted.
        good = error is None or isinstance(error, GeneratorExit)
        failed = isinstance(error, ProviderError) and not isinstance(error, ProviderRefused | NoTurn)
        if probe:
            if good or isinstance(error, ProviderRefused):
                self._close()
            elif failed:
                self._open(error)
        elif good:
            self._ended.append((self._clock(), False))
        elif failed:
            self._ended.append((self._clock(), True))
            if _asked_for(error) or self._fails_too_often():
                self._open(error)

    def _fails_too_often(self) -> bool:
        oldest = self._clock() - self._window_seconds
        while self._ended[0][0] < oldest:
            self._ended.popleft()
        failures = sum(failed for _, failed in self._ended)
        return len(self._ended) >= self._min_calls and failures >= self._failure_ratio * len(self._ended)

    def _open(self, error: BaseException | None) -> None:
        doubled = self._rest_seconds * 2 ** min(self._openings, 16)
        rest = min(max(doubled, _asked_for(error)), self._longest_rest_seconds)
        self._open_until = self._clock() + rest
        self._openings += 1
        self._begin_era()

    def _close(self) -> None:
        self._openings = 0
        self._begin_era()

    def _begin_era(self) -> None:
        self._era += 1
        self._probing = False
        self._ended.clear()


def _asked_for(error: BaseException | None) -> float:
    """Seconds the endpoint asked to be left alone for, 0 when it did not."""
    return (error.retry_after_seconds or 0.0) if isinstance(error, ProviderBusy) else 0.0
