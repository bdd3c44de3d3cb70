"""How like the retrieved chunks a sentence of an answer is, by the vectors of their dataset's model."""

from collections.abc import Sequence

import numpy as np

from api.parts import Parts
from rag.errors import NotFound
from rag.flow.citations import Compare
from rag.types import RankedChunk

LEAST_TRUST = 0.5  # of the model in a text's language; below, its cosines say nothing
SENTENCE_CHARACTERS = 1_000  # the end of a longer one is compared: the citation stands there
JUDGED_CHARACTERS = 1_000  # of a chunk, to tell its language


def comparing(parts: Parts, tenant_id: str, embedding_model: str) -> Compare:
    """Compares the sentences of one answer. The chunks' vectors are read once, from the store: nothing but sentences is embedded."""
    known: np.ndarray | None = None

    async def compare(sentence: str, chunks: Sequence[RankedChunk]) -> Sequence[float] | None:
        nonlocal known
        try:
            embedder = parts.models.embedder(embedding_model)
        except NotFound:  # taken out of the settings since: the retrieval has told
            return None
        if embedder.trust(sentence) < LEAST_TRUST:
            return None
        vector = await embedder.embed_query(sentence[-SENTENCE_CHARACTERS:])
        if known is None:
            ids = [ranked.chunk.id for ranked in chunks]
            known = await parts.lanes.search.run(parts.store.vectors, tenant_id, ids, embedder.space)
        if known.shape[1] != len(vector):
            return None
        cosines = np.nan_to_num(known @ vector, nan=-1.0)
        return [
            float(cosine) if embedder.trust(ranked.chunk.content[:JUDGED_CHARACTERS]) >= LEAST_TRUST else -1.0
            for cosine, ranked in zip(cosines, chunks, strict=True)
        ]

    return compare
