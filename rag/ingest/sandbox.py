"""Runs jobs in processes that may hang, crash or eat memory without harm: they are killed and only their job fails."""

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from rag.errors import ParseFailed, ParserKilled, Unavailable
from rag.ingest.nursery import COMMAND, FORK, FRAME_LENGTH, KILL, PROCESS_ID, TOLD_ERRORS

PARSE_JOB = "rag.ingest.job:run"
START_SECONDS = 30.0
MAX_FRAME_BYTES = 256 << 20
NURSERY_IDLE_SECONDS = 30.0
STOP_SECONDS = 5.0


class ParserCrashed(ParserKilled):
    """The parser process ended in the middle of a file; nobody killed it."""


class Sandbox:
    """At most `processes` jobs at a time, each in a process of its own.

    A process serves jobs one after another, `jobs_per_process` at most, and ends when it was idle for `idle_seconds`; the
    nursery they are forked from (see rag/ingest/nursery.py) ends some time after the last. Nothing runs before the first job.
    """

    def __init__(
        self, target: str = PARSE_JOB, *, processes: int = 1, memory_bytes: int = 2 << 30, jobs_per_process: int = 100,
        idle_seconds: float = 10.0, import_paths: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        """`target` is `module:function`, called with the job and `emit`; `import_paths` are searched for the module first."""
        self._nursery = _NurseryClient(target, memory_bytes, import_paths)
        self._places = asyncio.Semaphore(processes)
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._jobs_per_process = jobs_per_process
        self._idle_seconds = idle_seconds
        self._retire_timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Of the processes that live, busy ones first."""
        return tuple(child.process_id for child in (*self._busy, *self._idle))

    async def run(self, job: Mapping[str, Any], deadline_seconds: float) -> AsyncGenerator[dict[str, Any], None]:
        """The messages the job emits, as it emits them; a job that is not read from waits.

        Close the generator (`aclosing`) or cancel to kill the job. Only the time spent waiting for messages counts for the
        deadline. Raises what the job raised where it is a `ParseFailed`, `InvalidArgument` or `ParserKilled`; `ParserKilled`
        also where the job ran over its deadline; `ParserCrashed` where its process is gone; `Unavailable` where no process can be started.
        """
        async with self._places:
            child = await self._take()
            finished = False
            try:
                self._busy.add(child)
                child.send(job)
                remaining = deadline_seconds
                while True:
                    started = time.monotonic()
                    message = await _within(remaining, deadline_seconds, child)
                    remaining -= time.monotonic() - started
                    if message.get("done"):
                        finished = True
                        return
                    if "failed" in message:
                        finished = message["failed"] != ParserKilled.__name__
                        raise TOLD_ERRORS.get(message["failed"], ParseFailed)(message["message"])
                    yield message
            finally:
                self._busy.discard(child)
                self._give_back(child, finished)

    async def close(self) -> None:
        """Kill all processes. Running jobs end with `ParserKilled`."""
        self._closed = True
        if self._retire_timer is not None:
            self._retire_timer.cancel()
        for child in (*self._idle, *self._busy):
            child.close()
        self._idle.clear()
        await self._nursery.stop()

    async def _take(self) -> "_Child":
        while self._idle:
            child = self._idle.pop()
            if child.alive:
                return child
            child.close()
        if self._closed:
            raise Unavailable("the parser processes are stopped")
        return await self._nursery.fork()

    def _give_back(self, child: "_Child", finished: bool) -> None:
        child.jobs += 1
        if finished and not self._closed and child.jobs < self._jobs_per_process and child.alive:
            child.idle_since = time.monotonic()
            self._idle.append(child)
        else:
            if not finished:
                self._nursery.kill(child.process_id)
            child.close()
        if not self._closed and self._retire_timer is None:
            self._retire_later(self._idle_seconds)

    def _retire_later(self, seconds: float) -> None:
        self._retire_timer = asyncio.get_running_loop().call_later(seconds, self._retire)

    def _retire(self) -> None:
        """End what was idle for long enough, and come back while there is more."""
        self._retire_timer = None
        now = time.monotonic()
        for child in [child for child in self._idle if now - child.idle_since >= self._idle_seconds]:
            self._idle.remove(child)
            child.close()  # it ends by itself when its socket does
        if self._idle or self._busy:
            self._retire_later(self._idle_seconds)
        elif now - self._nursery.last_fork >= NURSERY_IDLE_SECONDS:
            self._nursery.let_go()
        else:
            self._retire_later(NURSERY_IDLE_SECONDS)


async def _within(remaining: float, deadline_seconds: float, child: "_Child") -> dict[str, Any]:
    try:
        async with asyncio.timeout(max(0.0, remaining)):
            return await child.receive()
    except TimeoutError:
        raise ParserKilled(f"parsing took longer than {deadline_seconds:g} seconds and was stopped") from None
    except (asyncio.IncompleteReadError, ConnectionError):
        raise ParserCrashed("the parser crashed on this file") from None


class _Child:
    """One parser process, seen through its socket."""

    def __init__(self, process_id: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.process_id = process_id
        self.jobs = 0
        self.idle_since = 0.0
        self._reader = reader
        self._writer = writer

    @property
    def alive(self) -> bool:
        """Whether the process has not ended its side of the socket."""
        return not self._reader.at_eof() and not self._writer.is_closing()

    def send(self, job: Mapping[str, Any]) -> None:
        """Give the process its job."""
        frame = orjson.dumps(job)
        self._writer.write(FRAME_LENGTH.pack(len(frame)) + frame)

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises `IncompleteReadError` or `ConnectionError` when the process is gone."""
        (size,) = FRAME_LENGTH.unpack(await self._reader.readexactly(FRAME_LENGTH.size))
        if size > MAX_FRAME_BYTES:
            raise ConnectionError("a frame is over its limit")
        message: dict[str, Any] = orjson.loads(await self._reader.readexactly(size))
        return message

    def close(self) -> None:
        """End the socket; the process ends when it next looks at it."""
        self._writer.close()


class _NurseryClient:
    """Starts the nursery when it is needed and asks it for children."""

    def __init__(self, target: str, memory_bytes: int, import_paths: Sequence[Path]) -> None:
        self._arguments = (target, str(memory_bytes), *map(str, import_paths))
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._asking = asyncio.Lock()
        self._unanswered = 0
        self.last_fork = 0.0

    async def fork(self) -> _Child:
        """A new child. Raises `Unavailable`."""
        async with self._asking:
            ours, theirs = socket.socketpair()
            try:
                process_id = await self._ask_for_child(theirs)
                ours.setblocking(False)
                reader, writer = await asyncio.open_unix_connection(sock=ours)
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
            self.last_fork = time.monotonic()
            return _Child(process_id, reader, writer)

    def kill(self, process_id: int) -> None:
        """Kill a child, whatever it is doing."""
        if self._control is not None:
            with contextlib.suppress(OSError):  # a nursery that is gone has killed it
                self._control.send(COMMAND.pack(KILL, process_id))

    def let_go(self) -> None:
        """Have the nursery end, with its children."""
        if self._control is not None:
            self._control.close()
            self._control = None

    async def stop(self) -> None:
        """Have it end and wait until it did."""
        self.let_go()
        if self._process is not None:
            await _wait(self._process)
            self._process = None

    async def _ask_for_child(self, channel: socket.socket) -> int:
        for _ in range(2):  # a nursery that was killed is started anew
            if self._control is None:
                await self._start()
            try:
                return await self._ask(channel)
            except (OSError, struct.error):
                self.let_go()
        raise Unavailable("no parser process can be started")

    async def _ask(self, channel: socket.socket) -> int:
        control = self._control
        if control is None:
            raise ConnectionError
        socket.send_fds(control, [COMMAND.pack(FORK, 0)], [channel.fileno()])
        self._unanswered += 1
        process_id = 0
        async with asyncio.timeout(START_SECONDS):
            while self._unanswered:  # more than one where asking was cancelled before
                answer = await asyncio.get_running_loop().sock_recv(control, PROCESS_ID.size)
                self._unanswered -= 1
                (process_id,) = PROCESS_ID.unpack(answer)
        return process_id

    async def _start(self) -> None:
        if self._process is not None:
            await _wait(self._process)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own module; back after a vfork, in 2 ms
                [sys.executable, "-m", "rag.ingest.nursery", str(theirs.fileno()), *self._arguments],
                pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self._control = ours
        self._unanswered = 0


async def _wait(process: subprocess.Popen[bytes]) -> None:
    """Until the process has ended; it is killed when it takes too long."""
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110 - no event tells of its end
        await asyncio.sleep(0.005)
    if process.poll() is None:
        process.kill()
        process.wait()
