"""A client that goes away, over real sockets: the vendor's connection is closed within a second, and what was sent is saved."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.api.chat.conftest import Server, until
from tests.api.chat.listening import listening

SECONDS = 1.0


@asynccontextmanager
async def asking(url: str, server: Server, path: str, body: dict[str, object]) -> AsyncIterator[asyncio.StreamReader]:
    """An HTTP request under way; leaving the block hangs up."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + f"Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    await writer.drain()
    try:
        yield reader
    finally:
        writer.transport.abort()


async def read_until(reader: asyncio.StreamReader, text: str) -> bytes:
    read = b""
    async with asyncio.timeout(10):
        while text.encode() not in read:
            piece = await reader.read(4096)
            assert piece, read
            read += piece
    return read


async def closed_in_time(server: Server) -> None:
    async with asyncio.timeout(SECONDS):
        await server.vendor.hung_up.wait()


async def stored(server: Server, chat: str, count: int) -> list[str]:
    """The session's messages once there are so many; the save ends by itself after the client has gone."""
    async with asyncio.timeout(10):
        while True:
            sessions = await server.data("GET", f"/chats/{chat}/sessions")
            contents = [message["content"] for session in sessions for message in session["messages"]]
            if len(contents) >= count:
                return contents
            await asyncio.sleep(0.01)


async def test_leaving_a_stream_closes_the_models_and_saves_what_was_sent(server: Server) -> None:
    chat = await server.grounded_chat()
    server.says("Water boils", " never", " said", failure="hang_mid_stream")
    async with listening(server.app) as url:
        async with asking(url, server, f"/api/v1/chats/{chat}/completions", {"question": "When does water boil?"}) as reader:
            await read_until(reader, '"answer":"Water boils"')
            assert server.vendor.open_requests == 1
        await closed_in_time(server)
        contents = await stored(server, chat, 3)
    assert contents[1:] == ["When does water boil?", "Water boils"]
    assert server.vendor.open_requests == 0


async def test_leaving_before_the_first_word_closes_the_models_call_and_saves_nothing(server: Server) -> None:
    chat = await server.chat()
    server.says(failure="hang_after_headers")
    async with listening(server.app) as url:
        async with asking(url, server, f"/api/v1/chats/{chat}/completions", {"question": "hello?"}):
            await server.vendor.arrived.wait()
        await closed_in_time(server)
    sessions = await server.data("GET", f"/chats/{chat}/sessions")
    assert all(len(session["messages"]) == 1 for session in sessions)


@pytest.mark.parametrize("path", ["/api/v1/chats/{}/completions", "/api/v1/openai/{}/chat/completions", "/v1/chat/completions"])
async def test_leaving_an_answer_that_is_not_streamed_closes_the_models_call(server: Server, path: str) -> None:
    chat = await server.chat()
    server.says(failure="hang_after_headers")
    body = {"question": "hello?", "stream": False, "model": chat if path.startswith("/v1") else "model"}
    body["messages"] = [{"role": "user", "content": "hello?"}]
    async with listening(server.app) as url:
        async with asking(url, server, path.format(chat), body):
            await server.vendor.arrived.wait()
        await closed_in_time(server)


async def test_of_an_answer_that_nobody_saw_nothing_is_saved(server: Server) -> None:
    chat = await server.chat()
    session = (await server.data("POST", f"/chats/{chat}/sessions", {}))["id"]
    server.says("Water boils", " never", " said", failure="hang_mid_stream")
    body = {"question": "When?", "stream": False, "session_id": session}
    async with listening(server.app) as url:
        async with asking(url, server, f"/api/v1/chats/{chat}/completions", body):
            await server.vendor.arrived.wait()
        await closed_in_time(server)
    assert len((await server.data("GET", f"/chats/{chat}/sessions/{session}"))["messages"]) == 1


async def test_an_openai_stream_that_is_left_closes_the_models(server: Server) -> None:
    server.says("one", "two", "three", failure="hang_mid_stream")
    body = {"model": "chatty@Sim", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with listening(server.app) as url:
        async with asking(url, server, "/v1/chat/completions", body) as reader:
            await read_until(reader, '"content":"one"')
        await closed_in_time(server)


async def test_many_clients_leaving_at_once_free_everything(server: Server) -> None:
    chat = await server.chat()
    server.says("word ", "more ", "never ", failure="hang_mid_stream")

    async def ask_and_leave(url: str) -> None:
        async with asking(url, server, f"/api/v1/chats/{chat}/completions", {"question": "hello?"}) as reader:
            await read_until(reader, '"answer":"word')

    async with listening(server.app) as url:
        await asyncio.gather(*(ask_and_leave(url) for _ in range(20)))
        contents = await stored(server, chat, 60)
        assert sorted(set(contents)) == ["Hi! I'm your assistant. What can I do for you?", "hello?", "word"]
        await until(lambda: server.vendor.open_requests == 0)
    assert {lane.state.busy for lane in server.parts.lanes.all} == {0}


async def test_a_stopping_server_ends_a_stream_with_an_error_and_the_last_frame_and_saves_it(server: Server) -> None:
    chat = await server.chat()
    server.says("Water boils", " never", " said", failure="hang_mid_stream")
    async with listening(server.app) as url, asking(url, server, f"/api/v1/chats/{chat}/completions", {"question": "When?"}) as reader:
        await read_until(reader, '"answer":"Water boils"')
        server.parts.drain.expire()
        rest = await read_until(reader, '"data":true}')
    assert '"message":"the server is stopping"' in rest.decode()
    assert (await stored(server, chat, 3))[2] == "Water boils"
