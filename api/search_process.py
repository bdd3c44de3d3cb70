"""Searches of the embedded store in a process of their own.

A search is a hundred short steps of native code, each of which gives the interpreter away and has to get it back. Beside an event loop
that has it half of the time that takes longer than searching (docs/adr/0030-search-process.md). The process answers on as many
socket pairs as it has threads, one question on each at a time; it ends when they do, and so when this process is gone. Until it is
ready, and whenever it has died until there is another one, the threads of this process search.
"""

import asyncio
import copyreg
import pickle
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import structlog

from api.restarts import Restarts
from rag.errors import Overloaded
from rag.nlp.find import Entries, Finder, Found, Wanted
from rag.nlp.fuse import Ranking
from rag.threads import LaneState, current_load
from rag.types import Candidates, Chunk, ChunkTerms, SearchRequest, Term

NAME = "searcher"
# before each message: its length; an empty message says that the thread at the other end is ready
LENGTH = struct.Struct("!Q")
STOP_SECONDS = 5.0

log = structlog.get_logger("millrace.searcher")


def _by_fields(kind: type) -> Callable[[Any], tuple[type, tuple[Any, ...]]]:
    """How pickle takes a dataclass apart and makes it anew: a fifth of the time of what it does with one that has slots."""
    values = attrgetter(*(field.name for field in fields(kind)))
    return lambda it: (kind, values(it))


for _kind in (Wanted, SearchRequest, Term, Found, Entries, Candidates, Ranking, Chunk, ChunkTerms):
    copyreg.pickle(_kind, _by_fields(_kind))


class SearchProcess:
    """The `Finder` whose searches run in another process. `run` keeps that alive."""

    def __init__(
        self, arguments: Sequence[str], threads: int, queue_limit: int, otherwise: Finder,
        on_wait: Callable[[str, float], None] | None = None,
    ) -> None:  # fmt: skip
        """`arguments` are those of `api.search_program`. `otherwise` finds while there is no process.

        At most `queue_limit` searches wait. `on_wait(name, seconds)` is told how long each waited for a thread.
        """
        self._command = (sys.executable, "-m", "api.search_program", *arguments)
        self._threads = threads
        self._queue_limit = queue_limit
        self._otherwise = otherwise
        self._on_wait = on_wait or (lambda name, seconds: None)
        self._lines: set[_Line] = set()  # that are ready
        self._idle: list[_Line] = []
        self._waiting: deque[asyncio.Future[_Line]] = deque()
        self.process_id: int | None = None

    @property
    def state(self) -> LaneState:
        """As a lane's. No threads while there is no process."""
        return LaneState(NAME, len(self._lines), len(self._lines) - len(self._idle), len(self._waiting), self._queue_limit)

    async def find(self, wanted: Wanted) -> Found:
        """As `Finder.find`. What the process could not answer because it died is found anew."""
        if not self._lines:
            return await self._otherwise.find(wanted)
        asked = time.perf_counter()
        try:
            line = self._idle.pop() if self._idle else await self._next_line()
            begun = time.perf_counter()
            self._on_wait(NAME, begun - asked)
            try:
                found = await line.ask(wanted)
            finally:
                if (load := current_load.get()) is not None:
                    load.lane_seconds[NAME] = load.lane_seconds.get(NAME, 0.0) + (time.perf_counter() - begun) / self._threads
        except ConnectionError:
            return await self._otherwise.find(wanted)
        # what is damaged is told and mended by the server's own store, which has to meet it for that
        return await self._otherwise.find(wanted) if found.degraded else found

    async def run(self) -> None:
        """Keep a process alive until cancelled."""
        restarts = Restarts()
        while True:
            restarts.begin()
            try:
                code = await self._live()
                log.warning("the search process ended, searching in the server's own", code=code)
            except OSError as error:
                log.warning("no search process can be started, searching in the server's own", error=type(error).__name__)
            await asyncio.sleep(restarts.pause_seconds())

    async def _live(self) -> int:
        """One life of the process; its exit code."""
        pairs = [socket.socketpair() for _ in range(self._threads)]
        theirs = [end.fileno() for _, end in pairs]
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, *map(str, theirs), pass_fds=theirs, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
            )
        except BaseException:
            for ours, _ in pairs:
                ours.close()
            raise
        finally:
            for _, end in pairs:
                end.close()
        transports: list[asyncio.Transport] = []
        try:
            for ours, _ in pairs:
                transports.append(await self._connect(ours))
            self.process_id = process.pid
            return await process.wait()
        finally:
            self.process_id = None
            for transport in transports:
                transport.abort()
            for ours, _ in pairs[len(transports) :]:
                ours.close()
            await _ended(process)

    async def _connect(self, ours: socket.socket) -> asyncio.Transport:
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_unix_connection(lambda: _Line(self.ready, self.lost), sock=ours)
        return transport

    # ------------------------------------------------------------------------------------------------ for the lines
    def ready(self, line: "_Line") -> None:
        """The line can be asked: now, or again."""
        self._lines.add(line)
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(line)
                return
        self._idle.append(line)

    def lost(self, line: "_Line") -> None:
        """The line's other end is gone."""
        self._lines.discard(line)
        with suppress(ValueError):
            self._idle.remove(line)
        while self._waiting and not self._lines:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(ConnectionResetError())

    async def _next_line(self) -> "_Line":
        if len(self._waiting) >= self._queue_limit:
            raise Overloaded(f"the {NAME} queue is full ({self._queue_limit} searches wait)")
        waiting: asyncio.Future[_Line] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self.ready(waiting.result())  # it came in the moment of the cancellation
            elif waiting in self._waiting:
                self._waiting.remove(waiting)
            raise


class _Line(asyncio.Protocol):
    """One socket pair: a question at a time, and its answer. A caller that goes away leaves its question to be answered for nobody."""

    def __init__(self, ready: Callable[["_Line"], None], lost: Callable[["_Line"], None]) -> None:
        self._ready, self._lost = ready, lost
        self._received = bytearray()
        self._answer: asyncio.Future[Found] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As the protocol says."""
        self._transport = transport

    def ask(self, wanted: Wanted) -> "asyncio.Future[Found]":
        """The answer to come; `ConnectionError` where none will."""
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self._answer.set_exception(ConnectionResetError())
        else:
            question = pickle.dumps(wanted, pickle.HIGHEST_PROTOCOL)
            self._transport.write(LENGTH.pack(len(question)) + question)  # type: ignore[attr-defined]
        return self._answer

    def data_received(self, data: bytes) -> None:
        """As the protocol says."""
        received = self._received
        received += data
        if len(received) < LENGTH.size or len(received) < LENGTH.size + (length := LENGTH.unpack_from(received)[0]):
            return
        self._received = bytearray()
        answer, self._answer = self._answer, None
        if length and answer is not None and not answer.done():
            found = pickle.loads(memoryview(received)[LENGTH.size :])  # noqa: S301 - from a process of our own, over a private socket
            if isinstance(found, BaseException):
                answer.set_exception(found)
            else:
                answer.set_result(found)
        self._ready(self)

    def connection_lost(self, error: Exception | None) -> None:
        """As the protocol says."""
        self._lost(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError())


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for the process, whose sockets are closed, to end; kill one that does not."""
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def arguments(folder: Path, analyser_version: str, log_level: str, log_format: str) -> tuple[str, ...]:
    """Those of `api.search_program` for the embedded store in that folder; the descriptors are added to them."""
    return str(folder), analyser_version, log_level, log_format
