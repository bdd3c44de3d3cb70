"""What makes `/readyz` say no, beside the parts of test_system.py."""

import asyncio
import dataclasses
import time
from pathlib import Path

import pytest

from api.app import create_app
from rag.errors import ProviderUnreachable
from rag.llm.registry import ModelSpec, Registry
from rag.llm.transport import Transport, open_client
from tests.api.conftest import Server


async def test_not_ready_while_the_default_embedding_model_is_left_alone_and_ready_again_without_a_call(
    api: Server, tmp_path: Path
) -> None:  # fmt: skip
    async with open_client() as nobody:
        models = Registry(
            [ModelSpec("meaning", "Far", "embedding", base_url="http://localhost:9/v1", default=True)], {}, Transport(nobody),
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
    assert {name for name, state in body["parts"].items() if not state["ok"]} == {"embedder"}
    assert body["parts"]["embedder"]["reason"].startswith("the default embedding model is not asked now: provider Far failed too often")
    asked = time.monotonic()
    while (await client.get("/readyz")).status_code == 503:
        await asyncio.sleep(0.01)
        assert time.monotonic() < asked + 10
    assert breaker.state == "half_open"
