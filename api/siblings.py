"""What a worker of `serve --workers` tells its parent and its siblings.

The parent learns that it serves, and it learns when the parent is gone, by a socket pair. The siblings ask for its figures on a Unix
socket, so that /metrics shows all workers whichever of them answers.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from api.metrics import merged
from api.workers import SERVES

ANSWER_SECONDS = 1.0
UP = b"""\
# HELP millrace_worker_up Whether a worker of this server gave its figures in time; the other series of one that did not are missing.
# TYPE millrace_worker_up gauge
"""

Figures = Callable[[], Awaitable[bytes]]


class Member:
    """One worker among its siblings, whose sockets are in `folder`, named by their numbers."""

    def __init__(self, number: int, control: int, folder: Path) -> None:
        """`control` is the descriptor of this worker's end of the socket pair."""
        self._number = number
        self._folder = folder
        self._control = socket.socket(fileno=control)
        self._control.setblocking(False)

    def serves(self) -> None:
        """Tell the parent that requests are answered from now on."""
        with suppress(OSError):
            self._control.send(SERVES)

    @property
    def is_orphan(self) -> bool:
        """Whether the parent has ended already."""
        try:
            return not self._control.recv(1)
        except BlockingIOError:
            return False
        except OSError:
            return True

    async def parent_gone(self) -> None:
        """Return when the parent has ended, however it did."""
        with suppress(OSError):
            await asyncio.get_running_loop().sock_recv(self._control, 1)

    @asynccontextmanager
    async def answering(self, figures: Figures) -> AsyncIterator[None]:
        """Tell the others this worker's figures whenever they ask."""

        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                writer.write(await figures())
                await writer.drain()
            writer.close()

        path = self._folder / str(self._number)
        path.unlink(missing_ok=True)  # of this worker's life before
        server = await asyncio.start_unix_server(answer, path)
        try:
            yield
        finally:
            server.close()
            path.unlink(missing_ok=True)

    async def figures(self, own: bytes) -> bytes:
        """The figures of all workers that answer at once, each series with its `worker`; and which of them do.

        A worker counts from when it first served: its socket stays when it dies.
        """
        others = [int(path.name) for path in self._folder.iterdir() if path.name.isdigit() and int(path.name) != self._number]
        texts = dict(zip(others, await asyncio.gather(*(self._ask(number) for number in others)), strict=True))
        texts[self._number] = own
        answered = {str(number): text for number, text in sorted(texts.items()) if text}
        return (
            merged(answered)
            + UP
            + b"".join(b'millrace_worker_up{worker="%d"} %d\n' % (number, bool(texts[number])) for number in sorted(texts))
        )

    async def _ask(self, number: int) -> bytes:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._folder / str(number))
                try:
                    return await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return b""
