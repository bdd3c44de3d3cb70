"""Claims ingestion tasks and works on them until it is cancelled."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import structlog

from rag.errors import (
    Damaged,
    DeadlineExceeded,
    InvalidArgument,
    MillraceError,
    NotFound,
    Overloaded,
    ParseFailed,
    ProviderError,
    ProviderRefused,
    Unavailable,
)
from rag.ingest.lease import Lease, LeaseLost
from rag.ingest.pipeline import Outcome, Pipeline, patiently
from rag.ports import Clock, Embedder, IngestRecords
from rag.types import IngestTask

# Documents under way cost little: they wait for a parser process or for their turn at the embedder, their chunks spooled. Many of
# them let small ones pass large ones; a share each keeps one tenant's large ones from taking all the places.
DOCUMENTS_AT_ONCE = 32
TENANT_SHARE = 4  # a tenant has at most a quarter of the places
LEASE_SECONDS = 15.0
POLL_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 10.0

_WILL_FAIL_AGAIN = (ParseFailed, InvalidArgument, NotFound, Damaged, ProviderRefused)
_MAY_WORK_LATER = (Unavailable, Overloaded, ProviderError, DeadlineExceeded)

EmbedderOf = Callable[[str], Embedder]
"""The model that a task names. Raises `NotFound` for one that is not configured."""

OnOutcome = Callable[[str, int], None]
"""Told `done`, `failed` or `lost`, and how many chunks the document has."""

_log = structlog.get_logger("millrace.ingest")


def _nobody(_outcome: str, _chunks: int) -> None:
    """The outcome interests nobody."""


class Worker:
    """Works on the tasks of `records`, some at a time, as long as `run` runs.

    Cancelling `run` stops it: tasks under way are given back, and their chunks are replaced by whoever does them again.
    """

    def __init__(
        self, records: IngestRecords, pipeline: Pipeline, embedder_of: EmbedderOf, *, name: str,
        documents_at_once: int = DOCUMENTS_AT_ONCE, lease_seconds: float = LEASE_SECONDS, poll_seconds: float = POLL_SECONDS,
        on_outcome: OnOutcome = _nobody, clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        """`name` tells this worker from all others, also from one that ran in its place before."""
        self._records = records
        self._pipeline = pipeline
        self._embedder_of = embedder_of
        self._name = name
        self._documents_at_once = documents_at_once
        self._documents_a_tenant = max(1, documents_at_once // TENANT_SHARE)
        self._under_way: Counter[str] = Counter()
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._on_outcome = on_outcome
        self._clock = clock
        self._work_waits = asyncio.Event()
        self._running = False

    @property
    def alive(self) -> bool:
        """Whether `run` runs."""
        return self._running

    def wake(self) -> None:
        """Look for a task now: one was just written. Only for callers on the loop."""
        self._work_waits.set()

    async def run(self) -> None:
        """Claim and work until cancelled. Never raises otherwise."""
        self._running = True
        free = asyncio.Semaphore(self._documents_at_once)
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await free.acquire()
                    task = await self._next_task()
                    self._under_way[task.tenant_id] += 1
                    group.create_task(self._work(task)).add_done_callback(lambda _, tenant=task.tenant_id: self._ended(tenant, free))
        finally:
            self._running = False

    def _ended(self, tenant_id: str, free: asyncio.Semaphore) -> None:
        self._under_way[tenant_id] -= 1
        if not self._under_way[tenant_id]:
            del self._under_way[tenant_id]
        free.release()
        self.wake()  # what waits may be of this tenant

    async def _next_task(self) -> IngestTask:
        backoff = self._poll_seconds
        while True:
            self._work_waits.clear()
            full = [tenant_id for tenant_id, count in self._under_way.items() if count >= self._documents_a_tenant]
            try:
                task = await self._records.claim(self._name, self._lease_seconds, full)
            except MillraceError as error:
                _log.warning("no task can be claimed", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(backoff)
                backoff = min(LONGEST_BACKOFF_SECONDS, backoff * 2)
                continue
            except Exception:  # noqa: BLE001 - whatever happened, the worker goes on
                _log.exception("claiming a task failed")
                await asyncio.sleep(LONGEST_BACKOFF_SECONDS)
                continue
            if task is not None:
                return task
            backoff = self._poll_seconds
            try:
                async with asyncio.timeout(self._poll_seconds):
                    await self._work_waits.wait()
            except TimeoutError:
                pass

    async def _work(self, task: IngestTask) -> None:
        """The whole life of a claimed task; every way it may end is written down, and none reaches the caller."""
        lease = Lease(self._records, task, self._name, self._lease_seconds, self._clock)
        try:
            outcome = await lease.hold(lambda: self._do(task, lease))
        except LeaseLost:
            await self._drop(task, lease)
        except asyncio.CancelledError:
            await self._give_back(task)
            raise
        except _WILL_FAIL_AGAIN as error:
            await self._fail(task, lease, str(error), retry=False)
        except _MAY_WORK_LATER as error:
            _log.warning("ingestion task will be tried again", task=task.id, error=f"{type(error).__name__}: {error}")
            counts = not isinstance(error, Unavailable)  # a part of ours that is away comes back, and the document has no part in it
            await self._fail(task, lease, f"{error}; it will be tried again", retry=True, counts=counts)
        except Exception:  # noqa: BLE001 - the task ends, and the log says why
            _log.exception("ingestion task failed", task=task.id, document=task.document_id)
            await self._fail(task, lease, "the document could not be ingested because of an internal error", retry=False)
        else:
            await self._finish(task, outcome)

    async def _do(self, task: IngestTask, lease: Lease) -> Outcome:
        if task.kind == "parse":
            return await self._pipeline.ingest(task, self._embedder_of(task.embedding_model), lease.tell)
        work = {
            "purge": self._pipeline.purge, "sweep": self._pipeline.discard, "drop": self._pipeline.drop, "rename": self._records.rename,
        }  # fmt: skip
        await work[task.kind](task)
        return Outcome(0, 0, 0.0)

    async def _finish(self, task: IngestTask, outcome: Outcome) -> None:
        """Write that the task is done, its lease no longer renewed: a renewal beside it would find no task and call that a loss.

        Nothing is discarded from here on. A finish that seems to have failed may have happened, and the chunks are a document's
        then; if it has not, the task is claimed again, or whoever ended it (a stop, a newer run, a deletion) left word for them.
        """
        counts = {"chunk_count": outcome.chunk_count, "token_count": outcome.token_count}
        try:
            done = await patiently(lambda: self._records.finish(task, self._name, **counts, message=_summary(outcome)))
        except asyncio.CancelledError:
            await self._give_back(task)
            raise
        except Exception:  # noqa: BLE001 - the lease runs out, and the task is claimed again
            _log.exception("the end of an ingestion task could not be written", task=task.id)
            return
        self._on_outcome("done" if done else "lost", outcome.chunk_count if done else 0)

    async def _fail(self, task: IngestTask, lease: Lease, message: str, *, retry: bool, counts: bool = True) -> None:
        if task.kind == "parse":
            await self._discard(task, lease)
        try:
            await self._records.fail(task, self._name, message, retry=retry, counts=counts)
            self._on_outcome("failed", 0)
        except Exception:  # noqa: BLE001 - nothing more can be done for the task
            # the lease runs out, and the task is claimed again
            _log.exception("the failure of an ingestion task could not be written", task=task.id)

    async def _drop(self, task: IngestTask, lease: Lease) -> None:
        self._on_outcome("lost", 0)
        if task.kind == "parse":
            await self._discard(task, lease)

    async def _discard(self, task: IngestTask, lease: Lease) -> None:
        """Leave nothing half-visible, unless another worker may be storing the same chunks by now."""
        if not lease.certain:
            return
        try:
            await self._pipeline.discard(task)
        except Exception:  # noqa: BLE001 - nothing more can be done for the task
            _log.exception("chunks of a dropped task could not be removed", task=task.id, document=task.document_id)

    async def _give_back(self, task: IngestTask) -> None:
        try:
            await self._records.give_back(task, self._name)
        except Exception:  # noqa: BLE001 - the lease ends by itself
            _log.exception("an ingestion task could not be given back", task=task.id)


def _summary(outcome: Outcome) -> str:
    return "\n".join((*outcome.warnings, f"Task done ({outcome.seconds:.1f} s)"))
