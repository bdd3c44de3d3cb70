"""Two servers and a Redis over one data directory: an edit through one is seen through the other at once, whatever Redis does."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Start, needs
from tests.e2e.server_process import ServerProcess
from tests.services.redis import INSTALL, RedisServer, program, redis_server

QUESTION = {"question": "water iron", "similarity_threshold": 0}
HITS = re.compile(rb'^millrace_cache_total\{cache="result",outcome="hit"\} ([0-9.]+)', re.MULTILINE)
PATIENCE_SECONDS = 30.0


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    if program() is None:
        needs(INSTALL)
    with redis_server() as server:
        yield server


def call(server: ServerProcess, key: str, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    status, raw = server.request(method, f"/api/v1{path}", json.dumps(body).encode() if body is not None else None, headers)
    answer = json.loads(raw)
    assert (status, answer["code"]) == (200, 0), answer
    return answer.get("data")


def contents(server: ServerProcess, key: str, dataset: str) -> list[str]:
    found = call(server, key, "POST", "/retrieval", {"dataset_ids": [dataset], **QUESTION})
    assert "degraded" not in found
    return sorted(chunk["content"] for chunk in found["chunks"])


def hits(server: ServerProcess) -> float:
    found = HITS.search(server.get("/metrics")[1])
    return float(found[1]) if found else 0.0


def until_remembered(server: ServerProcess, key: str, dataset: str) -> list[str]:
    """Ask until an answer comes from memory; that answer."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        before = hits(server)
        found = contents(server, key, dataset)
        if hits(server) > before:
            return found
        time.sleep(0.1)
    raise AssertionError("no answer came from memory")


def test_an_edit_through_one_server_is_seen_through_the_other_at_once_whatever_redis_does(
    start: Start, redis: RedisServer, tmp_path: Path
) -> None:  # fmt: skip
    environ = {"MILLRACE_REDIS_URL": redis.url, "MILLRACE_REDIS_TIMEOUT_SECONDS": "0.5"}
    first = start(tmp_path / "data", environ)
    second = start(tmp_path / "data", environ)
    key = first.api_key
    dataset = call(first, key, "POST", "/datasets", {"name": "facts"})["id"]
    document = upload(first, key, dataset)
    path = f"/datasets/{dataset}/documents/{document}/chunks"
    chunk = call(first, key, "POST", path, {"content": "water and iron, edit 0"})["chunk"]["id"]
    disturbances = [lambda: None, redis.flush, redis.kill, lambda: None, redis.start, redis.hang, lambda: None, redis.go_on]
    for number, disturb in enumerate(disturbances, start=1):
        if number in (1, 2, 5):  # with a Redis that works, both answer from memory before the edit
            assert until_remembered(first, key, dataset) == until_remembered(second, key, dataset)
        disturb()
        call(first, key, "PUT", f"{path}/{chunk}", {"content": f"water and iron, edit {number}"})
        for server in (second, first, second):
            assert contents(server, key, dataset) == [f"water and iron, edit {number}"], disturb
    assert until_remembered(second, key, dataset) == [f"water and iron, edit {len(disturbances)}"]
    call(second, key, "DELETE", path, {"chunk_ids": [chunk]})
    assert contents(first, key, dataset) == contents(second, key, dataset) == []


def upload(server: ServerProcess, key: str, dataset: str) -> str:
    """A document of which nothing is parsed."""
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nnothing\r\n--x--\r\n'
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "multipart/form-data; boundary=x"}
    status, raw = server.request("POST", f"/api/v1/datasets/{dataset}/documents", body, headers)
    assert status == 200, raw
    return json.loads(raw)["data"][0]["id"]
