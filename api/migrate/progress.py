"""What a person at the terminal sees of a move: which part, how far, how fast, how long still."""

import time
from collections.abc import Callable
from typing import TextIO

EVERY_SECONDS = 1.0


class Progress:
    """Writes a line a second, and one at the end of each part."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._what, self._unit, self._total = "", "", 0
        self._done = self._before = 0
        self._began = self._next = 0.0

    def say(self, line: str) -> None:
        """A line by itself."""
        print(line, file=self._out, flush=True)

    def begin(self, what: str, unit: str, total: int, before: int = 0) -> None:
        """A part with so many units begins; `before` were done by an earlier run, and do not count for the speed."""
        self._what, self._unit, self._total = what, unit, total
        self._done = self._before = before
        self._began = self._clock()
        self._next = self._began + EVERY_SECONDS

    def add(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        if self._clock() >= self._next:
            self._next = self._clock() + EVERY_SECONDS
            self._show()

    def end(self) -> None:
        """The part is done."""
        self._total = self._done
        self._show()

    def _show(self) -> None:
        seconds = max(self._clock() - self._began, 1e-9)
        speed = (self._done - self._before) / seconds
        total = max(self._total, self._done)
        share = 100 if not total else 100 * self._done // total
        line = f"{self._what}: {self._done:,} of {total:,} {self._unit} ({share} %), {speed:,.0f}/s"
        if self._done < total and speed:
            line += f", {_time((total - self._done) / speed)} left"
        self.say(line)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
