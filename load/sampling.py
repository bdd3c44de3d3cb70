"""What a server's process does and what it and those below it hold, sampled inside it by a thread."""

import asyncio
import gc
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from api.metrics import HasState
from load.processes import family_cpu_seconds, family_memory

SAMPLE_SECONDS = 0.02
BEAT_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Held:
    """What the server holds at one moment.

    Bytes are those of its process and all below it, a page they share counted in `resident` of each; so are `cpu_seconds`, since it
    began. `threads`, whether Python's or not, `descriptors` and `tasks` are its own process's.
    """

    resident: int
    private: int
    threads: int
    descriptors: int
    tasks: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was seen since the last time they were asked for.

    `busy` counts samples by how many threads of all lanes, and of the search process, worked, `outside` by how many of them did
    anything but wait for the staged store. `late` counts by how many milliseconds, rounded down, the event loop woke a timer too late;
    `longest_collection_ms` is the CPU time of the longest pause for the garbage collector.
    """

    busy: Mapping[int, int]
    outside: Mapping[int, int]
    by_lane: Mapping[str, Mapping[int, int]]
    late: Mapping[int, int]
    longest_collection_ms: float
    held: Held

    @property
    def loop(self) -> str:
        """How the event loop fared, in words."""
        late = f"{share_below(self.late, 0.5)} ms (median), {share_below(self.late, 0.99)} (p99), {max(self.late, default=0)} (most)"
        return f"event loop late by {late}; longest garbage collection {self.longest_collection_ms:.0f} ms of CPU"


def share_below(counts: Mapping[int, int], share: float) -> int:
    """The smallest number that is at least that share of the samples."""
    total, seen = sum(counts.values()), 0
    for number in sorted(counts):
        seen += counts[number]
        if seen >= share * total:
            return number
    return 0


def mean_of(counts: Mapping[int, int]) -> float:
    """The samples' mean."""
    return sum(number * count for number, count in counts.items()) / max(1, sum(counts.values()))


class Watch:
    """How many threads wait for the staged store now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.searching = 0

    @contextmanager
    def during_search(self) -> Iterator[None]:
        """Around a wait for the staged store."""
        with self._lock:
            self.searching += 1
        try:
            yield
        finally:
            with self._lock:
                self.searching -= 1


class Sampler(threading.Thread):
    """Samples the lanes, and what works like one, every few milliseconds."""

    def __init__(self, lanes: Sequence[HasState], loop: asyncio.AbstractEventLoop, watch: Watch) -> None:
        super().__init__(daemon=True)
        self._lanes = lanes
        self._loop = loop
        self._watch = watch
        self._reset()

    def _reset(self) -> None:
        self._busy: Counter[int] = Counter()
        self._outside: Counter[int] = Counter()
        self._by_lane: dict[str, Counter[int]] = {lane.state.name: Counter() for lane in self._lanes}
        self._late: Counter[int] = Counter()
        self._longest_collection = 0.0

    def listen(self) -> None:
        """Watch the loop, on it, and the garbage collector."""
        gc.callbacks.append(self._note_collection)
        self._loop.call_soon(self._beat, self._loop.time())

    def _beat(self, due: float) -> None:
        self._late[int(1000 * (self._loop.time() - due))] += 1
        self._loop.call_later(BEAT_SECONDS, self._beat, self._loop.time() + BEAT_SECONDS)

    def _note_collection(self, phase: str, _: object) -> None:
        if phase == "start":
            self._collection_began = time.thread_time()
        else:
            self._longest_collection = max(self._longest_collection, time.thread_time() - self._collection_began)

    def run(self) -> None:
        while True:
            busy = 0
            for lane in self._lanes:
                state = lane.state
                self._by_lane[state.name][state.busy] += 1
                busy += state.busy
            self._busy[busy] += 1
            self._outside[max(0, busy - self._watch.searching)] += 1
            time.sleep(SAMPLE_SECONDS)

    def figures(self) -> Figures:
        """What was seen since the last call."""
        by_lane = {name: dict(counts) for name, counts in self._by_lane.items()}
        longest = 1000 * self._longest_collection
        seen = Figures(dict(self._busy), dict(self._outside), by_lane, dict(self._late), longest, self._held())
        self._reset()
        return seen

    def _held(self) -> Held:
        process_id = os.getpid()
        memory = family_memory(process_id)
        return Held(
            memory.resident, memory.private, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")),
            len(asyncio.all_tasks(self._loop)), family_cpu_seconds(process_id),
        )  # fmt: skip
