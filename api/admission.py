"""Who is let in: beyond its capacity the server refuses at once, before any work, so that those it has let in keep their latency.

A request is *active* while it works here: neither waiting for a vendor nor for its client (`rag.threads.away`), so that a thousand
answers being streamed count for nothing. While it is calm everyone is let in whose expected wait, `active x the seconds that the
bottleneck takes for one request`, is within `patience_seconds`. When it is not, the server is *pressed* and lets as many be active as
keep the latency of calm times: the limit follows the ratio of the latencies of those let in to the usual ones of their routes (compare
Netflix' concurrency limits). It is calm again when nobody was refused for half a second.

Under pressure the tenants that ask share the places: one with more than its share is told 429, the others get theirs. Processes that
share a Redis share the places of those of them that are pressed (`api/shared_pressure.py`).
"""

import math
import os
import time
from collections.abc import Callable, Mapping

from api.usual import NEW, OLD, LateLoop, Usual
from rag.errors import Overloaded, TooManyRequests
from rag.ports import Clock
from rag.threads import Load

# The least that keeps the machine at work.
LEAST_ACTIVE = max(2, os.cpu_count() or 1)
CALM_AFTER_SECONDS = 0.5
CONTROL_SECONDS = 0.1
CONTROL_SAMPLES = 4
# How much slower than usual those let in may be; between the two the limit stays.
SLOW, FAST = 1.25, 1.1
# Tenants at work for each place: with more of them, a place each would be more than keeps the latency; with fewer, one tenant with
# many requests costs the others too many refusals.
MOST_TENANTS = 2
# A caller that has not asked for so long has no share.
PRESENT_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
SHORTEST_RETRY_SECONDS = 0.05
PROBE_SECONDS = 0.02


class Ticket(Load):
    """One request that was let in. `done` must be called once; what goes on after it (a thread nobody waits for) counts no more."""

    __slots__ = ("_active_seconds", "_admission", "_away", "_caller", "_done", "_era", "_passed", "_since")

    def __init__(self, admission: "Admission", caller: str) -> None:
        super().__init__()
        self._admission = admission
        self._caller = caller
        self._era = admission.era
        self._away = 0
        self._done = False
        self._passed = False
        self._active_seconds = 0.0
        self._since = admission.entered(caller)

    def leave(self) -> None:
        """As `Load.leave`."""
        self._away += 1
        if self.lane_seconds:
            self._pass()
        if self._away == 1 and not self._done:
            self._active_seconds += self._admission.left(self._caller) - self._since

    def come_back(self) -> None:
        """As `Load.come_back`."""
        self._away -= 1
        if not self._away and not self._done:
            self._since = self._admission.entered(self._caller)

    def done(self, route: str | None) -> None:
        """The request is over; its place is free. `route` is its template where it was answered, None where it was given up."""
        self._pass()
        if not self._away:
            self._active_seconds += self._admission.left(self._caller) - self._since
        self._done = True
        if route is not None:
            self._admission.learn(self._era, route, self._active_seconds, max(self.lane_seconds.values(), default=0.0))

    def _pass(self) -> None:
        """The first stretch of its work is over: a stream has many, and ends long after the one that others wait for."""
        if not self._passed:
            self._passed = True
            self._admission.passed()


class Admission:
    """Lets requests in or refuses them. Used on the event loop only."""

    def __init__(self, patience_seconds: float, *, clock: Clock = time.monotonic, on_refused: Callable[[str], None] | None = None) -> None:
        """`on_refused` is told "overload" or "share" for each request that is refused."""
        self._patience = patience_seconds
        self._clock = clock
        self._on_refused = on_refused or (lambda reason: None)
        self.active = 0
        self.limit = math.inf
        # Changes with every change between calm (even) and pressed (odd): what is learnt from a request holds for one era.
        self.era = 0
        self._active_of: dict[str, int] = {}
        self._asked_at: dict[str, float] = {}
        self._forget_at = 0.0
        self._last_refusal = -math.inf
        self._refusals = 0.0  # of about the last second
        self._refusals_at = 0.0
        self._usual_seconds: dict[str, Usual] = {}
        self._usual_active = Usual()
        self._lane_seconds = 0.0
        self._loop_seconds = 0.0
        self._slowness: list[float] = []
        self._control_at = 0.0
        self._window = LateLoop(clock)
        self._elsewhere_limit = 0.0
        self._elsewhere: Mapping[str, int] = {}

    @property
    def at_work(self) -> tuple[float, Mapping[str, int]]:
        """The limit, 0.0 in calm, and the number of active requests of each caller."""
        lately = self.pressed and self._clock() - self._last_refusal <= CALM_AFTER_SECONDS
        return (self.limit if lately else 0.0), self._active_of

    def hear(self, limit: float, active: Mapping[str, int]) -> None:
        """Take in `at_work` of all other processes together. It counts for shares: a caller has one of all processes."""
        self._elsewhere_limit, self._elsewhere = limit, active

    @property
    def pressed(self) -> bool:
        """Whether more ask than can be served."""
        return self.era % 2 == 1

    @property
    def expected_wait_seconds(self) -> float:
        """How long what is at work now will take."""
        return self.active * max(self._lane_seconds, self._loop_seconds)

    def admit(self, caller: str, patience: float = 1.0) -> Ticket:
        """A place for a request of this caller. `patience` is how many times as long as others it may wait.

        Raises `TooManyRequests` when only this caller has to wait, `Overloaded` when all have.
        """
        now = self._clock()
        self._note(caller, now)
        if self.pressed and now - self._last_refusal > CALM_AFTER_SECONDS:
            self._relax()
        if not self.pressed and self.expected_wait_seconds > self._patience * patience:
            self._press(now)
        if self.pressed and self.active >= self.limit:
            callers = len(self._asked_at.keys() | self._elsewhere.keys()) if self._elsewhere_limit else len(self._asked_at)
            has, places = self._active_of.get(caller, 0), self.limit
            if self._elsewhere_limit:
                has, places = has + self._elsewhere.get(caller, 0), places + self._elsewhere_limit
            if has >= max(1.0, places / callers) or callers == 1:
                raise self._refusal(now, of_all=callers == 1)
            if not has and len(self._active_of) >= MOST_TENANTS * self.limit:
                raise self._refusal(now, of_all=True)
        return Ticket(self, caller)

    def probe(self, late_seconds: float) -> None:
        """How late the event loop woke a timer just now; to be told every `PROBE_SECONDS` while requests are active."""
        per_request = self._window.closed(late_seconds)
        if per_request is not None:
            self._loop_seconds = per_request

    # ------------------------------------------------------------------------------------------------ for tickets
    def entered(self, caller: str) -> float:
        """One more is active. Returns the time."""
        now = self._clock()
        self.active += 1
        self._active_of[caller] = self._active_of.get(caller, 0) + 1
        self._window.busy(now, self.active)
        return now

    def left(self, caller: str) -> float:
        """One less is active. Returns the time."""
        now = self._clock()
        self.active -= 1
        left = self._active_of[caller] - 1
        if left:
            self._active_of[caller] = left
        else:
            del self._active_of[caller]
        self._window.busy(now, self.active)
        return now

    def passed(self) -> None:
        """One request more has done its first work."""
        self._window.passed += 1

    def learn(self, era: int, route: str, active_seconds: float, lane_seconds: float) -> None:
        """Take in how long an answered request was active, and how long it took the lane it took most of."""
        self._lane_seconds = self._lane_seconds * OLD + lane_seconds * NEW if self._lane_seconds else lane_seconds
        if era != self.era:
            return
        usual = self._usual_seconds.setdefault(route, Usual())
        if not self.pressed:
            now = self._clock()
            usual.take(active_seconds, now)
            self._usual_active.take(self.active + 1, now)
        elif usual.value:
            self._slowness.append(active_seconds / usual.value)
            self._control()

    # ------------------------------------------------------------------------------------------------ inside
    def _note(self, caller: str, now: float) -> None:
        self._asked_at[caller] = now
        if now > self._forget_at:
            self._forget_at = now + PRESENT_SECONDS / 4
            oldest = now - PRESENT_SECONDS
            self._asked_at = {name: at for name, at in self._asked_at.items() if at > oldest or name in self._active_of}

    def _press(self, now: float) -> None:
        self.era += 1
        self.limit = max(LEAST_ACTIVE, self._usual_active.value)
        self._last_refusal = now
        self._slowness.clear()

    def _relax(self) -> None:
        self.era += 1
        self.limit = math.inf

    def _control(self) -> None:
        now = self._clock()
        if now < self._control_at or len(self._slowness) < CONTROL_SAMPLES:
            return
        slowness = sum(self._slowness) / len(self._slowness)
        self._slowness.clear()
        self._control_at = now + CONTROL_SECONDS
        if slowness > SLOW:
            self.limit = max(float(LEAST_ACTIVE), self.limit * max(0.7, SLOW / slowness))
        elif slowness < FAST:
            self.limit += max(1.0, self.limit * 0.05)

    def _refusal(self, now: float, *, of_all: bool) -> Overloaded:
        """The error, which says when the queue and all that were refused of late could have been served."""
        self._refusals = self._refusals * math.exp(self._refusals_at - now) + 1
        self._refusals_at = self._last_refusal = now
        each = max(self._lane_seconds, self._loop_seconds, 0.001)
        seconds = min(LONGEST_RETRY_SECONDS, max(SHORTEST_RETRY_SECONDS, (self.active + self._refusals) * each))
        if of_all:
            self._on_refused("overload")
            return Overloaded("the server is at its capacity", seconds)
        self._on_refused("share")
        return TooManyRequests("this caller has its share of a server at its capacity", seconds)
