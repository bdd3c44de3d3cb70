"""Keeps a task ours while it is worked on, and tells people how far it is."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rag.errors import MillraceError, Overloaded, Unavailable
from rag.ports import Clock, IngestRecords
from rag.types import IngestTask

T = TypeVar("T")

RENEWALS_PER_LEASE = 3
CERTAIN_SHARE = 0.8  # of the lease: the time of the call that took it is not known to the millisecond
REPORT_EVERY_SECONDS = 1.0
LINE_EVERY_SECONDS = 3.0
MILESTONES = ("found ", "waits ")  # how lines begin that are told whenever they come


class LeaseLost(MillraceError):
    """The task was stopped, superseded or taken over. Nobody's failure: it is dropped."""


class Lease:
    """A claimed task. Everything written in its name goes through here, so that a lost one is noticed at once."""

    def __init__(self, records: IngestRecords, task: IngestTask, worker: str, lease_seconds: float, clock: Clock = time.monotonic) -> None:
        self._records = records
        self._task = task
        self._worker = worker
        self._seconds = lease_seconds
        self._clock = clock
        self._held_until = clock() + lease_seconds * CERTAIN_SHARE
        self._next_report = 0.0
        self._next_line = 0.0

    @property
    def certain(self) -> bool:
        """Whether no other worker can have the task by now: until then, a lost lease means stopped or superseded."""
        return self._clock() < self._held_until

    async def hold(self, work: Callable[[], Awaitable[T]]) -> T:
        """The work's result, the lease renewed meanwhile. Raises `LeaseLost`, after the work was cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                renewing = group.create_task(self._renew())
                result = await work()
                renewing.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return result

    async def tell(self, progress: float, line: str) -> None:
        """Show progress, not too often, and every milestone. Raises `LeaseLost`."""
        now = self._clock()
        milestone = line.startswith(MILESTONES)
        if now < self._next_report and not milestone:
            return
        self._next_report = now + REPORT_EVERY_SECONDS
        if now < self._next_line and not milestone:
            line = ""
        elif line:
            self._next_line = now + LINE_EVERY_SECONDS
        try:
            held = await self._records.report(self._task, self._worker, progress, line)
        except (Unavailable, Overloaded):
            return  # the renewal knows how long that may last
        if not held:
            raise LeaseLost(f"the lease of task {self._task.id} is lost")

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._seconds / RENEWALS_PER_LEASE)
            asked = self._clock()
            try:
                held = await self._records.renew(self._task, self._worker, self._seconds)
            except (Unavailable, Overloaded):
                held = asked < self._held_until
            else:
                if held:
                    self._held_until = asked + self._seconds * CERTAIN_SHARE
            if not held:
                raise LeaseLost(f"the lease of task {self._task.id} is lost")
