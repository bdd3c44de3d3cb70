"""Chunks for the tests of the flows."""

from rag.types import Chunk, ChunkTerms, DocumentCount, RankedChunk, Retrieval

WATER = "Water boils at 100 °C at sea level. On high mountains it boils at lower temperatures, since the air pressure is lower."
IRON = "Iron melts at 1538 °C. It has been worked since about 1200 BC. The Hittites were the first to smelt it."
BRIDGE = "长江大桥于1957年建成。桥长1670米。它连接了武汉的两岸。"


def ranked(content: str, number: int = 0, document: str = "physics.md", similarity: float = 0.8, **fields: object) -> RankedChunk:
    chunk = Chunk(f"{number:016x}", "d" * 32, f"{sum(document.encode()):032x}", document, content, ChunkTerms(), **fields)
    return RankedChunk(chunk, similarity, similarity, similarity)


def retrieval(*chunks: RankedChunk, total: int | None = None, degraded: tuple[str, ...] = ()) -> Retrieval:
    counts = tuple(DocumentCount(entry.chunk.document_id, "", 1) for entry in chunks)
    return Retrieval(len(chunks) if total is None else total, chunks, counts, degraded, {"search": 1.0})
