"""The spool: batches in order, bounded memory, nothing left behind."""

import asyncio

import pytest

from rag.errors import Unavailable
from rag.ingest import spool as spool_module
from rag.ingest.spool import Spool
from rag.threads import Lane


@pytest.fixture
def lane():
    lane = Lane("blob", 2, 100)
    yield lane
    lane.close()


@pytest.mark.parametrize("memory_bytes", [spool_module.MEMORY_BYTES, 64])
async def test_batches_come_in_order_while_others_are_put(tmp_path, lane, monkeypatch, memory_bytes):
    monkeypatch.setattr(spool_module, "MEMORY_BYTES", memory_bytes)
    batches = [[{"number": number, "text": "水" * number}] for number in range(50)]
    with Spool(tmp_path, lane) as spool:

        async def write():
            for batch in batches:
                await spool.put(batch)
            spool.end()

        writing = asyncio.create_task(write())
        read = []
        while batch := await spool.get():
            read.append(batch)
        await writing
        assert read == batches
        assert await spool.get() == []
        assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_takes_no_file_is_unavailable(tmp_path, lane):
    with Spool(tmp_path / "missing", lane) as spool, pytest.raises(Unavailable, match="no room"):
        await spool.put(["x" * (spool_module.MEMORY_BYTES + 1)])
