"""The figures of `millrace worker`."""

import asyncio
import socket
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from api import worker_figures
from api.metrics import CONTENT_TYPE
from rag.errors import SettingsError
from rag.settings import Settings
from tests.api.conftest import Server


@pytest.fixture
def server_settings(server_settings: dict[str, Any]) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return {**server_settings, "worker_metrics_port": free.getsockname()[1]}


def worker_of(api: Server, alive: bool) -> Any:
    """The parts of a process that ingests, or has stopped to."""
    parts = api.parts
    return SimpleNamespace(settings=parts.settings, session=parts.session, metrics=parts.metrics, worker=SimpleNamespace(alive=alive))


async def ask(settings: Settings, request: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body of what is answered until the connection is closed; status 0 for nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", settings.worker_metrics_port)
    writer.write(request)
    answer = b""
    with suppress(ConnectionResetError):
        answer = await reader.read()
    head, _, body = answer.partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]) if head else 0, head, body


async def get(settings: Settings, path: str) -> tuple[int, bytes, bytes]:
    return await ask(settings, f"GET {path} HTTP/1.1\r\nHost: worker\r\nAccept: */*\r\n\r\n".encode())


async def test_a_worker_gives_its_figures_and_its_health(api: Server) -> None:
    settings = api.parts.settings
    api.parts.metrics.ingested("done", 3)
    async with worker_figures.answering(worker_of(api, alive=True)):
        status, head, body = await get(settings, "/metrics?x=1")
        assert (status, f"Content-Type: {CONTENT_TYPE}".encode() in head) == (200, True)
        assert f"Content-Length: {len(body)}".encode() in head
        assert b"\nmillrace_ingest_chunks_total 3.0\n" in body
        assert b'\nmillrace_ingest_backlog{state="waiting"} 0.0\n' in body
        assert (await get(settings, "/healthz"))[::2] == (200, b'{"status":"ok"}')
        assert (await get(settings, "/"))[0] == 404
        assert (await ask(settings, b"POST /metrics HTTP/1.1\r\n\r\n"))[0] == 404
    with pytest.raises(ConnectionRefusedError):
        await get(settings, "/metrics")


async def test_a_worker_that_works_no_more_is_not_well(api: Server) -> None:
    async with worker_figures.answering(worker_of(api, alive=False)):
        assert (await get(api.parts.settings, "/healthz"))[0] == 503


async def test_what_is_no_request_is_dropped(api: Server) -> None:
    async with worker_figures.answering(worker_of(api, alive=True)):
        assert (await ask(api.parts.settings, b"x" * (1 << 17)))[0] == 0
        assert (await get(api.parts.settings, "/healthz"))[0] == 200


async def test_a_taken_port_ends_the_start_with_its_setting(api: Server) -> None:
    port = api.parts.settings.worker_metrics_port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(SettingsError, match=f":{port}: .*MILLRACE_WORKER_METRICS_PORT"):
        async with worker_figures.answering(worker_of(api, alive=True)):
            raise AssertionError


async def test_without_a_port_nobody_listens(api: Server) -> None:
    parts = worker_of(api, alive=True)
    parts.settings = parts.settings.model_copy(update={"worker_metrics_port": 0})
    async with worker_figures.answering(parts):
        with pytest.raises(ConnectionRefusedError):
            await get(api.parts.settings, "/healthz")
