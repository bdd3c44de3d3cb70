"""Embedding models behind an OpenAI-compatible endpoint. Wire format: https://platform.openai.com/docs/api-reference/embeddings."""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag.errors import ProviderBadReply, Unavailable
from rag.llm.cutting import cut, estimated_tokens, windows
from rag.llm.endpoint import Endpoint
from rag.llm.languages import scripts_of, understood_share
from rag.llm.resilience import Guard
from rag.llm.transport import Transport
from rag.llm.vectors import unit_rows

_SPECIAL_TOKENS = 8


class OpenAIEmbedder:
    """An `Embedder`. `name` is the model's name as its endpoint knows it.

    The dimension is the configured one or, without one, that of the first answer; until then `dimension` and `space` raise
    `Unavailable`. An answer of another dimension is an error. A text longer than `context_tokens` (estimated) is sent in windows,
    and its vector is their mean by length; of a question only the beginning counts.
    """

    def __init__(
        self,
        name: str,
        endpoint: Endpoint,
        transport: Transport,
        guard: Guard,
        tokenizer_path: Path,
        *,
        dimension: int | None = None,
        context_tokens: int = 8192,
        max_batch: int = 32,
        languages: Sequence[str] = (),
        query_prompt: str = "",
        document_prompt: str = "",
    ) -> None:
        self.name = name
        self.tokenizer_path = tokenizer_path
        self._endpoint = endpoint
        self._transport = transport
        self._guard = guard
        self._dimension = dimension
        self._max_batch = max_batch
        self._context_tokens = context_tokens - _SPECIAL_TOKENS
        self._scripts = scripts_of(languages, endpoint.model)
        self._query_prompt = query_prompt
        self._document_prompt = document_prompt

    @property
    def dimension(self) -> int:
        """The vectors' length. Raises `Unavailable` while it is not known."""
        if self._dimension is None:
            raise Unavailable(f"the dimension of model {self._endpoint.model} is not known yet: its endpoint has not answered")
        return self._dimension

    @property
    def space(self) -> str:
        """Names the model and its dimension. Raises `Unavailable` while that is not known."""
        return f"{self._endpoint.model}/{self.dimension}"

    async def warm(self) -> None:
        """Ask for one vector, so that the dimension is known and the connection open. Raises `ProviderError`."""
        await self.embed_query("warm")

    async def embed_query(self, text: str) -> np.ndarray:
        """float32 `[dimension]`, unit length. Raises `ProviderError`."""
        return (await self._embed([self._query_prompt + cut(text, self._room(self._query_prompt))]))[0]

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """float32 `[len(texts), dimension]`, unit length, in the order given. Raises `ProviderError`."""
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        pieces = [windows(text, self._room(self._document_prompt)) for text in texts]
        prompted = [self._document_prompt + piece for of_text in pieces for piece in of_text]
        starts = range(0, len(prompted), self._max_batch)
        vectors = np.concatenate([await self._embed(prompted[start : start + self._max_batch]) for start in starts])
        return vectors if len(vectors) == len(texts) else self._joined(vectors, pieces)

    def trust(self, text: str) -> float:
        """The share of the text's letters that belong to the model's languages; 1.0 when none were named."""
        return understood_share(text, self._scripts)

    def _room(self, prompt: str) -> int:
        return max(1, self._context_tokens - round(estimated_tokens(prompt)))

    def _joined(self, vectors: np.ndarray, pieces: Sequence[Sequence[str]]) -> np.ndarray:
        """A vector for each text, of those of its pieces."""
        starts = np.cumsum([0, *(len(of_text) for of_text in pieces[:-1])])
        lengths = np.array([[len(piece)] for of_text in pieces for piece in of_text], dtype=np.float32)
        return unit_rows(np.add.reduceat(vectors * np.maximum(lengths, 1), starts), self._endpoint.model)

    async def _embed(self, texts: Sequence[str]) -> np.ndarray:
        # base64 is a third of the bytes of decimal numbers and no work to parse; endpoints that cannot do it send numbers.
        body = {"model": self.name, "input": list(texts), "encoding_format": "base64"}

        async def attempt() -> np.ndarray:
            reply = await self._transport.post_json(self._endpoint, body)
            return unit_rows(self._placed(reply, len(texts)), self._endpoint.model)

        vectors = await self._guard.call(attempt)
        self._dimension = vectors.shape[1]
        return vectors

    def _placed(self, reply: Any, count: int) -> np.ndarray:
        """The vectors in the order of the texts, float32 `[count, dimension]`. Raises `ProviderBadReply`."""
        rows: list[np.ndarray | None] = [None] * count
        entries = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(entries, list) or len(entries) != count:
            raise ProviderBadReply(f"model {self._endpoint.model} did not answer {count} texts with as many vectors")
        for entry in entries:
            index = entry.get("index") if isinstance(entry, dict) else None
            if not isinstance(index, int) or not 0 <= index < count or rows[index] is not None:
                raise ProviderBadReply(f"model {self._endpoint.model} answered with a missing or doubled index")
            rows[index] = self._vector(entry.get("embedding"))
        lengths = {len(row) for row in rows}
        expected = self._dimension or max(lengths)
        if lengths != {expected}:
            raise ProviderBadReply(f"model {self._endpoint.model} gave vectors of {sorted(lengths)} numbers, not of {expected}")
        return np.stack(rows)

    def _vector(self, value: Any) -> np.ndarray:
        try:
            if isinstance(value, str):
                vector = np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
            else:
                vector = np.array(value, dtype=np.float32)
        except (binascii.Error, ValueError, TypeError):
            vector = np.empty(0, dtype=np.float32)
        if vector.ndim != 1 or not len(vector):
            raise ProviderBadReply(f"model {self._endpoint.model} answered with something that is not a vector")
        return vector
