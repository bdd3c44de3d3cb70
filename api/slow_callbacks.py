"""Finds what holds the event loop: steps of tasks that use more of its thread's CPU time than they may.

For tests, load runs and the operator whose event loop lags. CPU time and not the clock, so that a busy machine, which may stop the
thread anywhere, accuses nobody. Works with any loop: each task's coroutine is wrapped so that its steps can be timed, which costs
one and a half microseconds a step; a thread looks where the loop's thread is when a step has been running for long, and whether
the loop is busy for long without any step: then it is a callback (a protocol's, a timer's) that holds it.
"""

import asyncio
import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

LOOK_SECONDS = 0.005
# of the time between two looks: less CPU means that the loop rested in between
BUSY_SHARE = 0.05
CALLBACK = "callback"
ROOT = str(Path(__file__).parents[1]) + os.sep
INNERMOST = 3
OURS = 5


@dataclass(frozen=True, slots=True)
class SlowStep:
    """A task's step that held the loop: CPU seconds, the task's coroutine, and where it was seen most often, innermost last.

    Of a callback outside of any task, `task` is `CALLBACK`, and it may have gone on after it was reported.
    """

    seconds: float
    task: str
    frames: tuple[str, ...]


Report = Callable[[SlowStep], None]


@contextmanager
def watching(loop: asyncio.AbstractEventLoop, seconds: float, report: Report) -> Iterator[None]:
    """Report, on the loop, each step of a task begun inside the block that takes longer than `seconds`, and each callback.

    Call it on the loop's thread.
    """
    watch = _Watch(loop, seconds, report)
    before = loop.get_task_factory()
    loop.set_task_factory(watch.make_task)
    looking = threading.Thread(target=watch.look, args=(threading.get_ident(),), name="millrace-slow-callbacks", daemon=True)
    looking.start()
    gc.callbacks.append(watch.collected)
    try:
        yield
    finally:
        gc.callbacks.remove(watch.collected)
        loop.set_task_factory(before)
        watch.ended.set()
        looking.join()


class _Watch:
    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, report: Report) -> None:
        self.loop = loop
        self.seconds = seconds
        self.report = report
        self.ended = threading.Event()
        self.step: list[tuple[str, ...]] | None = None  # where the step under way was seen; None between steps
        self.steps = 0
        self.collecting = 0.0

    def make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(_Timed(coroutine, self), loop=loop, **options)

    def collected(self, phase: str, info: dict[str, int]) -> None:
        """The garbage collector began or ended somewhere. While it runs no other thread does, so nobody else could see it."""
        if phase == "start":
            self.collecting = time.thread_time()
        elif (step := self.step) is not None:
            ms = (time.thread_time() - self.collecting) * 1000
            step.append((f"{ms:.1f} ms of garbage collection, generation {info['generation']}",))

    def look(self, thread: int) -> None:
        """On a thread of its own: note where a step is that goes on for long, and whether something else does."""
        clock = time.pthread_getcpuclockid(thread)
        before: list[tuple[str, ...]] | None = None
        steps, looked, used = -1, time.monotonic(), time.clock_gettime(clock)
        outside = _Outside(used)
        while not self.ended.wait(LOOK_SECONDS):
            step = self.step
            if step is not None and step is before:
                step.append(_places(sys._current_frames().get(thread)))
            before = step
            begun = self.steps  # read before the clock, and compared after it: no step's time may count as a callback's
            last_look, looked, last_used, used = looked, time.monotonic(), used, time.clock_gettime(clock)
            rested = used - last_used < BUSY_SHARE * (looked - last_look)
            if rested or self.step is not None or self.steps != steps:
                outside, steps = _Outside(used), begun
                continue
            outside.seen.append(_places(sys._current_frames().get(thread)))
            if used - outside.since > self.seconds and not outside.told:
                outside.told = True
                self.loop.call_soon_threadsafe(self.report, SlowStep(used - outside.since, CALLBACK, _most_seen(outside.seen)))


class _Outside:
    """The loop at work without a task's step: since when (its thread's CPU seconds), where it was seen, whether that was reported."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.seen: list[tuple[str, ...]] = []
        self.told = False


class _Timed(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are timed."""

    def __init__(self, inner: Coroutine[Any, Any, Any], watch: _Watch) -> None:
        self._inner = inner
        self._watch = watch
        self.__name__ = getattr(inner, "__name__", type(inner).__name__)
        self.__qualname__ = getattr(inner, "__qualname__", self.__name__)

    def send(self, value: Any) -> Any:
        return self._step(self._inner.send, value)

    def throw(self, *error: Any) -> Any:
        return self._step(self._inner.throw, *error)

    def close(self) -> None:
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._inner.__await__()

    def _step(self, call: Callable[..., Any], *values: Any) -> Any:
        watch = self._watch
        watch.steps += 1
        watch.step = seen = []
        started = time.thread_time()
        try:
            return call(*values)
        finally:
            spent = time.thread_time() - started
            watch.step = None
            if spent > watch.seconds:
                watch.report(SlowStep(spent, self.__qualname__, _most_seen(seen)))


def _most_seen(seen: list[tuple[str, ...]]) -> tuple[str, ...]:
    return Counter(seen).most_common(1)[0][0] if seen else ()


def _places(frame: FrameType | None) -> tuple[str, ...]:
    """The innermost calls, and the innermost ones of our own modules above them."""
    places: list[str] = []
    depth = ours = 0
    while frame is not None and ours < OURS:
        code = frame.f_code
        own = code.co_filename.startswith(ROOT) and "site-packages" not in code.co_filename and code.co_filename != __file__
        if own or depth < INNERMOST:
            places.append(f"{code.co_filename.removeprefix(ROOT)}:{frame.f_lineno} {code.co_name}")
        ours += own
        depth += 1
        frame = frame.f_back
    return tuple(reversed(places))
