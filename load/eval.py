"""Retrieval quality over a folder of test sets: `python -m load.eval [--data DIR] [--sets NAME ...]`.

Every set in BEIR layout (`corpus.jsonl`, `queries.jsonl`, `qrels.tsv` or `qrels/test.tsv`) is indexed as a tenant of its own, a
document's title being its name as after an upload, and searched through the real path: `async_retrieval`, the embedded store,
the local embedding model. `--store elasticsearch` compares that store's ranking with the embedded one's instead (load/parity.py).
Prints nDCG@10 of the text arm alone, of the vector arm alone and of the default fusion, and whether
the three conditions hold; exits with 1 when one does not.

Where `baselines.json` gives figures for a set, the arms are held against them. The vector arm alone is measured with full trust
in the model, also in languages it does not know. Vectors are kept under `.cache/eval`, so that only the first run embeds.
"""

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from rag.ingest.context import embedding_text
from rag.llm.bert_graph import BUILDER_VERSION
from rag.llm.local import LocalEmbedder
from rag.llm.model_directory import bundled_model_path, read_model_directory
from rag.nlp.find import LaneFinder
from rag.nlp.search import RetrievalRequest, async_retrieval
from rag.nlp.tokenize import ANALYSER_VERSION, chunk_terms
from rag.ports import ChunkStore, Embedder
from rag.store.embedded import EmbeddedStore
from rag.threads import Lane
from rag.types import Chunk

DEPTH = 10
ARM_TOLERANCE = 0.01  # below its baseline
FUSION_TOLERANCE = 0.005  # below the better arm
DATASET = "d" * 32
CONCURRENCY = 4


@dataclass(frozen=True, slots=True)
class EvalSet:
    """A set as read. `grades[question][document]`: above 0 relevant, 0 not, below 0 taken out of rankings before scoring."""

    name: str
    documents: Sequence[Mapping[str, str]]
    questions: Mapping[str, str]
    grades: Mapping[str, Mapping[str, int]]
    text_baseline: float | None = None
    vector_baseline: float | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """Parameters of a retrieval that shows one arm, or both."""

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    trust: float | None = None


ARMS = (
    Arm("text", {"vector_similarity_weight": 0.0}),
    Arm("vector", {"vector_similarity_weight": 1.0, "similarity_threshold": -1.0}, trust=1.0),
    Arm("hybrid"),
)


@dataclass(frozen=True, slots=True)
class Score:
    """A set's nDCG@10 by arm, and what a retrieval took in the default setting."""

    test_set: EvalSet
    ndcg: Mapping[str, float]
    milliseconds: float

    @property
    def failures(self) -> list[str]:
        """The conditions that do not hold, in words."""
        text, vector, hybrid = (self.ndcg[arm.name] for arm in ARMS)
        found = []
        if self.test_set.text_baseline is not None and text < self.test_set.text_baseline - ARM_TOLERANCE:
            found.append("text below its baseline")
        if self.test_set.vector_baseline is not None and vector < self.test_set.vector_baseline - ARM_TOLERANCE:
            found.append("vector below its baseline")
        if hybrid < max(text, vector) - FUSION_TOLERANCE:
            found.append("hybrid below the better arm")
        return found


# ---------------------------------------------------------------------------------------------------- scoring
def ndcg(ranked: Sequence[str], grades: Mapping[str, int], depth: int = DEPTH) -> float:
    """Normalised discounted cumulative gain with linear gains, as trec_eval computes it. Removed documents leave no gap."""
    judged = [max(0, grades.get(document, 0)) for document in ranked if grades.get(document, 0) >= 0]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)
    return _gain(judged[:depth]) / _gain(ideal[:depth])


def _gain(grades: Sequence[int]) -> float:
    return sum(grade / math.log2(rank + 2) for rank, grade in enumerate(grades))


# ---------------------------------------------------------------------------------------------------- reading
def read_sets(data: Path, names: Sequence[str] = ()) -> Iterator[EvalSet]:
    """The sets in the folder, or the folder itself where it is one, by name. Raises `ValueError` for a name that is not there."""
    folders = [data] if _is_set(data) else sorted(folder for folder in data.iterdir() if _is_set(folder))
    unknown = set(names) - {folder.name for folder in folders}
    if unknown:
        raise ValueError(f"no set named {sorted(unknown)[0]} in {data}")
    baselines = json.loads((data / "baselines.json").read_bytes()) if (data / "baselines.json").exists() else {}
    for folder in folders:
        if not names or folder.name in names:
            yield read_set(folder, baselines)


def read_set(folder: Path, baselines: Mapping[str, Mapping[str, float]]) -> EvalSet:
    """The set in the folder; questions without a relevant document are left out, as they cannot be scored."""
    grades = {
        question: judged for question, judged in _read_grades(_grades_path(folder)).items() if any(grade > 0 for grade in judged.values())
    }
    questions = {row["id"]: row["text"] for row in _read_rows(folder / "queries.jsonl") if row["id"] in grades}
    return EvalSet(
        name=folder.name,
        documents=list(_read_rows(folder / "corpus.jsonl")),
        questions=questions,
        grades=grades,
        text_baseline=baselines.get(f"{folder.name}/bm25", {}).get("nDCG@10"),
        vector_baseline=baselines.get(f"{folder.name}/dense", {}).get("nDCG@10"),
    )


def _is_set(folder: Path) -> bool:
    return (folder / "corpus.jsonl").is_file() and (folder / "queries.jsonl").is_file() and _grades_path(folder).is_file()


def _grades_path(folder: Path) -> Path:
    plain, nested = folder / "qrels.tsv", folder / "qrels" / "test.tsv"
    return plain if plain.is_file() else nested


def _read_rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                row = json.loads(line)
                yield {"id": str(row.get("id", row.get("_id"))), "title": row.get("title") or "", "text": row.get("text") or ""}


def _read_grades(path: Path) -> dict[str, dict[str, int]]:
    grades: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8") as lines:
        next(lines, None)  # the header
        for line in lines:
            if line.strip():
                question, document, grade = line.split()
                grades.setdefault(question, {})[document] = int(float(grade))
    return grades


# ---------------------------------------------------------------------------------------------------- vectors
class KnownQuestions:
    """An embedder whose questions were embedded before."""

    def __init__(self, embedder: Embedder, vectors: Mapping[str, np.ndarray], trust: float | None) -> None:
        self.space, self.dimension, self.tokenizer_path = embedder.space, embedder.dimension, embedder.tokenizer_path
        self.embed_documents = embedder.embed_documents
        self._embedder, self._vectors, self._trust = embedder, vectors, trust

    async def embed_query(self, text: str) -> np.ndarray:
        return self._vectors[text]

    def trust(self, text: str) -> float:
        return self._embedder.trust(text) if self._trust is None else self._trust


async def cached_vectors(cache: Path, embedder: Embedder, texts: Sequence[str], *, questions: bool) -> np.ndarray:
    """The texts' vectors, float32 `[len(texts), dimension]`, from the cache where they were made before."""
    kind = "questions" if questions else "documents"
    named = "\0".join((embedder.space, str(BUILDER_VERSION), kind, *texts))
    digest = blake2b(named.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    path = cache / f"{digest}.npy"
    if path.exists():
        return np.load(path)
    if questions:
        vectors = np.stack([await embedder.embed_query(text) for text in texts])
    else:
        vectors = await embedder.embed_documents(texts)
    _save(path, vectors)
    return vectors


def _save(path: Path, vectors: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, vectors)
    partial.replace(path)


@contextmanager
def local_embedder(model: Path | None, languages: Sequence[str], cache: Path) -> Iterator[LocalEmbedder]:
    """The bundled model, or the one in the directory given."""
    directory = read_model_directory(model or bundled_model_path())
    queries, documents = Lane("embed-query", 2, 1_000), Lane("embed-documents", 2, 1_000)
    try:
        yield LocalEmbedder(directory.path.name, directory, cache, queries, documents, languages=languages)
    finally:
        queries.close()
        documents.close()


# ---------------------------------------------------------------------------------------------------- running
async def score_set(test_set: EvalSet, store: ChunkStore, tenant_id: str, embedder: Embedder, lane: Lane, cache: Path) -> Score:
    """Index the set and ask all its questions, in every arm."""
    await index_set(test_set, store, tenant_id, embedder, lane, cache)
    known = await question_vectors(test_set, embedder, cache)
    figures, milliseconds = {}, 0.0
    for arm in ARMS:
        started = time.perf_counter()
        figures[arm.name] = await _score_arm(test_set, arm, store, tenant_id, KnownQuestions(embedder, known, arm.trust), lane)
        milliseconds = (time.perf_counter() - started) * 1000 / max(1, len(test_set.questions))
    return Score(test_set, figures, milliseconds)


async def index_set(test_set: EvalSet, store: ChunkStore, tenant_id: str, embedder: Embedder, lane: Lane, cache: Path) -> None:
    """Put a chunk a document, with its vector, into the store."""
    chunks = [_chunk(number, row) for number, row in enumerate(test_set.documents)]
    texts = [embedding_text(chunk.document_name, (), chunk.content) for chunk in chunks]
    vectors = await cached_vectors(cache, embedder, texts, questions=False)
    for start in range(0, len(chunks), 512):
        part = slice(start, start + 512)
        await lane.run(store.put, tenant_id, chunks[part], vectors[part], embedder.space, wait=False)
    await lane.run(store.flush, tenant_id)


async def question_vectors(test_set: EvalSet, embedder: Embedder, cache: Path) -> Mapping[str, np.ndarray]:
    """The vectors of the set's questions by their texts."""
    asked = list(dict.fromkeys(text.strip() for text in test_set.questions.values()))
    return dict(zip(asked, await cached_vectors(cache, embedder, asked, questions=True), strict=True))


async def _score_arm(test_set: EvalSet, arm: Arm, store: ChunkStore, tenant_id: str, embedder: Embedder, lane: Lane) -> float:
    room = asyncio.Semaphore(CONCURRENCY)

    async def score(question_id: str, question: str) -> float:
        grades = test_set.grades[question_id]
        removed = sum(grade < 0 for grade in grades.values())
        request = RetrievalRequest(question, tenant_id, (DATASET,), page_size=DEPTH + removed, **arm.parameters)
        async with room:
            found = await async_retrieval(request, finder=LaneFinder(store, lane), lane=lane, embedder=embedder, document_names=no_names)
        if found.degraded:
            raise RuntimeError(f"set {test_set.name}: {', '.join(found.degraded)} failed")
        return ndcg([str(entry.chunk.extra["id"]) for entry in found.chunks], grades)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(score(question_id, text)) for question_id, text in test_set.questions.items()]
    # a question that the set judges and does not hold counts as not answered
    return sum(task.result() for task in tasks) / len(test_set.grades)


async def no_names(document_ids: Sequence[str]) -> Mapping[str, str]:
    """Names are not looked at here."""
    return {}


def _chunk(number: int, row: Mapping[str, str]) -> Chunk:
    name = f"{row['title']}.txt" if row["title"] else ""
    return Chunk(
        id=f"{number + 1:016x}",
        dataset_id=DATASET,
        document_id=f"{number + 1:032x}",
        document_name=name,
        content=row["text"],
        terms=chunk_terms(name, (), row["text"]),
        version=1,
        extra={"id": row["id"]},
    )


def print_table(scores: Sequence[Score]) -> None:
    """A line a set: figures, baselines in brackets, verdict."""
    print(f"{'nDCG@10':<18}{'docs':>7}{'asked':>7}  {'text (base)':<15}{'vector (base)':<15}{'hybrid':<8}{'vs better':<11}{'ms':<6}verdict")
    for score in scores:
        text, vector, hybrid = (score.ndcg[arm.name] for arm in ARMS)
        test_set = score.test_set
        print(
            f"{test_set.name:<18}{len(test_set.documents):>7}{len(test_set.questions):>7}"
            f"  {_with_baseline(text, test_set.text_baseline):<15}{_with_baseline(vector, test_set.vector_baseline):<15}"
            f"{hybrid:<8.4f}{hybrid - max(text, vector):<+11.4f}{score.milliseconds:<6.1f}{'; '.join(score.failures) or 'ok'}"
        )
    means = {arm.name: sum(score.ndcg[arm.name] for score in scores) / len(scores) for arm in ARMS}
    print(f"{'mean':<18}{'':>14}  {means['text']:<15.4f}{means['vector']:<15.4f}{means['hybrid']:<8.4f}")


def _with_baseline(figure: float, baseline: float | None) -> str:
    return f"{figure:.4f}" if baseline is None else f"{figure:.4f} ({baseline:.3f})"


async def evaluate(data: Path, names: Sequence[str], model: Path | None, languages: Sequence[str], cache: Path) -> list[Score]:
    """The sets' scores, in the order of their names."""
    lane = Lane("search", 2, 1_000)
    scores: list[Score] = []
    with tempfile.TemporaryDirectory(prefix="millrace-eval-") as folder, local_embedder(model, languages, cache / "models") as embedder:
        store = EmbeddedStore(Path(folder), analyser_version=ANALYSER_VERSION)
        try:
            for number, test_set in enumerate(read_sets(data, names), start=1):
                scores.append(await score_set(test_set, store, f"{number:032x}", embedder, lane, cache / "eval"))
        finally:
            store.close()
            lane.close()
    return scores


def main() -> None:
    """Print the table; exit with 1 when a condition does not hold, with 2 when there is nothing to score."""
    arguments = argparse.ArgumentParser(description="Retrieval quality over test sets in BEIR layout.")
    arguments.add_argument("--data", type=Path, default=Path("../shared/data"), help="a folder of sets, or one set")
    arguments.add_argument("--sets", nargs="*", default=(), help="only these")
    arguments.add_argument("--model", type=Path, help="an embedding model's directory instead of the bundled model")
    arguments.add_argument("--languages", nargs="*", default=("en",), help="ISO 639-1 codes the model knows; none: all")
    arguments.add_argument("--cache", type=Path, default=Path(".cache"))
    arguments.add_argument("--store", choices=("embedded", "elasticsearch"), default="embedded")
    options = arguments.parse_args()
    if options.store == "elasticsearch":
        # here, because only this needs a node, and it reads sets as this module does
        from load.parity import compare

        sys.exit(asyncio.run(compare(options.data, options.sets, options.model, options.languages, options.cache)))
    try:
        scores = asyncio.run(evaluate(options.data, options.sets, options.model, options.languages, options.cache))
    except (OSError, ValueError) as exc:
        print(f"eval: {exc}", file=sys.stderr)
        sys.exit(2)
    if not scores:
        print(f"eval: no set in {options.data}", file=sys.stderr)
        sys.exit(2)
    print_table(scores)
    sys.exit(1 if any(score.failures for score in scores) else 0)


if __name__ == "__main__":
    main()
