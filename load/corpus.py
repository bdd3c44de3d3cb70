"""A data directory with 100,000 chunks, as a server finds it after long ingestion: rows in the database, chunks in the store.

Built once into `.cache/bench`. The words are the embedding model's own vocabulary, drawn with the frequencies of a language (Zipf),
so that questions have as many tokens as real ones; a chunk's vector is that of a real sentence with noise.
"""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from api.keys import ensure_first_key
from api.parts import open_parts
from db.models import Dataset, Document, name_key
from db.services import tenant_service
from load.split_bench import tokenizer
from rag.llm.model_directory import bundled_model_path, read_model_directory
from rag.nlp.tokenize import ANALYSER_VERSION, chunk_terms
from rag.ports import ChunkStore
from rag.settings import Settings
from rag.types import Chunk

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"
DATASETS, DOCUMENTS_A_DATASET, CHUNKS_A_DOCUMENT = 10, 200, 50
CHUNKS = DATASETS * DOCUMENTS_A_DATASET * CHUNKS_A_DOCUMENT
WORDS_A_CHUNK, WORDS_A_QUESTION = 60, 9
SENTENCES = 500
BATCH = 5_000
NOISE = 0.8
RECIPE = 1  # another number for another corpus


@dataclass(frozen=True, slots=True)
class Corpus:
    """Where it is and what is in it. `dataset_ids` hold 10,000 chunks each."""

    data_dir: Path
    tenant_id: str
    dataset_ids: tuple[str, ...]
    embedding_model: str
    space: str


def corpus() -> Corpus:
    """The corpus, built if it is not there yet (about a minute)."""
    made_by = f"{RECIPE} {ANALYSER_VERSION} {read_model_directory(bundled_model_path()).digest}"
    folder = CACHE / "bench" / f"corpus-{CHUNKS}-{xxhash.xxh32_hexdigest(made_by.encode())}"
    facts = folder / "corpus.json"
    if not facts.exists():
        shutil.rmtree(folder, ignore_errors=True)
        built = asyncio.run(_build(folder / "data"))
        facts.write_bytes(orjson.dumps(built))
    known = orjson.loads(facts.read_bytes())
    return Corpus(folder / "data", known["tenant_id"], tuple(known["dataset_ids"]), known["embedding_model"], known["space"])


def questions(count: int, seed: int) -> list[str]:
    """Distinct questions of nine words, frequent and rare ones, few of grammar."""
    words = vocabulary()
    picks = _zipf(np.random.default_rng(seed), (count, WORDS_A_QUESTION), 60, len(words))
    return [" ".join(words[rank] for rank in row) + "?" for row in picks.tolist()]


def _zipf(rng: np.random.Generator, shape: tuple[int, int], low: int, high: int) -> np.ndarray:
    """Ranks in `[low, high)`, each as frequent as its inverse."""
    return np.exp(rng.uniform(np.log(low), np.log(high), shape)).astype(np.int64)


def vocabulary() -> list[str]:
    """The model's whole words, most frequent first."""
    tokens = orjson.loads(tokenizer().read_bytes())["model"]["vocab"]
    return [token for token in sorted(tokens, key=tokens.get) if token.isascii() and token.isalpha() and len(token) > 2]


async def _build(data_dir: Path) -> dict[str, Any]:
    settings = Settings(data_dir=data_dir, cache_dir=CACHE / "models", ingest_workers=0)
    async with open_parts(settings, {}) as parts:
        await parts.lanes.db.run(ensure_first_key, parts.session, data_dir, settings.default_tenant)
        tenant_id = (await parts.session.write(tenant_service.ensure_tenant, settings.default_tenant)).id
        model = parts.models.default_embedding
        embedder = parts.models.embedder(model)
        sentences = await embedder.embed_documents(questions(SENTENCES, seed=1))
        dataset_ids = await parts.session.write(_rows, tenant_id, model)
        await parts.lanes.search.run(_fill, parts.store, tenant_id, dataset_ids, sentences, embedder.space)
    return {"tenant_id": tenant_id, "dataset_ids": dataset_ids, "embedding_model": model, "space": embedder.space}


def _rows(tenant_id: str, model: str) -> list[str]:
    """The rows of datasets and documents; the datasets' ids."""
    dataset_ids = []
    for number in range(DATASETS):
        dataset = Dataset.create(
            tenant_id=tenant_id, created_by=tenant_id, name=f"bench {number}", name_key=name_key(f"bench {number}"), embedding_model=model,
            document_count=DOCUMENTS_A_DATASET, chunk_count=DOCUMENTS_A_DATASET * CHUNKS_A_DOCUMENT,
        )  # fmt: skip
        dataset_ids.append(dataset.id)
        for place in range(DOCUMENTS_A_DATASET):
            name = f"report {place}.txt"
            Document.create(
                id=_document_id(number, place), tenant_id=tenant_id, dataset_id=dataset.id, created_by=tenant_id, name=name,
                name_key=name_key(name), location="", type="doc", suffix="txt", chunk_count=CHUNKS_A_DOCUMENT, progress=1.0, run="DONE",
                version=1,
            )  # fmt: skip
    return dataset_ids


def _fill(store: ChunkStore, tenant_id: str, dataset_ids: Sequence[str], sentences: np.ndarray, space: str) -> None:
    rng = np.random.default_rng(7)
    words = np.array(vocabulary())
    for start in range(0, CHUNKS, BATCH):
        ranks = _zipf(rng, (BATCH, WORDS_A_CHUNK), 1, len(words) + 1) - 1
        chunks = [_chunk(start + offset, " ".join(row), dataset_ids) for offset, row in enumerate(words[ranks].tolist())]
        noise = rng.standard_normal((BATCH, sentences.shape[1]), np.float32) * (NOISE / sentences.shape[1] ** 0.5)
        store.put(tenant_id, chunks, sentences[rng.integers(0, len(sentences), BATCH)] + noise, space, wait=False)
    store.flush(tenant_id)


def _chunk(number: int, content: str, dataset_ids: Sequence[str]) -> Chunk:
    document, position = divmod(number, CHUNKS_A_DOCUMENT)
    dataset, place = divmod(document, DOCUMENTS_A_DATASET)
    name = f"report {place}.txt"
    return Chunk(
        f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}", dataset_ids[dataset], _document_id(dataset, place), name, content,
        chunk_terms(name, (), content), version=1, position=position,
    )  # fmt: skip


def _document_id(dataset: int, place: int) -> str:
    return f"{dataset * DOCUMENTS_A_DATASET + place:032x}"
