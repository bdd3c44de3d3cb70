"""Contract, section 16, and the probes."""

import asyncio
import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from api.apps import system_app
from api.memory import open_memory
from api.readiness import FRESH_SECONDS
from rag.errors import DatabaseUnavailable, ProviderUnreachable, Unavailable
from rag.llm.registry import ModelSpec, Registry
from rag.llm.transport import Transport, open_client
from rag.store.memory import MemoryStore
from tests.services.missing import missing
from tests.services.redis import INSTALL, RedisServer, program, redis_server


class RedStore(MemoryStore):
    def health(self) -> dict[str, str]:
        return {"type": "memory", "status": "red"}


class UnusableRecordStore(MemoryStore):
    def health(self) -> dict[str, str]:
        return {"type": "memory", "status": "red", "error": "the record cannot be used"}


class HalfUsableStore(MemoryStore):
    def health(self) -> dict[str, str]:
        return {"type": "memory", "status": "yellow", "error": "the record of one tenant cannot be used"}


class FullBlobs:
    """A blob store on a disk that is full."""

    def put(self, key: str, source: Any) -> int:
        raise Unavailable("the file cannot be stored: no space left on device")

    def delete(self, key: str) -> None:
        """Nothing to remove."""


class FullDatabase:
    """A database on the same disk."""

    async def write(self, *_: Any) -> None:
        raise DatabaseUnavailable("the database cannot answer: OperationalError")


class StoppedWorker:
    alive = False


class Cold:
    reason = "the embedding model is being loaded"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    if program() is None:
        missing(INSTALL)
    with redis_server() as server:
        yield server


async def get(api: Any, path: str) -> Any:
    """The answer of a path at the server's root, without a key."""
    return await api.answer("GET", path, await api.client.get(path))


async def test_ping_version_and_config_need_no_key(api) -> None:
    assert (await api.call("GET", "/system/ping", key="nobody")).body == b"pong"
    assert re.fullmatch(r"v\d+\.\d+\.\d+", (await api.call("GET", "/system/version", key="nobody")).data)
    assert set((await api.call("GET", "/system/config", key="nobody")).data) == {"registerEnabled", "disablePasswordLogin"}


@pytest.mark.parametrize("path", ["/api/v1/system/healthz", "/api/v1/v1/system/healthz", "/v1/system/healthz"])
async def test_healthz_has_no_envelope(api, path: str) -> None:
    answer = await get(api, path)
    assert (answer.status, answer.body) == (200, {"db": "ok", "redis": "ok", "doc_engine": "ok", "storage": "ok", "status": "ok"})


async def test_healthz_names_the_part_that_failed(api) -> None:
    parts = dataclasses.replace(api.parts, store=RedStore())
    client = create_app(parts).test_client()
    response = await client.get("/api/v1/system/healthz")
    body = await response.get_json()
    assert response.status_code == 503
    assert (body["doc_engine"], body["db"], body["status"]) == ("nok", "ok", "nok")
    assert body["_meta"]["doc_engine"]["error"] == "the search store does not answer"


async def test_status_names_the_parts_and_needs_a_key(api) -> None:
    data = (await api.call("GET", "/system/status")).data
    assert data["database"]["database"] == "sqlite"
    assert {name: data[name]["status"] for name in ("doc_engine", "storage", "database", "redis")} == dict.fromkeys(
        ("doc_engine", "storage", "database", "redis"), "green"
    )
    assert "type" in data["doc_engine"]
    assert data["task_executor_heartbeats"] == {}
    assert (await api.call("GET", "/system/status", key="nobody")).status == 401


@pytest.mark.parametrize("disturbance", ["kill", "hang"])
async def test_a_redis_that_does_not_answer_is_told_and_keeps_no_server_from_being_ready(
    api, redis: RedisServer, disturbance: str
) -> None:  # fmt: skip
    settings = api.parts.settings.model_copy(update={"redis_url": redis.url})
    async with open_memory(settings, api.parts.metrics) as memory:
        client = create_app(dataclasses.replace(api.parts, settings=settings, memory=memory)).test_client()

        async def told() -> tuple[int, dict[str, Any], dict[str, Any]]:
            response = await client.get("/api/v1/system/healthz")
            status = await client.get("/api/v1/system/status", headers={"Authorization": f"Bearer {api.key}"})
            assert (await client.get("/readyz")).status_code == status.status_code == 200
            return response.status_code, await response.get_json(), (await status.get_json())["data"]["redis"]

        well = {"db": "ok", "redis": "ok", "doc_engine": "ok", "storage": "ok", "status": "ok"}
        code, health, status = await told()
        assert (code, health) == (200, well)
        assert (status["type"], status["status"]) == ("redis", "green")
        getattr(redis, disturbance)()
        code, health, status = await told()
        meta = health.pop("_meta")
        assert (code, health) == (503, well | {"redis": "nok", "status": "nok"})
        assert (set(meta), meta["redis"]["error"]) == ({"redis"}, "redis does not answer")
        assert (status["type"], status["status"]) == ("redis", "yellow")
        assert status["error"] == "redis failed too often and is left alone for a while"
        {"kill": redis.start, "hang": redis.go_on}[disturbance]()
        async with asyncio.timeout(20):
            while (await client.get("/api/v1/system/healthz")).status_code != 200:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
        _, health, status = await told()
        assert (health, status["status"]) == (well, "green")


async def test_tokens_are_made_listed_and_deleted_by_their_tenant_alone(api) -> None:
    made = (await api.call("POST", "/system/tokens")).data
    assert set(made) == {"tenant_id", "token", "beta", "create_time", "create_date", "update_time", "update_date"}
    assert re.fullmatch(r"ragflow-[A-Za-z0-9_-]{43}", made["token"])
    assert len(made["beta"]) == 32
    assert made["update_time"] is None
    listed = (await api.call("GET", "/system/tokens", key=made["token"])).data
    assert {key["token"] for key in listed} == {api.key, made["token"]}
    assert {"dialog_id", "source", "update_date"} <= set(listed[0])
    assert (await api.call("DELETE", f"/system/tokens/{made['token']}", key=api.other_key)).data is True
    assert (await api.call("GET", "/system/tokens", key=made["token"])).status == 200, "another tenant's deletion does nothing"
    assert (await api.call("DELETE", f"/system/tokens/{made['token']}")).data is True
    assert (await api.call("GET", "/system/tokens", key=made["token"])).status == 401, "deleted at once in this process"
    assert (await api.call("DELETE", "/system/tokens/unknown")).data is True


async def test_ready_when_every_part_works(api) -> None:
    answer = await get(api, "/readyz")
    assert (answer.status, answer.body["status"]) == (200, "ok")
    assert set(answer.body["parts"]) == {"server", "database", "blobs", "store", "embedder", "chat", "worker"}


@pytest.mark.parametrize(
    ("part", "broken", "reason"),
    [
        ("store", {"store": RedStore()}, "the search store does not answer"),
        ("store", {"store": UnusableRecordStore()}, "the record cannot be used"),
        ("database", {"session": FullDatabase()}, "the database cannot answer: OperationalError"),
        ("blobs", {"blobs": FullBlobs()}, "the file cannot be stored: no space left on device"),
        ("embedder", {"warmup": Cold()}, "the embedding model is being loaded"),
        ("worker", {"worker": StoppedWorker()}, "the ingestion worker has stopped"),
    ],
)
async def test_not_ready_says_which_part_and_why(api, part: str, broken: dict[str, Any], reason: str) -> None:
    client = create_app(dataclasses.replace(api.parts, **broken)).test_client()
    response = await client.get("/readyz")
    body = await response.get_json()
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert {name for name, state in body["parts"].items() if not state["ok"]} == {part}
    assert body["parts"][part]["reason"] == reason


async def test_what_stops_only_some_callers_is_told_by_a_server_that_is_ready(api) -> None:
    client = create_app(dataclasses.replace(api.parts, store=HalfUsableStore())).test_client()
    response = await client.get("/readyz")
    state = (await response.get_json())["parts"]["store"]
    assert (response.status_code, state["ok"], state["reason"]) == (200, True, "the record of one tenant cannot be used")
    response = await client.get("/api/v1/system/status", headers={"Authorization": f"Bearer {api.key}"})
    engine = (await response.get_json())["data"]["doc_engine"]
    assert (engine["status"], engine["error"]) == ("yellow", "the record of one tenant cannot be used")


async def test_not_ready_while_the_default_chat_model_is_left_alone_and_ready_again_without_a_call(api, tmp_path: Path) -> None:
    async with open_client() as nobody:
        models = Registry(
            [ModelSpec("talker", "Far", "chat", base_url="http://localhost:9/v1")], {}, Transport(nobody),
            query_lane=api.parts.lanes.model, document_lane=api.parts.lanes.ingest_model, rerank_lane=api.parts.lanes.rerank,
            cache_dir=tmp_path / "cache",
        )  # fmt: skip
    client = create_app(dataclasses.replace(api.parts, models=models)).test_client()
    (breaker,) = models.breakers
    for _ in range(5):
        with pytest.raises(ProviderUnreachable), breaker.watch():
            raise ProviderUnreachable("no connection")
    assert breaker.state == "open"
    body = await (await client.get("/readyz")).get_json()
    assert {name for name, state in body["parts"].items() if not state["ok"]} == {"chat"}
    assert body["parts"]["chat"]["reason"].startswith("the default chat model is not asked now: provider Far failed too often")
    asked = time.monotonic()
    while (await client.get("/readyz")).status_code == 503:
        await asyncio.sleep(0.01)
        assert time.monotonic() < asked + 10
    assert breaker.state == "half_open"


async def test_a_draining_server_is_alive_and_not_ready(api) -> None:
    api.parts.drain.start()
    assert (await get(api, "/healthz")).status == 200
    answer = await get(api, "/readyz")
    assert answer.status == 503
    assert answer.body["parts"]["server"]["reason"] == "the server is stopping"


async def test_parts_are_asked_once_a_second_however_often_readyz_is(api) -> None:
    asked = []

    class CountingStore(MemoryStore):
        def health(self) -> dict[str, str]:
            asked.append(1)
            return super().health()

    client = create_app(dataclasses.replace(api.parts, store=CountingStore())).test_client()
    for _ in range(20):
        assert (await client.get("/readyz")).status_code == 200
    assert len(asked) < 5


async def test_a_server_that_becomes_ready_says_so_within_less_than_a_second(api) -> None:
    warmup = Cold()
    client = create_app(dataclasses.replace(api.parts, warmup=warmup)).test_client()
    assert (await client.get("/readyz")).status_code == 503
    warmup.reason = ""
    asked = time.monotonic()
    while (await client.get("/readyz")).status_code == 503:
        await asyncio.sleep(0.01)
        assert time.monotonic() < asked + FRESH_SECONDS * 0.8


async def test_metrics_are_in_prometheus_format(api) -> None:
    answer = await get(api, "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b'millrace_ingest_backlog{state="waiting"} 0.0' in answer.body


def test_the_version_spoken_is_the_sdks() -> None:
    assert system_app.API_VERSION == "v0.27.0"
