"""The breakers of the services that keep data are in the figures beside those of models' endpoints."""

import re
from contextlib import suppress
from pathlib import Path

from api.metrics import Metrics
from api.parts import open_parts
from rag.breaker import Breaker, Unanswered
from rag.errors import Unavailable
from rag.settings import Settings
from rag.store.blobs_s3 import S3BlobStore
from rag.types import ChunkSelector

NOBODY = "127.0.0.1:9"
TENANT = "0" * 32


def states(metrics: Metrics) -> dict[tuple[str, str], str]:
    """The state of each breaker by provider and kind."""
    shown = re.findall(r'millrace_breaker_state\{kind="(\w+)",provider="(\w+)",state="(\w+)"\} 1\.0', metrics.text().decode())
    return {(provider, kind): state for kind, provider, state in shown}


def open_up(breaker: Breaker) -> None:
    for _ in range(5):
        with suppress(Unavailable), breaker.watch():
            raise Unanswered("nobody is there")


async def test_a_server_shows_the_breakers_of_the_services_that_it_keeps_data_in(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, ingest_workers=0, store="elasticsearch", elasticsearch_hosts=f"http://{NOBODY}", blob_url="s3://bucket",
        blob_endpoint=f"http://{NOBODY}", redis_url=f"redis://{NOBODY}/0",
    )  # fmt: skip
    async with open_parts(settings, {}) as parts:
        assert states(parts.metrics) == {("elasticsearch", "store"): "closed", ("s3", "blobs"): "closed", ("redis", "cache"): "closed"}
        for _ in range(5):
            with suppress(Unavailable):
                parts.store.count(TENANT, ChunkSelector(dataset_ids=("dataset",)))
        assert isinstance(parts.blobs, S3BlobStore)
        open_up(parts.blobs.breaker)
        assert parts.memory is not None
        await parts.memory.cache.get("key")
        assert states(parts.metrics) == {("elasticsearch", "store"): "open", ("s3", "blobs"): "open", ("redis", "cache"): "open"}


async def test_a_server_that_keeps_everything_itself_shows_none(tmp_path: Path) -> None:
    async with open_parts(Settings(data_dir=tmp_path, ingest_workers=0), {}) as parts:
        assert states(parts.metrics) == {}


def test_breakers_that_are_watched_later_are_shown_beside_the_first() -> None:
    metrics = Metrics()
    metrics.watch_breakers(lambda: [("redis", "cache", "open")])
    metrics.watch_breakers(lambda: [("Jina", "rerank", "closed")])
    assert states(metrics) == {("redis", "cache"): "open", ("Jina", "rerank"): "closed"}
