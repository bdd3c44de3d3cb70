"""`millrace serve --workers N`: a parent that starts N server processes on one port, and keeps N of them alive.

Each worker listens with a socket of its own (SO_REUSEPORT): the kernel spreads connections over those that listen, so a worker that
is being started or has died gets none. A worker holds one end of a socket pair: it writes a byte when it serves, and stops when
the parent is gone. Figures go over a Unix socket a worker, in a folder that only this user can read: see api/siblings.py.
"""

import asyncio
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from api.listening import KEY_FILE, announce, listen, url_of
from api.restarts import Restarts
from rag.errors import MillraceError, SettingsError
from rag.settings import PREFIX, Settings

log = structlog.get_logger("millrace.workers")

# beside its drain time: for closing its parts
CLOSING_SECONDS = 10.0
# how long a worker without a parent may still hold the port
ORPHAN_SECONDS = 3.0
# what a worker writes when it answers requests
SERVES = b"+"


@dataclass(slots=True)
class _Place:
    """One of the N workers, through all its lives."""

    number: int
    process: asyncio.subprocess.Process | None = None
    serves: asyncio.Event = field(default_factory=asyncio.Event)


class Crew:
    """The parent's view of its workers."""

    def __init__(self, settings: Settings, count: int, environ: Mapping[str, str], command: Sequence[str] = ()) -> None:
        """`command` starts one worker; its number, the port's owner and the folder are added to it."""
        self._settings = settings
        self._environ = environ
        self._command = tuple(command) or (sys.executable, "-m", "api", "serve")
        self._places = [_Place(number) for number in range(count)]
        self._stopping = asyncio.Event()
        self._failed: int | None = None

    async def run(self) -> int:
        """Keep the workers alive until SIGTERM or SIGINT; then let them drain. The exit code: a start that failed ends with its own."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        holder = await _reserved(self._settings.host, self._settings.port)
        try:
            with tempfile.TemporaryDirectory(prefix="millrace-") as folder:
                await self._run(holder, Path(folder))
        finally:
            holder.close()
        return self._failed or 0

    async def _run(self, holder: socket.socket, folder: Path) -> None:
        port = holder.getsockname()[1]
        async with asyncio.TaskGroup() as group:
            for place in self._places:
                group.create_task(self._keep(place, port, folder))
            announcing = group.create_task(self._announce(holder))
            await self._stopping.wait()
            announcing.cancel()
            log.info("draining", workers=len(self._places))
            await self._drain()

    async def _announce(self, holder: socket.socket) -> None:
        for place in self._places:
            await place.serves.wait()
        url = url_of(holder)
        announce(url, (self._settings.data_dir.absolute() / KEY_FILE).read_text("ascii").strip())
        log.info("serving", url=url, workers=len(self._places))

    async def _keep(self, place: _Place, port: int, folder: Path) -> None:
        restarts = Restarts()
        while not self._stopping.is_set():
            restarts.begin()
            code = await self._live(place, port, folder)
            if self._stopping.is_set():
                return
            if not place.serves.is_set():  # it never served: what hinders it hinders the next one, too
                self._failed = code if code and code > 0 else 1
                self._stopping.set()
                return
            pause = restarts.pause_seconds()
            log.warning("a worker ended and is started again", worker=place.number, code=code, seconds=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _live(self, place: _Place, port: int, folder: Path) -> int:
        """One life of a worker: its exit code."""
        ours, theirs = socket.socketpair()
        arguments = ("--worker", str(place.number), "--control", str(theirs.fileno()), "--folder", str(folder))
        with theirs:
            place.process = await asyncio.create_subprocess_exec(
                *self._command, *arguments,
                env={**self._environ, f"{PREFIX}PORT": str(port)}, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
            )  # fmt: skip
        if self._stopping.is_set():  # while it was being started: the drain saw it not
            place.process.terminate()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            if await reader.read(1) == SERVES:
                place.serves.set()
            return await place.process.wait()
        finally:
            writer.close()

    async def _drain(self) -> None:
        living = [place.process for place in self._places if place.process is not None and place.process.returncode is None]
        for process in living:
            with suppress(ProcessLookupError):
                process.terminate()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_seconds + CLOSING_SECONDS):
                await asyncio.gather(*(process.wait() for process in living))
        for process in living:
            if process.returncode is None:
                log.warning("a worker did not end and is killed")
                process.kill()


async def _reserved(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for the workers and takes no connection. Raises `SettingsError` when the port is another's.

    Not at once: workers whose parent was killed let go of the port when they notice, which is a moment later.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise MillraceError("this system cannot share a port between processes; start servers without --workers")
    probe = await _listening(host, port)
    address = probe.getsockname()
    probe.close()
    holder = socket.socket(probe.family, probe.type)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError:
        holder.close()
        raise SettingsError(f"cannot listen on {host}:{port} (MILLRACE_HOST, MILLRACE_PORT)") from None
    return holder


async def _listening(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + ORPHAN_SECONDS
    while True:
        try:
            return listen(host, port)
        except SettingsError:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(0.1)
