"""Embeds texts on this machine's CPU with onnxruntime: the bundled all-MiniLM-L6-v2 or a model directory the user brings.

One session is shared by all threads and takes one core a call: batching queries together costs more CPU than it saves, so
parallelism comes from the lanes. Queries and documents have a lane each, so that a full ingestion never makes a query wait in
a queue; give the documents' lane one thread less than there are cores.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rag.llm.encoder import Encoder, join_windows
from rag.llm.languages import scripts_of, understood_share
from rag.llm.model_directory import ModelDirectory
from rag.threads import Lane

# Padded tokens in one call. Larger batches are slower (the cache) and hold more memory: 1,024 gave 7,200 tokens a CPU-second and
# 174 MB for the process, 4,096 gave 6,600 and 253 MB.
BATCH_TOKENS = 1024
# Texts tokenised in one call of the lane.
_TOKENIZE_TEXTS = 128


class LocalEmbedder:
    """An `Embedder` over one model directory. The model is loaded by `warm`, or else by the first call."""

    def __init__(
        self,
        name: str,
        directory: ModelDirectory,
        cache_dir: Path,
        query_lane: Lane,
        document_lane: Lane,
        *,
        languages: Sequence[str] = (),
    ) -> None:
        """`languages` are ISO 639-1 codes, none meaning any."""
        self.name = name
        self.space = f"{name}/{directory.digest}"
        self.dimension = directory.dimension
        self.tokenizer_path = directory.tokenizer_path
        self._directory = directory
        self._cache_dir = cache_dir
        self._query_lane = query_lane
        self._document_lane = document_lane
        self._scripts = scripts_of(languages, name)
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()

    async def warm(self) -> None:
        """Load the model and run it once, so that the first query is as fast as the next. Raises `SettingsError`."""
        await self._query_lane.run(self._embed_query, "warm")

    async def embed_query(self, text: str) -> np.ndarray:
        """float32 `[dimension]`, unit length, read-only. Raises `Overloaded`, `ProviderBadReply`."""
        return await self._query_lane.run(self._embed_query, text)

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """float32 `[len(texts), dimension]`, unit length, in the order given. Raises `Overloaded`, `ProviderBadReply`."""
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        windows: list[list[list[int]]] = []
        for start in range(0, len(texts), _TOKENIZE_TEXTS):
            windows += await self._document_lane.run(self._tokenize_documents, texts[start : start + _TOKENIZE_TEXTS])
        token_ids = [window for text in windows for window in text]
        vectors = np.empty((len(token_ids), self.dimension), dtype=np.float32)
        batches = length_sorted_batches([len(ids) for ids in token_ids], BATCH_TOKENS)

        async def embed_batches() -> None:
            for batch in batches:
                vectors[batch] = await self._document_lane.run(self._embed_tokens, [token_ids[index] for index in batch])

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._document_lane.state.threads):
                    group.create_task(embed_batches())
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return join_windows(vectors, windows, self.name)

    def trust(self, text: str) -> float:
        """The share of the text's letters that belong to the model's languages."""
        return understood_share(text, self._scripts)

    def _embed_query(self, text: str) -> np.ndarray:
        encoder = self._load()
        (windows,) = encoder.tokenize([self._directory.query_prompt + text])
        vector = join_windows(encoder.embed(windows), [windows], self.name)[0]
        vector.flags.writeable = False
        return vector

    def _tokenize_documents(self, texts: Sequence[str]) -> list[list[list[int]]]:
        return self._load().tokenize([self._directory.document_prompt + text for text in texts])

    def _embed_tokens(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        return self._load().embed(token_ids)

    def _load(self) -> Encoder:
        with self._loading:
            if self._encoder is None:
                self._encoder = Encoder(self._directory, self._cache_dir)
            return self._encoder


def length_sorted_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indexes of all texts, longest first, in runs whose padded size (count times longest) is at most `batch_tokens`, or one text."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
