"""Whether an upload, a search and a chat would work now, and which part is in the way if not."""

import asyncio
import io
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from api.parts import Parts
from db.services import system_service
from rag.errors import MillraceError, Unavailable, WritesHeld
from rag.llm.registry import Kind
from rag.ports import PROBES

log = structlog.get_logger("millrace.readiness")

FRESH_SECONDS = 1.0
WAITING_SECONDS = 0.05  # while something is in the way: whoever waits for a start wants to know when it is over
PART_DEADLINE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class PartState:
    """One part at one moment. `reason` is why it is not `ok`; of one that is, what is wrong with it that stops only some callers."""

    ok: bool
    reason: str
    elapsed_ms: float


class Readiness:
    """Asks every part, all at the same time, however often it is asked itself: once a second, or every 50 ms while one is not ready."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._asking: asyncio.Task[dict[str, PartState]] | None = None
        self._fresh_until = float("-inf")

    async def states(self) -> dict[str, PartState]:
        """Part name -> state."""
        if self._asking is None or (self._asking.done() and time.monotonic() > self._fresh_until):
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> dict[str, PartState]:
        checks: dict[str, Callable[[], Awaitable[str | None]]] = {
            "server": self._server,
            "database": self._database,
            "blobs": self._blobs,
            "store": self._store,
            "embedder": self._embedder,
            "chat": self._chat,
            "worker": self._worker,
        }
        states = await asyncio.gather(*(_state(check) for check in checks.values()))
        self._fresh_until = time.monotonic() + (FRESH_SECONDS if all(state.ok for state in states) else WAITING_SECONDS)
        return dict(zip(checks, states, strict=True))

    async def _server(self) -> None:
        if self._parts.drain.draining:
            raise Unavailable("the server is stopping")

    async def _database(self) -> str:
        """Held writes are no failure: searches and chats go on."""
        try:
            await self._parts.session.write(system_service.probe_write)
        except WritesHeld as error:
            return str(error)
        return ""

    async def _blobs(self) -> None:
        key = f"{PROBES}{uuid.uuid4().hex}"
        lane = self._parts.lanes.blob
        await lane.run(self._parts.blobs.put, key, io.BytesIO(b"ready"))
        await lane.run(self._parts.blobs.delete, key)

    async def _store(self) -> str:
        """Yellow is ready: what is rebuilt, or damaged of one tenant, stops no search of the others."""
        health = await self._parts.lanes.search.run(self._parts.store.health)
        if health["status"] == "red":
            raise Unavailable(health.get("error") or "the search store does not answer")
        return health.get("error", "")

    async def _embedder(self) -> None:
        warmup = self._parts.warmup
        if warmup is not None and warmup.reason:
            raise Unavailable(warmup.reason)
        self._not_left_alone(self._parts.models.default_embedding, "embedding")

    async def _chat(self) -> None:
        self._not_left_alone(self._parts.models.default_chat, "chat")

    def _not_left_alone(self, model: str, kind: Kind) -> None:
        """No call is made. An endpoint whose rest is over counts as ready: only a search or a chat can find out that it is."""
        breaker = self._parts.models.breaker_of(model, kind)
        if breaker is not None and breaker.state == "open":
            raise Unavailable(f"the default {kind} model is not asked now: {breaker.name} failed too often and is left alone for a while")

    async def _worker(self) -> None:
        worker = self._parts.worker
        if worker is not None and not worker.alive:
            raise Unavailable("the ingestion worker has stopped")


async def _state(check: Callable[[], Awaitable[str | None]]) -> PartState:
    """The part's state; what the check returns is to be told of a part that is ready."""
    started = time.perf_counter()
    ok, reason = False, ""
    try:
        async with asyncio.timeout(PART_DEADLINE_SECONDS):
            reason = await check() or ""
            ok = True
    except TimeoutError:
        reason = f"no answer within {PART_DEADLINE_SECONDS:g} seconds"
    except MillraceError as error:
        reason = str(error)
    except Exception:
        log.exception("a part could not be asked whether it is ready")
        reason = "failed unexpectedly"
    return PartState(ok, reason, round((time.perf_counter() - started) * 1000, 1))
