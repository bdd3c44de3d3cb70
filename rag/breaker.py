"""A circuit breaker: what keeps failing is left alone for a while, then asked by one call only.

Pattern: M. Nygard, "Release It!", chapter 5. For calls on the event loop and on threads alike.
"""

import threading
import time
from collections import deque
from types import TracebackType
from typing import Literal, Self

from rag.errors import MillraceError, NotFound, Unavailable
from rag.ports import Clock

State = Literal["closed", "open", "half_open"]

_WINDOW_CALLS = 100
_MOST_DOUBLINGS = 16


class CircuitOpen(Unavailable):
    """The part failed too often and is not asked now. Nothing was sent."""


class NotWaitedFor(Unavailable):
    """The service gave no answer in a time too short to tell whether it would have."""


class Unanswered(Unavailable):
    """A service did not answer, or could not be reached: what its `ServiceBreaker` counts."""


class Breaker:
    """Opens when, of the calls that ended within the window, at least `min_calls` did and `failure_ratio` of them failed.

    Open, it refuses calls for `rest_seconds`, twice as long each time it opens again without a success in between, up to
    `longest_rest_seconds`. Then it is half open: one call goes through, the others are refused until that one has an answer. A
    part that names a time to come back is left alone until then, but not longer than the longest rest.

        with breaker.watch():
            ask()

    This class is for parts of ours, which fail with `Unavailable`; a subclass for something else says what its failures are.
    A cancelled call says nothing about the part's health, and neither does any other error.
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
        """`name` is what messages call the part."""
        self.name = name
        self._window_seconds = window_seconds
        self._min_calls = min_calls
        self._failure_ratio = failure_ratio
        self._rest_seconds = rest_seconds
        self._longest_rest_seconds = longest_rest_seconds
        self._clock = clock
        self._lock = threading.Lock()
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
        """Raise the refusal when a call would be refused now."""
        if self._openings and (self._probing or self._clock() < self._open_until):
            raise self.refusal(max(0.0, self._open_until - self._clock()))

    def watch(self) -> "Watch":
        """Around one call: learns from how it ends. Entering it raises the refusal when the call must not be made."""
        return Watch(self)

    # What a subclass may say otherwise.
    def refusal(self, seconds: float) -> MillraceError:
        """The error of a call that is not made; the part may be asked again in `seconds`."""
        return CircuitOpen(f"{self.name} failed too often and is left alone for a while", max(1.0, seconds))

    def is_failure(self, error: BaseException) -> bool:
        """Whether the error is the part's fault."""
        return isinstance(error, Unavailable)

    def is_answer(self, error: BaseException) -> bool:
        """Whether the error shows that the part is well."""
        return False

    def asked_for(self, error: BaseException) -> float:
        """Seconds the part asked to be left alone for, 0 when it did not."""
        return 0.0

    # What a watch tells.
    def _begin(self) -> tuple[int, bool]:
        """The era in which the call begins, and whether it is the probe."""
        with self._lock:
            self.check()
            self._probing = bool(self._openings)
            return self._era, self._probing

    def _learn(self, era: int, probe: bool, error: BaseException | None) -> bool:
        """Take in how an attempt of a call ended; whether another attempt may be made."""
        with self._lock:
            if era != self._era:
                return False
            failed = error is not None and self.is_failure(error)
            if probe:
                if error is None or self.is_answer(error):
                    self._close()
                elif failed:
                    self._open(self.asked_for(error))
            elif error is None or failed:
                self._ended.append((self._clock(), failed))
                asked_for = self.asked_for(error) if error is not None else 0.0
                if failed and (asked_for or self._fails_too_often()):
                    self._open(asked_for)
            return era == self._era

    def _release(self, era: int) -> None:
        with self._lock:
            if era == self._era:
                self._probing = False

    def _fails_too_often(self) -> bool:
        oldest = self._clock() - self._window_seconds
        while self._ended[0][0] < oldest:
            self._ended.popleft()
        failures = sum(failed for _, failed in self._ended)
        return len(self._ended) >= self._min_calls and failures >= self._failure_ratio * len(self._ended)

    def _open(self, asked_for: float) -> None:
        doubled = self._rest_seconds * 2 ** min(self._openings, _MOST_DOUBLINGS)
        self._open_until = self._clock() + min(max(doubled, asked_for), self._longest_rest_seconds)
        self._openings += 1
        self._begin_era()

    def _close(self) -> None:
        self._openings = 0
        self._begin_era()

    def _begin_era(self) -> None:
        self._era += 1
        self._probing = False
        self._ended.clear()


class ServiceBreaker(Breaker):
    """Counts that a service does not answer. One that refuses us, or has not got what was asked for, has answered."""

    def is_failure(self, error: BaseException) -> bool:
        return isinstance(error, Unanswered)

    def is_answer(self, error: BaseException) -> bool:
        return isinstance(error, NotFound | Unavailable) and not isinstance(error, Unanswered | NotWaitedFor)


class Watch:
    """One call as its breaker sees it."""

    __slots__ = ("_breaker", "_era", "_probe", "_told")

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._told: BaseException | None = None

    def __enter__(self) -> Self:
        self._era, self._probe = self._breaker._begin()
        return self

    def attempt_failed(self, error: BaseException) -> bool:
        """Tell of a failed attempt before the call is over; whether another one may be made."""
        self._told = error
        return self._breaker._learn(self._era, self._probe, error)

    def answered(self) -> None:
        """Tell that an answer has begun, of which the rest takes long: a probe has found out what it was sent for."""
        if self._probe:
            self._breaker._learn(self._era, True, None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # A stream is closed (GeneratorExit) by a reader who has got what he wanted.
        if error is None or error is not self._told:
            self._breaker._learn(self._era, self._probe, None if isinstance(error, GeneratorExit) else error)
        if self._probe:
            self._breaker._release(self._era)
