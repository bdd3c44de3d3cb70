import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypercorn.config import Config
from quart import Quart

from api.connections import Connections, turn_newcomers_away
from api.listening import listen

HELLO = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


@asynccontextmanager
async def serving(app: Quart, listener: socket.socket) -> AsyncIterator[Connections]:
    connections = Connections(app, listener, Config())
    await connections.open()
    yield connections
    await connections.stop_accepting(0)
    connections.cut()
    await connections.finish()


def hello_app(entered: asyncio.Event | None = None, go_on: asyncio.Event | None = None) -> Quart:
    app = Quart(__name__)

    @app.get("/")
    async def hello() -> str:
        if entered is not None and go_on is not None:
            entered.set()
            await go_on.wait()
        return "hello"

    return app


async def connect(listener: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*listener.getsockname()[:2])


async def status_of(reader: asyncio.StreamReader) -> bytes:
    return (await reader.readline()).split()[1]


async def test_what_waits_in_the_queue_of_the_closing_socket_is_served() -> None:
    listener = listen("127.0.0.1", 0)
    address = listener.getsockname()[:2]
    waiting = [socket.create_connection(address) for _ in range(20)]  # the loop has had no turn to take them
    async with serving(hello_app(), listener) as connections:
        await connections.stop_accepting(0)
        for client in waiting:
            reader, writer = await asyncio.open_connection(sock=client)
            writer.write(HELLO)
            assert await status_of(reader) == b"200"
            writer.close()


async def test_an_idle_connection_with_an_unread_request_is_served_before_it_is_closed() -> None:
    listener = listen("127.0.0.1", 0)
    address = listener.getsockname()[:2]
    async with serving(hello_app(), listener) as connections:
        with socket.create_connection(address) as client:
            await connections.stop_accepting(0)
            client.sendall(HELLO)  # unknown to the loop until its next turn
            await connections.finish()
            client.settimeout(5)
            assert client.recv(12) == b"HTTP/1.1 200"


async def test_an_idle_connection_is_closed_and_a_busy_one_finished() -> None:
    listener = listen("127.0.0.1", 0)
    entered, go_on = asyncio.Event(), asyncio.Event()
    async with serving(hello_app(entered, go_on), listener) as connections:
        idle, idle_writer = await connect(listener)
        busy, busy_writer = await connect(listener)
        busy_writer.write(HELLO)
        await entered.wait()
        await connections.stop_accepting(0)
        finished = asyncio.create_task(connections.finish())
        assert await idle.read() == b""
        assert not finished.done()
        go_on.set()
        assert await status_of(busy) == b"200"
        await finished
        for writer in (idle_writer, busy_writer):
            writer.close()


async def test_a_cut_ends_what_does_not_end_by_itself() -> None:
    listener = listen("127.0.0.1", 0)
    entered = asyncio.Event()
    async with serving(hello_app(entered, asyncio.Event()), listener) as connections:
        reader, writer = await connect(listener)
        writer.write(HELLO)
        await entered.wait()
        await connections.stop_accepting(0)
        finished = asyncio.create_task(connections.finish())
        connections.cut()
        await finished
        assert b"hello" not in await reader.read()
        writer.close()


async def test_the_socket_of_a_client_that_has_gone_is_closed_at_once() -> None:
    listener = listen("127.0.0.1", 0)
    async with serving(hello_app(), listener):
        reader, writer = await connect(listener)
        writer.write(HELLO)
        assert await status_of(reader) == b"200"
        writer.write_eof()
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux filters what asks for a connection")
def test_newcomers_are_turned_away_and_those_who_are_in_stay() -> None:
    with listen("127.0.0.1", 0) as listener:
        address = listener.getsockname()[:2]
        with socket.create_connection(address) as early:
            turn_newcomers_away(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.2)
            accepted, _ = listener.accept()
            with accepted:
                early.sendall(b"still here")
                accepted.setblocking(True)
                assert accepted.recv(10) == b"still here"
