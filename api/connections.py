"""The server's connections, by Hypercorn: taken until none waits, served, and closed when nothing of a request is left in them."""

import asyncio
import ctypes
import select
import socket
import struct
import sys
from contextlib import suppress

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.utils import wrap_app
from quart import Quart

# classic BPF over a TCP header: `ldb [13]; jset #SYN; ret 0; ret all`
_DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0x7FFFFFFF))
_SO_ATTACH_FILTER = 26  # Linux
_TURNS = 8  # of the loop, from a socket through transport, stream and task to the code that is waiting


class Connections:
    """Everything that came in through `listener`, which is closed by `stop_accepting`.

    In the order: `open`, `stop_accepting`, `finish`, and `cut` for those that take too long.
    """

    def __init__(self, app: Quart, listener: socket.socket, config: Config) -> None:
        self._app = app
        self._wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]
        self._listener = listener
        self._config = config
        self._context = WorkerContext(None)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Begin to serve."""
        await self._app.startup()
        self._server = await asyncio.start_server(self._serve, backlog=self._config.backlog, sock=self._listener)

    async def stop_accepting(self, last_call_seconds: float) -> None:
        """Let nobody new in, serve whom the kernel let in already, then close the listening socket.

        Closing it resets the connections that wait in its queue, and closing an idle one resets what is on its way to us: so
        newcomers are kept out first, and whoever is in has `last_call_seconds` to say what they want.
        """
        turn_newcomers_away(self._listener)
        await asyncio.sleep(last_call_seconds)
        await _let_the_loop_read(self._listener)
        if self._server is not None:
            self._server.close()

    async def finish(self) -> None:
        """Close what is idle and return when the other connections have had their answers."""
        await self._context.terminated.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._app.shutdown()

    def cut(self) -> None:
        """End the connections that are left, in the middle of whatever they do."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(asyncio.CancelledError):  # by `cut`: nobody is above this
            await _Connection(self._wrapped, asyncio.get_running_loop(), self._config, self._context, {}, reader, writer)  # type: ignore[arg-type]


class _Connection(TCPServer):
    """A connection that is closed as idle once its client has gone, and never while a request waits in it unread."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()  # it would hold the socket of a client that is gone until the time for idle ones is over

    async def _idle_timeout(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self.reader.at_eof() else self.config.keep_alive_timeout):
                await self.context.terminated.wait()
        if not self.reader.at_eof():
            await _let_the_loop_read(self.writer.get_extra_info("socket"))  # a request there ends this task
        await asyncio.shield(self._initiate_server_close())


async def _let_the_loop_read(connection: socket.socket) -> None:
    """Return when nothing is left to read, or to accept, and what was read has had its turns on the way to whom it concerns."""
    turns = 0
    while turns < _TURNS and connection.fileno() >= 0:
        await asyncio.sleep(0)
        turns = 0 if is_readable(connection) else turns + 1


def turn_newcomers_away(listener: socket.socket) -> None:
    """Drop what asks for a new connection; handshakes under way end well. Those who ask do so again, until the port is closed.

    The filter is on the socket itself, for every process that shares it. Systems without one let newcomers in until the end.
    """
    if sys.platform != "linux":
        return
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in _DROP_SYN))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_DROP_SYN), ctypes.addressof(code)))


def is_readable(connection: socket.socket) -> bool:
    """Whether something can be read, or accepted, without waiting."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
