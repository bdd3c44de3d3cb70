"""Who is let in: beyond its capacity the server refuses at once, before any work, so that those it has let in keep their latency.

A request is *active* while it works here: neither waiting for a vendor nor for its client (`rag.threads.away`), so that a thousand
answers being streamed count for nothing. While it is calm everyone is let in whose expected wait is within `patience_seconds`: the
sum of what the active requests usually take of a lane, each by its route, or the turns of a late event loop. When it is not, the server
is *pressed* and lets as many be active as keep the latency of calm times: the limit follows the ratio of the latencies of those let in
to the usual ones of their routes (compare Netflix' concurrency limits). It is calm again when nobody was refused for half a second.

Under pressure the tenants that ask share the places: one with more than its share is told 429, the others get theirs. Processes that
share a Redis share the places of those of them that are pressed (`api/shared_pressure.py`).
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

from api.usual import Usual
from rag.errors import Overloaded, TooManyRequests
from rag.ports import Clock
from rag.threads import Load

CALM_AFTER_SECONDS = 0.5
CONTROL_SECONDS = 0.1
CONTROL_SAMPLES = 4
# How much slower than usual those let in may be; between the two the limit stays.
SLOW, FAST = 1.25, 1.1
# What the limit rises by at a time, in places or as a share of it: with a whole place, one would be two half of the time.
RISE, RISE_SHARE = 0.25, 0.05
# Where nobody was let in for so long, there is a place more: requests that take a minute must not keep out all others for as long.
STUCK_SECONDS = 0.5
# Tenants at work for each place: with more of them, a place each would be more than keeps the latency; with fewer, one tenant with
# many requests costs the others too many refusals.
MOST_TENANTS = 2
# A caller that has not asked for so long has no share.
PRESENT_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
SHORTEST_RETRY_SECONDS = 0.05
# What is usual takes so long to follow what is higher.
USUAL_RISE_SECONDS = 60.0
PROBE_SECONDS = 0.02
# How late the loop is says the third of the last five probes, by size: a machine that stood still for a moment is no queue.
PROBES, LATER_PROBES = 5, 2
# of the loop, from a request's first bytes to its answer
TURNS = 10


class Route:
    """The requests of one route: how many are active, and the seconds that one usually takes of a lane and in all."""

    __slots__ = ("active", "lane_seconds", "seconds")

    def __init__(self, clock: Clock) -> None:
        self.active = 0
        self.lane_seconds = Usual(clock)
        self.seconds = Usual(clock, USUAL_RISE_SECONDS)


class Ticket(Load):
    """One request that was let in. `done` must be called once; what goes on after it (a thread nobody waits for) counts no more."""

    __slots__ = ("_active_seconds", "_admission", "_away", "_caller", "_done", "_era", "_route", "_since")

    def __init__(self, admission: "Admission", caller: str, route: Route) -> None:
        super().__init__()
        self._admission = admission
        self._caller = caller
        self._route = route
        self._era = admission.era
        self._away = 0
        self._done = False
        self._active_seconds = 0.0
        self._since = admission.entered(caller, route)

    def leave(self) -> None:
        """As `Load.leave`."""
        self._away += 1
        if self._away == 1 and not self._done:
            self._active_seconds += self._admission.left(self._caller, self._route) - self._since

    def come_back(self) -> None:
        """As `Load.come_back`."""
        self._away -= 1
        if not self._away and not self._done:
            self._since = self._admission.entered(self._caller, self._route)

    def done(self, *, answered: bool) -> None:
        """The request is over; its place is free. Nothing is learnt from one that was given up, or refused for what it asked."""
        if not self._away:
            self._active_seconds += self._admission.left(self._caller, self._route) - self._since
        self._done = True
        if answered:
            self._admission.learn(self._era, self._route, self._active_seconds, max(self.lane_seconds.values(), default=0.0))


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
        self.routes: dict[str, Route] = {}
        self._usual_active = Usual(clock, USUAL_RISE_SECONDS)
        self._late = deque([0.0] * PROBES, PROBES)
        self._slowness: list[float] = []
        self._control_at = 0.0
        self._let_in_at = 0.0
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
        """How long who comes now waits for those at work."""
        lanes = sum(route.active * route.lane_seconds.value for route in self.routes.values())
        return max(lanes, TURNS * sorted(self._late)[-1 - LATER_PROBES])

    def admit(self, caller: str, route: str = "", patience: float = 1.0) -> Ticket:
        """A place for a request of this caller. `route` is one of a bounded set of names, `patience` how many times as long it may wait.

        Raises `TooManyRequests` when only this caller has to wait, `Overloaded` when all have.
        """
        now = self._clock()
        self._note(caller, now)
        if self.pressed and now - self._last_refusal > CALM_AFTER_SECONDS:
            self._relax()
        if not self.pressed and self.expected_wait_seconds > self._patience * patience:
            self._press(now)
        if self.pressed and now - self._let_in_at > STUCK_SECONDS:
            self.limit, self._let_in_at = self.limit + 1, now
        if self.pressed and self.active + 1 > self.limit:
            callers = len(self._asked_at.keys() | self._elsewhere.keys()) if self._elsewhere_limit else len(self._asked_at)
            has, places = self._active_of.get(caller, 0), self.limit
            if self._elsewhere_limit:
                has, places = has + self._elsewhere.get(caller, 0), places + self._elsewhere_limit
            if has >= max(1.0, places / callers) or callers == 1:
                raise self._refusal(now, of_all=callers == 1)
            if not has and len(self._active_of) >= MOST_TENANTS * self.limit:
                raise self._refusal(now, of_all=True)
        known = self.routes.get(route)
        if known is None:
            known = self.routes[route] = Route(self._clock)
        self._let_in_at = now
        return Ticket(self, caller, known)

    def probe(self, late_seconds: float) -> bool:
        """Take in how late the event loop woke a timer just now; whether to do so again `PROBE_SECONDS` later: nobody waits when not."""
        if self.active:
            self._late.append(late_seconds)
        else:
            self._late.extend([0.0] * PROBES)
        return self.active > 0

    # ------------------------------------------------------------------------------------------------ for tickets
    def entered(self, caller: str, route: Route) -> float:
        """One more is active. Returns the time."""
        self.active += 1
        route.active += 1
        self._active_of[caller] = self._active_of.get(caller, 0) + 1
        return self._clock()

    def left(self, caller: str, route: Route) -> float:
        """One less is active. Returns the time."""
        self.active -= 1
        route.active -= 1
        left = self._active_of[caller] - 1
        if left:
            self._active_of[caller] = left
        else:
            del self._active_of[caller]
        return self._clock()

    def learn(self, era: int, route: Route, active_seconds: float, lane_seconds: float) -> None:
        """Take in how long an answered request was active, and how long it took the lane it took most of."""
        route.lane_seconds.take(lane_seconds)
        if era != self.era:
            return
        if not self.pressed:
            route.seconds.take(active_seconds)
            self._usual_active.take(self.active + 1)
        elif route.seconds.value:
            self._slowness.append(active_seconds / route.seconds.value)
            self._control()

    # ------------------------------------------------------------------------------------------------ inside
    def _note(self, caller: str, now: float) -> None:
        self._asked_at[caller] = now
        if now > self._forget_at:
            self._forget_at = now + PRESENT_SECONDS / 4
            oldest = now - PRESENT_SECONDS
            self._asked_at = {name: at for name, at in self._asked_at.items() if at > oldest or name in self._active_of}

    @property
    def _least(self) -> float:
        """As many as are active in calm."""
        return max(1.0, self._usual_active.value)

    def _press(self, now: float) -> None:
        self.era += 1
        self.limit = self._least
        self._last_refusal = self._let_in_at = now
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
            self.limit = max(self._least, self.limit * max(0.7, SLOW / slowness))
        elif slowness < FAST:
            self.limit += max(RISE, self.limit * RISE_SHARE)

    def _refusal(self, now: float, *, of_all: bool) -> Overloaded:
        """The error, which says when the queue and all that were refused of late could have been served."""
        self._refusals = self._refusals * math.exp(self._refusals_at - now) + 1
        self._refusals_at = self._last_refusal = now
        each = max(self.expected_wait_seconds / self.active, 0.001)
        seconds = min(LONGEST_RETRY_SECONDS, max(SHORTEST_RETRY_SECONDS, (self.active + self._refusals) * each))
        if of_all:
            self._on_refused("overload")
            return Overloaded("the server is at its capacity", seconds)
        self._on_refused("share")
        return TooManyRequests("this caller has its share of a server at its capacity", seconds)
