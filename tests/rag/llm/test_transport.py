"""The transport against a vendor that fails in every way."""

import asyncio
import gc
import traceback
from contextlib import aclosing, suppress
from dataclasses import replace

import httpx
import pytest

from load.vendor_simulator import Behaviour, VendorSimulator
from rag.errors import ProviderBadReply, ProviderBusy, ProviderError, ProviderRefused, ProviderUnreachable, Unavailable
from rag.llm.endpoint import Endpoint
from rag.llm.transport import ConnectionLost, EventParser, RequestRejected, RequestTimeout, Transport, open_client

KEY = "sk-secret"
STREAMED = {"stream": True, "messages": [{"role": "user", "content": "hello"}]}
PLAIN = STREAMED | {"stream": False}


def endpoint(vendor: VendorSimulator, **limits: float) -> Endpoint:
    return Endpoint("tiny@Acme", vendor.base_url + "/v1/chat/completions", f"Bearer {KEY}", **limits)


async def stream(transport: Transport, target: Endpoint) -> list[dict | None]:
    async with aclosing(transport.stream_events(target, STREAMED)) as events:
        return [event async for event in events]


def assert_says_nothing_of_the_vendor(error: BaseException) -> None:
    assert "tiny@Acme" in str(error)
    assert "127.0.0.1" not in str(error)
    shown = "".join(traceback.format_exception(error))
    assert KEY not in shown
    assert "vendor says" not in shown


PLAIN_FAILURES = [
    (Behaviour("hang"), ProviderUnreachable),
    (Behaviour("reset"), ConnectionLost),
    (Behaviour("html"), ProviderBadReply),
    (Behaviour("garbage"), ProviderBadReply),
    (Behaviour("truncated"), ProviderBadReply),
    (Behaviour("short_body"), ProviderUnreachable),
    (Behaviour("huge"), ProviderBadReply),
    (Behaviour("error_body"), ProviderBadReply),
    (Behaviour("bad_gzip"), ProviderBadReply),
    (Behaviour(status=302, headers=(("location", "http://127.0.0.1:1/"),)), ProviderRefused),
    (Behaviour(status=400), RequestRejected),
    (Behaviour(status=401), ProviderRefused),
    (Behaviour(status=403), ProviderRefused),
    (Behaviour(status=404), ProviderRefused),
    (Behaviour(status=408), RequestTimeout),
    (Behaviour(status=422), RequestRejected),
    (Behaviour(status=429), ProviderBusy),
    (Behaviour(status=503), ProviderBusy),
    (Behaviour(status=504), ProviderUnreachable),
    (Behaviour(status=500), ProviderError),
]
STREAM_FAILURES = [
    *PLAIN_FAILURES,
    (Behaviour("hang_after_headers"), ProviderUnreachable),
    (Behaviour("hang_mid_stream"), ProviderUnreachable),
    (Behaviour("trickle"), ProviderUnreachable),
    (Behaviour("reset_mid_stream"), ProviderUnreachable),
    (Behaviour("error_event"), ProviderBadReply),
]


def name(value: object) -> str:
    return (value.failure or str(value.status)) if isinstance(value, Behaviour) else value.__name__


@pytest.mark.parametrize(("behaviour", "error"), PLAIN_FAILURES, ids=name)
async def test_a_failing_vendor_becomes_an_error_of_ours(
    vendor: VendorSimulator, transport: Transport, behaviour: Behaviour, error: type[ProviderError]
) -> None:
    vendor.behaviour = behaviour
    with pytest.raises(error) as caught:
        await transport.post_json(endpoint(vendor, timeout_seconds=0.3 if behaviour.failure == "hang" else 20.0), PLAIN)
    assert isinstance(caught.value, ConnectionLost) == (error is ConnectionLost)
    assert_says_nothing_of_the_vendor(caught.value)


@pytest.mark.parametrize(("behaviour", "error"), STREAM_FAILURES, ids=name)
async def test_a_failing_stream_becomes_an_error_of_ours(
    vendor: VendorSimulator, transport: Transport, behaviour: Behaviour, error: type[ProviderError]
) -> None:
    vendor.behaviour = behaviour
    hangs = behaviour.failure.startswith("hang") or behaviour.failure == "trickle"
    with pytest.raises(error) as caught:
        await stream(transport, endpoint(vendor, timeout_seconds=0.3 if hangs else 20.0))
    assert isinstance(caught.value, ConnectionLost) == (error is ConnectionLost)
    assert_says_nothing_of_the_vendor(caught.value)


async def test_a_refused_connection_is_a_lost_one(transport: Transport) -> None:
    async with VendorSimulator().listen() as closed:
        pass
    with pytest.raises(ConnectionLost) as caught:
        await transport.post_json(endpoint(closed), PLAIN)
    assert_says_nothing_of_the_vendor(caught.value)


async def test_an_answer_over_the_limit_is_refused_before_it_is_read_whole(vendor: VendorSimulator, transport: Transport) -> None:
    vendor.behaviour = Behaviour("huge")
    with pytest.raises(ProviderBadReply, match="more than 1000 bytes"):
        await transport.post_json(endpoint(vendor, max_reply_bytes=1000), PLAIN)
    await asyncio.wait_for(vendor.hung_up.wait(), 5)


async def test_a_stream_is_bounded_as_a_whole(vendor: VendorSimulator, transport: Transport) -> None:
    vendor.behaviour = Behaviour(gap_seconds=0.05, words=("on and on ",) * 1000)
    with pytest.raises(ProviderUnreachable, match=r"finish within 0\.3 seconds"):
        await stream(transport, endpoint(vendor, timeout_seconds=5.0, stream_seconds=0.3))


async def test_a_stream_ends_with_none_when_the_vendor_says_so(vendor: VendorSimulator, transport: Transport) -> None:
    events = await stream(transport, endpoint(vendor))
    assert events[-1] is None
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events[:-1]) == "Water boils at 100 °C."


@pytest.mark.parametrize("failure", ["", "hang_mid_stream"])
async def test_cancelling_closes_the_connection_within_a_second(vendor: VendorSimulator, transport: Transport, failure: str) -> None:
    vendor.behaviour = Behaviour(failure, latency_seconds=0 if failure else 60)
    task = asyncio.create_task(stream(transport, endpoint(vendor)))
    await vendor.arrived.wait()
    task.cancel()
    await asyncio.wait_for(vendor.hung_up.wait(), 1)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_open_stream_holds_nothing_of_its_request(vendor, transport):
    """A prompt has tens of thousands of characters, and a thousand streams may be open for minutes."""
    prompt = {"stream": True, "messages": [{"role": "user", "content": "long " * 50_000}]}
    async with aclosing(transport.stream_events(endpoint(vendor), prompt)) as events:
        await anext(events)
        requests = [held for held in gc.get_objects() if isinstance(held, httpx.Request)]
        assert [request for request in requests if len(request.content) > 1_000] == []


async def test_closing_a_stream_closes_the_connection_within_a_second(vendor: VendorSimulator, transport: Transport) -> None:
    vendor.behaviour = Behaviour("hang_mid_stream")
    async with aclosing(transport.stream_events(endpoint(vendor), STREAMED)) as events:
        await anext(events)
    await asyncio.wait_for(vendor.hung_up.wait(), 1)


async def test_a_connection_is_used_again_after_a_whole_answer(vendor: VendorSimulator, transport: Transport) -> None:
    for _ in range(3):
        await transport.post_json(endpoint(vendor), PLAIN)
        await stream(transport, endpoint(vendor))
    assert vendor.connections == 1


async def test_a_connection_is_used_again_though_the_bodys_end_comes_behind_the_last_event(transport: Transport) -> None:
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                writer.write(b"e\r\ndata: [DONE]\n\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)  # as ASGI servers write it: a packet of its own
                writer.write(b"0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for _ in range(3):
            assert await stream(transport, Endpoint("tiny@Acme", f"http://127.0.0.1:{port}/v1/chat/completions", "")) == [None]
    assert connections == 1


async def test_the_key_is_sent_and_cookies_are_not_kept(vendor: VendorSimulator, transport: Transport) -> None:
    vendor.behaviour = Behaviour(headers=(("set-cookie", "session=1"),))
    for _ in range(2):
        await transport.post_json(endpoint(vendor), PLAIN)
    assert [request.headers["authorization"] for request in vendor.requests] == [f"Bearer {KEY}"] * 2
    assert "cookie" not in vendor.requests[1].headers
    assert KEY not in repr(endpoint(vendor))


async def test_a_text_that_is_no_utf8_is_sent_as_far_as_it_can_be(vendor: VendorSimulator, transport: Transport) -> None:
    await transport.post_json(endpoint(vendor), {"messages": [{"role": "user", "content": "half a pair: \ud83d, é"}]})
    assert vendor.requests[0].body["messages"][0]["content"] == "half a pair: ?, é"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0), ("0", 0.0), ("soon", None), ("-1", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), (None, None),
        ("Thu, 01 Jan 99999999999 00:00:00 GMT", None), ("Thu, 01 Jan 2026 00:00:00 +9999999999999999999999", None),
    ],
)  # fmt: skip
async def test_a_busy_vendor_says_when_to_come_back(
    vendor: VendorSimulator, transport: Transport, value: str | None, seconds: float | None
) -> None:
    vendor.behaviour = replace(Behaviour(status=429), headers=(("retry-after", value),) if value else ())
    with pytest.raises(ProviderBusy) as caught:
        await transport.post_json(endpoint(vendor), PLAIN)
    assert caught.value.retry_after_seconds == seconds


async def test_a_status_line_of_any_bytes_is_a_bad_reply(transport: Transport) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{")
        writer.write(b"HTTP/1.1 200 \xca\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        target = Endpoint("tiny@Acme", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/rerank")
        with pytest.raises(ProviderBadReply, match="not HTTP"):
            await transport.post_json(target, PLAIN)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_cut_alike_whatever_the_pieces(size: int) -> None:
    raw = b': comment\n\ndata: {"a":\r\ndata: 1}\r\n\r\nevent: x\nid: 3\n\ndata:second\n\ndata: not finished'
    parser = EventParser()
    events = [event for start in range(0, len(raw), size) for event in parser.feed(raw[start : start + size])]
    assert events == [b'{"a":\n1}', b"second"]
    assert parser.pending_bytes == len(b"data: not finished")


async def test_a_thread_waits_for_a_call_on_the_clients_loop(vendor: VendorSimulator, transport: Transport) -> None:
    reply = await asyncio.to_thread(lambda: transport.wait_for(transport.post_json(endpoint(vendor), PLAIN)))
    assert reply["object"] == "chat.completion"


async def test_the_loop_does_not_wait_for_itself(vendor: VendorSimulator, transport: Transport) -> None:
    with pytest.raises(RuntimeError, match="await"):
        transport.wait_for(transport.post_json(endpoint(vendor), PLAIN))


def test_a_transport_without_a_running_loop_says_so() -> None:
    async def opened() -> tuple[Transport, Endpoint]:
        async with open_client() as client:
            return Transport(client), Endpoint("tiny@Acme", "http://127.0.0.1:9/")

    transport, target = asyncio.run(opened())
    with pytest.raises(Unavailable):
        transport.wait_for(transport.post_json(target, PLAIN))
