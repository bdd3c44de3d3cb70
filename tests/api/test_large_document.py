"""A document of twenty thousand chunks, from its upload to its deletion, through the real parser, worker and embedded store."""

import asyncio
import dataclasses
import io
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from api.app import create_app
from api.ingest_records import DatabaseRecords
from api.parts import open_store, open_worker
from rag.ingest.sandbox import Sandbox
from rag.types import ChunkSelector
from tests.api.conftest import Server

CHUNKS = 20_000


@pytest.fixture
async def big(api: Server) -> AsyncIterator[Server]:
    """The server with the embedded store and a worker that runs."""
    parts, settings = api.parts, api.parts.settings
    store, sandbox = open_store(settings, settings.data_dir), Sandbox(processes=1)
    records = DatabaseRecords(parts.session, store, parts.lanes.write)
    worker = open_worker(settings, records, store, parts.blobs, parts.models, sandbox, parts.lanes, parts.metrics)
    parts = dataclasses.replace(parts, store=store, worker=worker)
    running = asyncio.create_task(worker.run())
    yield dataclasses.replace(api, app=create_app(parts), parts=parts)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await sandbox.close()
    for lane in parts.lanes.all:
        lane.close()
    store.close()


async def test_a_document_of_twenty_thousand_chunks_is_searched_listed_switched_renamed_and_deleted(big: Server) -> None:
    dataset = await big.dataset(chunk_method="table")
    file = io.StringIO("number,fact\n")
    file.seek(0, io.SEEK_END)
    file.writelines(f"{number},The wheel marked w{number} turns\n" for number in range(CHUNKS))
    document = await big.document(dataset, "wheels.csv", file.getvalue().encode())
    (await big.call("POST", f"/datasets/{dataset}/chunks", {"document_ids": [document]})).data  # noqa: B018
    async with asyncio.timeout(60):
        while (state := await big.listed(dataset, document))["run"] != "DONE":
            assert state["run"] == "RUNNING", state["progress_msg"]
            await asyncio.sleep(0.05)
    assert state["chunk_count"] == CHUNKS

    async def found(number: int) -> list[str]:
        body = {"dataset_ids": [dataset], "question": f"w{number}", "similarity_threshold": 0.2, "vector_similarity_weight": 0}
        return [chunk["document_keyword"] for chunk in (await big.call("POST", "/retrieval", body)).data["chunks"]]

    async def page(number: int) -> dict[str, Any]:
        return (await big.call("GET", f"/datasets/{dataset}/documents/{document}/chunks?page={number}&page_size=100")).data

    async def change(**body: Any) -> None:
        (await big.call("PATCH", f"/datasets/{dataset}/documents/{document}", body)).data  # noqa: B018

    for number in (0, CHUNKS // 2, CHUNKS - 1):
        assert await found(number) == ["wheels.csv"]
    first, last = await page(1), await page(CHUNKS // 100)
    assert (first["total"], len(first["chunks"]), len(last["chunks"])) == (CHUNKS, 100, 100)
    assert first["chunks"][0]["content"].startswith("number: 0;")
    assert last["chunks"][-1]["content"].startswith(f"number: {CHUNKS - 1};")
    await change(enabled=0)
    assert await found(CHUNKS - 1) == []
    await change(enabled=1)
    assert await found(CHUNKS - 1) == ["wheels.csv"]
    await change(name="mills.csv")
    assert await found(0) == await found(CHUNKS - 1) == ["mills.csv"]
    (await big.call("DELETE", f"/datasets/{dataset}/documents", {"ids": [document]})).data  # noqa: B018
    assert await found(CHUNKS - 1) == []
    assert big.parts.store.count(big.tenant, ChunkSelector(document_ids=(document,))) == 0
    assert (await big.call("GET", f"/datasets/{dataset}")).data["chunk_count"] == 0
