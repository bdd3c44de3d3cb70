"""How fast the embedded store is at several sizes: `python -m load.store_bench --sizes 10000,100000,1000000`.

Synthetic chunks: 384-d random vectors, about 60 words drawn from a Zipf-like vocabulary, datasets of 10,000 chunks. Times are
wall-clock milliseconds of whole `search()` calls from one thread; CPU is the process's CPU time per search.
"""

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from rag.store.embedded import EmbeddedStore
from rag.types import Chunk, ChunkTerms, SearchRequest, Term

TENANT, SPACE, DIMENSION = "b" * 32, "bench", 384
DATASET_CHUNKS, DOCUMENT_CHUNKS, WORDS = 10_000, 50, 60
VOCABULARY = 60_000


def batches(total: int, size: int, rng: np.random.Generator):
    """Chunks and vectors of the corpus, batch by batch."""
    names = np.array([f"t{n}" for n in range(VOCABULARY)])
    for start in range(0, total, size):
        count = min(size, total - start)
        words = names[np.minimum(rng.zipf(1.25, (count, WORDS)), VOCABULARY) - 1]
        texts = [" ".join(row) for row in words.tolist()]
        chunks = [
            Chunk(
                f"{(start + n) * 0x9E3779B97F4A7C15 % (1 << 64):016x}", f"dataset{(start + n) // DATASET_CHUNKS}",
                f"document{(start + n) // DOCUMENT_CHUNKS}", "document", text, ChunkTerms(title="a title", content=text), position=n,
            ) for n, text in enumerate(texts)
        ]  # fmt: skip
        yield chunks, rng.standard_normal((count, DIMENSION), np.float32)


def request(rng: np.random.Generator, datasets: tuple[str, ...], k: int) -> SearchRequest:
    """A question of eight words, some frequent, some rare."""
    ranks = np.unique(np.minimum(rng.zipf(1.15, 8) + rng.integers(1, 400, 8), VOCABULARY) - 1)
    vector = rng.standard_normal(DIMENSION).astype(np.float32)
    terms = tuple(Term(f"t{rank}") for rank in ranks.tolist())
    return SearchRequest(TENANT, datasets, terms=terms, vector=vector / np.linalg.norm(vector), space=SPACE, text_k=k, vector_k=k)


def measure(store: EmbeddedStore, requests: list[SearchRequest]) -> str:
    """`p50 / p95 (CPU)` in milliseconds."""
    for item in requests[:5]:
        store.search(item)
    times, cpu = [], time.process_time()
    for item in requests:
        start = time.perf_counter()
        store.search(item)
        times.append(time.perf_counter() - start)
    cpu = (time.process_time() - cpu) / len(requests)
    p50, p95 = np.percentile(np.array(times) * 1e3, [50, 95])
    return f"{p50:.1f} / {p95:.1f} ({cpu * 1e3:.1f})"


def memory_mb(field: str) -> int:
    """A figure of /proc/self/status in MB: `VmRSS`, or `RssAnon`, which leaves out mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) // 1024
    return 0


def disk_mb(folder: Path) -> int:
    """All files under the folder, in MB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) >> 20


def bench(size: int, folder: Path, searches: int) -> None:
    """Print one row of the table."""
    rng = np.random.default_rng(size)
    store = EmbeddedStore(folder, wait_seconds=3600)
    writing = making = 0.0
    start = time.perf_counter()
    made = batches(size, 5000, rng)
    while True:
        making -= time.perf_counter()
        batch = next(made, None)
        making += time.perf_counter()
        if batch is None:
            break
        writing -= time.perf_counter()
        store.put(TENANT, *batch, SPACE, wait=False)
        writing += time.perf_counter()
    store.flush(TENANT)
    searchable = time.perf_counter() - start - making
    store.close()
    start = time.perf_counter()
    store = EmbeddedStore(folder)
    every = tuple(f"dataset{n}" for n in range(-(-size // DATASET_CHUNKS)))
    store.search(request(rng, every, 64))
    opening = time.perf_counter() - start
    picks = [(every[n],) for n in rng.integers(0, len(every), searches)]
    filtered = [request(rng, pick, 64) for pick in picks]
    columns = [
        f"{size:,}", f"{size / writing:,.0f} / {size / searchable:,.0f}", f"{opening:.2f}", measure(store, filtered),
        measure(store, [replace(item, text_k=1024, vector_k=1024) for item in filtered]),
        measure(store, [replace(item, vector=None) for item in filtered]), measure(store, [replace(item, terms=()) for item in filtered]),
        measure(store, [replace(item, dataset_ids=every) for item in filtered[: searches // 2]]),
        f"{memory_mb('VmRSS')} / {memory_mb('RssAnon')}", f"{disk_mb(folder):,}",
    ]  # fmt: skip
    print("| " + " | ".join(columns) + " |", flush=True)
    store.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10000,100000", help="chunks, comma separated")
    parser.add_argument("--searches", type=int, default=200, help="searches per figure")
    parser.add_argument("--folder", type=Path, help="where to put the stores; a temporary folder when left out")
    options = parser.parse_args()
    print("| chunks | stored / searchable chunks/s | open s | dataset 64+64 p50 / p95 (CPU) ms | dataset 1024+1024 | text 64 | vector 64 "
          "| unfiltered 64+64 | RSS / anonymous MB | disk MB |\n|" + "---|" * 10)  # fmt: skip
    for size in map(int, options.sizes.split(",")):
        folder = Path(tempfile.mkdtemp(prefix="millrace-bench-", dir=options.folder))
        try:
            bench(size, folder, options.searches)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
