"""How fast chunks move between stores: `python -m load.migrate_bench`.

The chunks of load/store_bench.py (384-d vectors, 60 words) move from the embedded store to a private Elasticsearch node and back. In
one run, in turns, medians of the rounds' ratios:

1. reading alone: every page of the source, thrown away;
2. writing alone: pages that are in memory already, by as many threads as a move has, until they can be found; for Elasticsearch also
   `helpers.parallel_bulk` of the official client with the same documents, and the faster of the two counts;
3. the move: `api.migrate.chunks.copy`, until they can be found (goal: >= 0.7 of the slower of 1 and 2);
4. the comparison of both stores that follows it, chunk by chunk.
"""

import argparse
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from elasticsearch import Elasticsearch, helpers

from api.migrate import chunks
from load.store_bench import SPACE, TENANT, batches
from rag.ports import ChunkStore
from rag.store.elastic import Cluster
from rag.store.elastic_index import Layout
from rag.store.elastic_store import ElasticStore
from rag.store.embedded import EmbeddedStore
from rag.store.mapping import document, index_body, vector_field, vector_mapping
from rag.types import StoredChunk
from tests.services.elasticsearch import elasticsearch

GOAL = 0.7
DIMENSION = 384

Pages = Sequence[Sequence[StoredChunk]]


def rate(count: int, work: Callable[[], Any]) -> float:
    """Chunks a second."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def read_alone(source: ChunkStore) -> None:
    for _ in chunks.pages(source, TENANT):
        pass


def write_alone(target: ChunkStore, pages: Pages) -> None:
    target.load(TENANT, pages[0])
    with ThreadPoolExecutor(chunks.LOADERS) as pool:
        list(pool.map(partial(target.load, TENANT), pages[1:]))
    target.flush(TENANT)


def bulk(client: Elasticsearch, index: str, actions: Sequence[dict[str, Any]]) -> None:
    for ok, _ in helpers.parallel_bulk(client, actions, thread_count=chunks.LOADERS, chunk_size=chunks.PAGE_CHUNKS):
        if not ok:
            raise SystemExit("a document was refused")
    client.indices.refresh(index=index)


def bulk_alone(url: str, pages: Pages) -> float:
    """The same documents by the official client, into an index of the same layout."""
    index = f"bulk-{uuid.uuid4().hex}"
    actions = [
        {"_index": index, "_id": item.chunk.id, "_source": orjson.loads(document(item.chunk, item.space, item.vector))}
        for page in pages for item in page
    ]  # fmt: skip
    with Elasticsearch(url) as client:
        body = index_body(1, None)
        client.indices.create(index=index, settings=body["settings"], mappings=body["mappings"])
        client.indices.put_mapping(index=index, properties={vector_field(SPACE): vector_mapping(DIMENSION, "flat")})
        try:
            return rate(len(actions), lambda: bulk(client, index, actions))
        finally:
            client.indices.delete(index=index)


def move(source: ChunkStore, target: ChunkStore) -> None:
    chunks.copy(source, target, TENANT, "", lambda _id, _count: None)
    target.flush(TENANT)


def bench(name: str, count: int, rounds: int, source: ChunkStore, fresh: Callable[[], ChunkStore], url: str | None) -> bool:
    """Print one row; whether the goal is met."""
    pages = list(chunks.pages(source, TENANT))
    figures: list[tuple[float, float, float, float]] = []
    write_alone(fresh(), pages)  # what is done for the first time takes longer
    for number in range(rounds):
        reading = rate(count, lambda: read_alone(source))
        bulk_writing = bulk_alone(url, pages) if url is not None else 0.0
        for turn in (0, 1) if number % 2 else (1, 0):
            target = fresh()
            if turn == 0:
                writing = max(rate(count, partial(write_alone, target, pages)), bulk_writing)
            else:
                moving = rate(count, partial(move, source, target))
                comparing = rate(count, partial(chunks.compare, source, target, TENANT))
            target.drop_tenant(TENANT)
            target.close()
        figures.append((reading, writing, moving, comparing))
    ratio = statistics.median(moving / min(reading, writing) for reading, writing, moving, _ in figures)
    reading, writing, moving, comparing = (statistics.median(column) for column in zip(*figures, strict=True))
    print(f"| {name} | {reading:,.0f} | {writing:,.0f} | {moving:,.0f} | **{ratio:.2f}** | {comparing:,.0f} |", flush=True)
    return ratio >= GOAL


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chunks", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("there", "back"), help="one direction")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="millrace-migrate-") as folder, elasticsearch(heap="1g") as node:
        embedded = EmbeddedStore(Path(folder) / "source", wait_seconds=3600)
        for made, vectors in batches(options.chunks, 2000, np.random.default_rng(1)):
            embedded.put(TENANT, made, vectors, SPACE, wait=False)
        embedded.flush(TENANT)
        elastic = partial(_elastic, node.url)
        print(f"{options.chunks:,} chunks, {options.rounds} rounds, chunks/s\n")
        print("| move | read alone | write alone | move | ratio (goal 0.7) | compare |\n|---|---|---|---|---|---|")
        met = True
        if options.only != "back":
            met &= bench("embedded to Elasticsearch", options.chunks, options.rounds, embedded, elastic, node.url)
        big = elastic()
        move(embedded, big)
        embedded.close()
        fresh = lambda: EmbeddedStore(Path(folder) / uuid.uuid4().hex, wait_seconds=3600)  # noqa: E731
        if options.only != "there":
            met &= bench("Elasticsearch to embedded", options.chunks, options.rounds, big, fresh, None)
        big.close()
    raise SystemExit(not met)


def _elastic(url: str) -> ElasticStore:
    return ElasticStore(Cluster([url]), Layout(prefix=f"{uuid.uuid4().hex}-"))


if __name__ == "__main__":
    main()
