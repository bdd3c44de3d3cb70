"""api/likeness.py: sentences are compared with the stored vectors of the chunks, and only where the model knows the language."""

import numpy as np
import pytest

from api.likeness import comparing
from rag.types import RankedChunk, SearchRequest
from tests.api.chat.conftest import EMBEDDING, IRON, WATER, Server


async def chunks_of(server: Server, dataset_id: str) -> list[RankedChunk]:
    embedder = server.parts.models.embedder(EMBEDDING)
    request = SearchRequest(server.tenant, (dataset_id,), vector=await embedder.embed_query("any"), space=embedder.space, vector_k=10)
    found = await server.parts.lanes.search.run(server.parts.store.search, request)
    chunks = await server.parts.lanes.search.run(server.parts.store.get, server.tenant, [f"{int(id_):016x}" for id_ in found.ids])
    return [RankedChunk(chunk, 1.0, 1.0, 1.0) for chunk in chunks if chunk is not None]


async def test_a_sentence_is_compared_with_each_chunks_stored_vector(server: Server) -> None:
    chunks = await chunks_of(server, await server.dataset("facts", WATER, IRON))
    embedder = server.parts.models.embedder(EMBEDDING)
    vectors = await embedder.embed_documents([ranked.chunk.content for ranked in chunks])
    server.vendor.requests.clear()
    compare = comparing(server.parts, server.tenant, EMBEDDING)
    for sentence in ("Iron becomes liquid.", "Water turns into steam."):
        cosines = await compare(sentence, chunks)
        assert cosines == pytest.approx(list(vectors @ await embedder.embed_query(sentence)), abs=2e-3)
    inputs = [text for request in server.vendor.requests for text in request.body["input"]]
    assert not {WATER, IRON} & set(inputs), "chunks are not embedded again"


async def test_a_chunk_without_a_vector_is_like_nothing(server: Server) -> None:
    chunks = await chunks_of(server, await server.dataset("facts", WATER))
    unknown = RankedChunk(chunks[0].chunk.__class__("f" * 16, "d" * 32, "e" * 32, "x", "text", chunks[0].chunk.terms), 1.0, 1.0, 1.0)
    cosines = await comparing(server.parts, server.tenant, EMBEDDING)("Water turns into steam.", [unknown, chunks[0]])
    assert cosines is not None
    assert cosines[0] == -1.0
    assert np.isfinite(cosines[1])


async def test_a_model_that_is_gone_or_a_foreign_tenant_has_nothing_to_compare(server: Server) -> None:
    chunks = await chunks_of(server, await server.dataset("facts", WATER))
    assert await comparing(server.parts, server.tenant, "gone@Sim")("Water turns into steam.", chunks) is None
    assert await comparing(server.parts, server.other_tenant, EMBEDDING)("Water turns into steam.", chunks) is None
