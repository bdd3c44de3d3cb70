"""Vectors of questions that were asked before, by any process that shares the cache."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rag.errors import Unavailable
from rag.llm.embedding_model import OpenAIEmbedder
from rag.llm.local import LocalEmbedder
from rag.ports import Cache

KEPT_SECONDS = 86_400.0


class RememberingEmbedder:
    """An `Embedder` over another one that asks it for no question's vector twice.

    A vector belongs to its embedding space, the prompt put before questions, and the question's text: it never becomes wrong.
    """

    def __init__(
        self, embedder: LocalEmbedder | OpenAIEmbedder, cache: Cache, query_prompt: str = "",
        on_asked: Callable[[str, bool], None] | None = None,
    ) -> None:  # fmt: skip
        """`on_asked("vector", hit)` is told of every question."""
        self._embedder = embedder
        self._cache = cache
        self._query_prompt = query_prompt
        self._on_asked = on_asked or (lambda cache, hit: None)
        self.name = embedder.name
        self.tokenizer_path: Path = embedder.tokenizer_path

    @property
    def space(self) -> str:
        """The embedder's."""
        return self._embedder.space

    @property
    def dimension(self) -> int:
        """The embedder's."""
        return self._embedder.dimension

    async def warm(self) -> None:
        """As the embedder's; asks it in any case."""
        await self._embedder.warm()

    async def embed_query(self, text: str) -> np.ndarray:
        """float32 `[dimension]`, unit length, read-only. Raises as the embedder."""
        try:
            key, size = self._key(text), self.dimension * np.dtype(np.float32).itemsize
        except Unavailable:  # an endpoint that was never asked: its space is not known
            return await self._embedder.embed_query(text)
        known = await self._cache.get(key)
        hit = known is not None and len(known) == size
        self._on_asked("vector", hit)
        if known is not None and hit:
            return np.frombuffer(known, dtype="<f4")
        vector = await self._embedder.embed_query(text)
        await self._cache.put(key, vector.astype("<f4").tobytes(), KEPT_SECONDS)
        return vector

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """As the embedder's."""
        return await self._embedder.embed_documents(texts)

    def trust(self, text: str) -> float:
        """As the embedder's."""
        return self._embedder.trust(text)

    def _key(self, text: str) -> str:
        digest = hashlib.blake2b(digest_size=20)
        for part in (self.space, self._query_prompt, text):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big"))
            digest.update(encoded)
        return f"vector:{digest.hexdigest()}"
