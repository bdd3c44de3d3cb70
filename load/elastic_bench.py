"""The chunk store on Elasticsearch against a bare client: `python -m load.elastic_bench`.

A private node (tests/services/elasticsearch.py) holds the corpus of load/corpus.py, 100,000 chunks. Then, in one run:

1. `/retrieval` of a real server, 16 callers, question vectors remembered and results not, against 16 threads with the official
   client that send the very requests which the store sent for these questions, and decode the answers, as JSON, which is what that
   client reads (goal: requests/s >= 0.8);
2. CPU of the server's process a retrieval (goal: <= 4 ms);
3. `put` of chunks with their vectors from four threads against `helpers.parallel_bulk` with four of the same documents, both until
   they are found (goal: chunks/s >= 0.9).

Rounds alternate and medians are compared, because node, server and callers share this machine's cores.
"""

import argparse
import multiprocessing
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from elasticsearch import Elasticsearch, OrjsonSerializer, helpers

from load.callers import drive, post_requests
from load.corpus import CACHE, CHUNKS, Corpus, corpus, questions
from load.processes import cpu_seconds
from rag.llm.encoder import Encoder
from rag.llm.model_directory import bundled_model_path, read_model_directory
from rag.nlp.find import chunk_ids
from rag.nlp.fuse import fuse
from rag.nlp.query import question_terms
from rag.nlp.search import FIELD_BOOSTS, TEXT_CANDIDATES
from rag.nlp.tokenize import ANALYSER_VERSION
from rag.store.elastic import Cluster
from rag.store.elastic_index import Layout
from rag.store.elastic_store import ElasticStore
from rag.store.embedded import EmbeddedStore
from rag.store.mapping import document, index_body, vector_field, vector_mapping
from rag.store.vectors import unit_rows
from rag.types import Chunk, ChunkSelector, SearchRequest
from tests.e2e.server_process import ServerProcess
from tests.services.elasticsearch import Node, elasticsearch

CALLERS = 16
QUESTIONS = 200
PAGE_SIZE = 30
RATE_GOAL, CPU_GOAL_MS, BULK_GOAL = 0.8, 4.0, 0.9
WRITERS, BULK_CHUNKS, BATCH = 4, 20_000, 500
BULK_TENANT = "f" * 32

Sent = tuple[str, str, bytes, dict[str, str], bool]


class Recording(Cluster):
    """A cluster that keeps what it was asked."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sent: list[Sent] = []

    def ask(self, method: str, path: str, body: bytes | None = None, *, params=None, lines=False, **rest: Any):
        self.sent.append((method, path, body or b"", dict(params or {}), lines))
        return super().ask(method, path, body, params=params, lines=lines, **rest)


def layout() -> Layout:
    """The layout a server of default settings has."""
    return Layout(analyser_version=ANALYSER_VERSION)


def batches(built: Corpus, limit: int = CHUNKS) -> Iterator[tuple[list[Chunk], np.ndarray]]:
    """The corpus' chunks and vectors, as the embedded store holds them."""
    source = EmbeddedStore(built.data_dir / "chunks", analyser_version=ANALYSER_VERSION)
    try:
        for start in range(0, limit, BATCH):
            ids = [f"{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}" for number in range(start, start + BATCH)]
            yield source.get(built.tenant_id, ids), source.vectors(built.tenant_id, ids, built.space)
    finally:
        source.close()


def fill(built: Corpus, node: Node) -> None:
    """Put the whole corpus into the node."""
    store = ElasticStore(Cluster([node.url]), layout())
    for chunks, vectors in batches(built):
        store.put(built.tenant_id, chunks, vectors, built.space, wait=False)
    store.flush(built.tenant_id)
    store.close()


# ---------------------------------------------------------------------------------------------------- searching
def requests_of(
    store: ElasticStore, cluster: Recording, built: Corpus, asked: Sequence[str], dataset_ids: tuple[str, ...]
) -> list[list[Sent]]:
    """What the store sends for each question, searching and reading the page."""
    encoder = Encoder(read_model_directory(bundled_model_path()), CACHE / "models")
    every = []
    for question in asked:
        vector = encoder.embed(encoder.tokenize([question])[0])[0]
        request = SearchRequest(
            built.tenant_id, dataset_ids, terms=question_terms(question), field_boosts=FIELD_BOOSTS, vector=vector, space=built.space,
            text_k=TEXT_CANDIDATES, vector_k=1024,
        )  # fmt: skip
        cluster.sent = []
        found = store.search(request)
        ranking = fuse(found, vector_weight=0.3, trust=1.0, threshold=0.2)
        store.get(built.tenant_id, chunk_ids(found.ids[ranking.rows[:PAGE_SIZE]]))
        every.append(cluster.sent)
    return every


def replay(channel, url: str) -> None:
    """In a process of its own: send lists of recorded requests from 16 threads with the official client; seconds each."""
    client = Elasticsearch(url, connections_per_node=CALLERS, serializer=OrjsonSerializer())
    while (every := channel.recv()) is not None:
        waiting = iter(every)

        def work(waiting: Iterator[list[Sent]] = waiting) -> None:
            for sent in waiting:
                for method, path, body, params, lines in sent:
                    kind = "application/x-ndjson" if lines else "application/json"
                    client.perform_request(
                        method, path, params=params, body=body, headers={"content-type": kind, "accept": "application/json"}
                    )  # fmt: skip

        started = time.perf_counter()
        threads = [threading.Thread(target=work) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        channel.send(time.perf_counter() - started)
    client.close()


def searching(built: Corpus, node: Node, rounds: int) -> bool:
    """Print the first two rows of the table; whether their goals are met."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-bench-")))
        data_dir = folder / "data"
        shutil.copytree(built.data_dir, data_dir, ignore=shutil.ignore_patterns("chunks"))
        channel, other = context.Pipe()
        process = context.Process(target=replay, args=(other, node.url), daemon=True)
        process.start()
        stack.callback(process.join)
        stack.callback(channel.send, None)
        environ = {
            "MILLRACE_STORE": "elasticsearch", "MILLRACE_ELASTICSEARCH_HOSTS": node.url, "MILLRACE_INGEST_WORKERS": "0",
            "MILLRACE_CACHE_RESULTS": "false", "MILLRACE_PATIENCE_SECONDS": "60",
        }  # fmt: skip
        server = ServerProcess(data_dir, log_file=folder / "server.log", environ=environ).wait_until_ready()
        stack.callback(server.stop)
        cluster = Recording([node.url])
        store = ElasticStore(cluster, layout())
        stack.callback(store.close)
        print(f"\n{CHUNKS:,} chunks, {CALLERS} callers, pages of {PAGE_SIZE}, {rounds} rounds of {QUESTIONS} questions\n")
        print(
            "| searched | /retrieval req/s | bare client req/s | ratio (goal 0.8) | server CPU ms (goal 4) | p50 / p95 ms |\n|" + "---|" * 6
        )
        met = True
        for name, dataset_ids in {"one dataset of 10,000": built.dataset_ids[:1], "all": built.dataset_ids}.items():
            asked = questions(QUESTIONS, seed=len(dataset_ids))
            recorded = requests_of(store, cluster, built, asked, dataset_ids)
            bodies = [{"question": question, "dataset_ids": list(dataset_ids), "page_size": PAGE_SIZE} for question in asked]
            requests = post_requests(server.url, server.api_key, "/api/v1/retrieval", bodies)
            drive(server.url, requests, CALLERS)  # the server remembers the questions' vectors, and all are warm
            channel.send(recorded)
            channel.recv()
            ratios, ours, bare, cpu, latencies = [], [], [], [], []
            for _ in range(rounds):
                before = cpu_seconds(server.process.pid)
                driven = drive(server.url, requests, CALLERS)
                cpu.append((cpu_seconds(server.process.pid) - before) * 1000 / QUESTIONS)
                if driven.failed:
                    raise SystemExit(f"{driven.failed} requests failed\n{server.logs[-2000:]}")
                channel.send(recorded)
                seconds = channel.recv()
                ours.append(QUESTIONS / driven.seconds)
                bare.append(QUESTIONS / seconds)
                ratios.append(ours[-1] / bare[-1])
                latencies += driven.latencies
            ratio, cpu_ms = statistics.median(ratios), statistics.median(cpu)
            p50, p95 = np.percentile(latencies, [50, 95]) * 1000
            print(f"| {name} | {statistics.median(ours):.0f} | {statistics.median(bare):.0f} | **{ratio:.2f}** | **{cpu_ms:.1f}** "
                  f"| {p50:.0f} / {p95:.0f} |", flush=True)  # fmt: skip
            met &= ratio >= RATE_GOAL and cpu_ms <= CPU_GOAL_MS
        return met


# ---------------------------------------------------------------------------------------------------- writing
def writing(built: Corpus, node: Node, rounds: int) -> bool:
    """Print the third row; whether its goal is met."""
    made = list(batches(built, BULK_CHUNKS))
    store = ElasticStore(Cluster([node.url], connections=WRITERS + 1), layout())
    client = Elasticsearch(node.url, connections_per_node=WRITERS, request_timeout=120)
    index = "bench-bulk"
    actions = []
    for chunks, vectors in made:
        for chunk, unit in zip(chunks, unit_rows(vectors), strict=True):
            actions.append({"_index": index, "_id": chunk.id, "_source": orjson.loads(document(chunk, built.space, unit))})
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(_bulk(client, index, actions, built))
        ours.append(_put(store, made, built))
    ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
    store.drop_tenant(BULK_TENANT)
    client.indices.delete(index=index)
    store.close()
    client.close()
    print(f"\n{BULK_CHUNKS:,} chunks with vectors, batches of {BATCH}, {WRITERS} threads, {rounds} rounds\n")
    print("| put chunks/s | helpers.parallel_bulk chunks/s | ratio (goal 0.9) |\n|---|---|---|")
    print(f"| {statistics.median(ours):.0f} | {statistics.median(theirs):.0f} | **{ratio:.2f}** |", flush=True)
    return ratio >= BULK_GOAL


def _put(store: ElasticStore, made: Sequence[tuple[list[Chunk], np.ndarray]], built: Corpus) -> float:
    store.drop_tenant(BULK_TENANT)
    store.put(BULK_TENANT, made[0][0][:1], made[0][1][:1], built.space)
    started = time.perf_counter()
    waiting = iter(made)

    def work() -> None:
        for chunks, vectors in waiting:
            store.put(BULK_TENANT, chunks, vectors, built.space, wait=False)

    threads = [threading.Thread(target=work) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.flush(BULK_TENANT)
    seconds = time.perf_counter() - started
    stored = store.count(BULK_TENANT, ChunkSelector(dataset_ids=built.dataset_ids))
    if stored != BULK_CHUNKS:
        raise SystemExit(f"{stored} chunks are stored")
    return BULK_CHUNKS / seconds


def _bulk(client: Elasticsearch, index: str, actions: Sequence[dict[str, Any]], built: Corpus) -> float:
    client.indices.delete(index=index, ignore_unavailable=True)
    body = index_body(1, None)
    client.indices.create(index=index, settings=body["settings"], mappings=body["mappings"])
    client.indices.put_mapping(index=index, properties={vector_field(built.space): vector_mapping(384, "flat")})
    started = time.perf_counter()
    for ok, _ in helpers.parallel_bulk(client, actions, thread_count=WRITERS, chunk_size=BATCH):
        if not ok:
            raise SystemExit("a document was refused")
    client.indices.refresh(index=index)
    return BULK_CHUNKS / (time.perf_counter() - started)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("writing", "searching"), help="one half of it")
    options = parser.parse_args()
    built = corpus()
    met = True
    with elasticsearch(heap="2g") as node:
        print("CPU and rates on this machine; the node, the server and its callers share its cores", flush=True)
        if options.only != "searching":
            met &= writing(built, node, options.rounds)
        if options.only != "writing":
            fill(built, node)
            met &= searching(built, node, options.rounds)
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
