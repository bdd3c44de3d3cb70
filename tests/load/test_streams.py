"""The readers of streams tell whole answers from those that were cut, refused or failed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from load.callers import post_requests
from load.streams import Streamed, read

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EMPTY = b'data:{"code":0,"message":"","data":{"answer":"","reference":{}}}\n\n'
WORD = b'data:{"code":0,"message":"","data":{"answer":"Water","reference":{}}}\n\n'
FAILED = b'data:{"code":500,"message":"a model failed","data":{"answer":"**ERROR**"}}\n\n'
UNPLANNED = b'data:{"code":500,"message":"Internal server error","data":{"answer":"**ERROR**"}}\n\n'
END = b'data:{"code":0,"message":"","data":true}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(*events: bytes) -> list[bytes]:
    return [HEAD, *map(chunk, events), b"0\r\n\r\n"]


@asynccontextmanager
async def server(answers: Sequence[Sequence[bytes]]) -> AsyncIterator[str]:
    """Gives one of the answers to each request, piece by piece; an answer without its last chunk ends the connection."""
    waiting = iter(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"}"):
                pieces = next(waiting)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                if not pieces[-1].endswith(b"0\r\n\r\n"):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def read_all(*answers: Sequence[bytes]) -> Streamed:
    async with server(answers) as url:
        requests = post_requests(url, "key", "/chat", [{} for _ in answers])
        return await asyncio.to_thread(read, url, requests, 1, 30.0, 0.0)


async def test_whole_answers_are_timed_and_counted():
    streamed = await read_all(answer(EMPTY, WORD, WORD, END), answer(WORD, END))
    assert streamed.failed == ()
    assert sorted(streamed.events) == [2, 4]
    for asked, first, ended in zip(streamed.asked, streamed.first, streamed.ended, strict=True):
        assert asked <= first <= ended


@pytest.mark.parametrize(
    ("pieces", "failure"),
    [
        (answer(WORD, FAILED, END), "error in the stream"),
        (answer(WORD, UNPLANNED, END), "unplanned error in the stream"),
        (answer(WORD), "no end"),
        ([HEAD, chunk(WORD)], "cut"),
        ([b"HTTP/1.1 503 \r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"], "status 503"),
    ],
)
async def test_an_answer_that_is_none_is_told(pieces, failure):
    streamed = await read_all(pieces, answer(WORD, END))
    assert streamed.failed == (failure,)
    assert len(streamed.ended) == 2
