"""`/retrieval` over HTTP against the same work called in process: `python -m load.http_bench`.

A real server process over 100,000 chunks answers 16 keep-alive callers; every question is new. In process, the same questions go
from plain threads through the same parts with nothing between them: embed, both arms, fuse, and in the second figure fetch the
page. The best number of threads counts. Rounds alternate and the medians are compared (goal: HTTP / in process >= 0.6), because
the machine's cores are shared by the server, its callers and whatever else runs. CPU is milliseconds a request, of the server's
process and of the callers'.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from load.callers import Driven, drive, post_requests
from load.corpus import CACHE, CHUNKS, Corpus, corpus, questions
from load.processes import family_cpu_seconds
from rag.llm.encoder import Encoder
from rag.llm.model_directory import bundled_model_path, read_model_directory
from rag.nlp.find import chunk_ids
from rag.nlp.fuse import fuse
from rag.nlp.query import question_terms
from rag.nlp.search import FIELD_BOOSTS, TEXT_CANDIDATES
from rag.nlp.tokenize import ANALYSER_VERSION
from rag.store.embedded import EmbeddedStore
from rag.types import SearchRequest
from tests.e2e.server_process import ServerProcess

GOAL = 0.6
CALLERS = 16
PAGE_SIZE = 30
TOP_K = 1024
THRESHOLD, WEIGHT = 0.2, 0.3
THREADS = (1, 2, 3, 4, 8)
WARM_UP = 50


@dataclass(frozen=True, slots=True)
class Pace:
    """Requests a second and milliseconds of CPU each."""

    rate: float
    cpu_ms: float


class InProcess:
    """The same work without a server."""

    def __init__(self, built: Corpus) -> None:
        self._built = built
        self._store = EmbeddedStore(built.data_dir / "chunks", analyser_version=ANALYSER_VERSION)
        self._encoder = Encoder(read_model_directory(bundled_model_path()), CACHE / "models")

    def pace(self, asked: Sequence[str], dataset_ids: tuple[str, ...], threads: int, fetch: bool) -> Pace:
        """How fast that many threads answer these questions."""
        waiting = iter(asked)

        def work() -> None:
            for question in waiting:  # a list's iterator is safe to share
                self._answer(question, dataset_ids, fetch)

        cpu, started = time.process_time(), time.perf_counter()
        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return Pace(len(asked) / (time.perf_counter() - started), (time.process_time() - cpu) * 1000 / len(asked))

    def close(self) -> None:
        """Release the store."""
        self._store.close()

    def _answer(self, question: str, dataset_ids: tuple[str, ...], fetch: bool) -> None:
        vector = self._encoder.embed(self._encoder.tokenize([question])[0])[0]
        request = SearchRequest(
            self._built.tenant_id, dataset_ids, terms=question_terms(question), field_boosts=FIELD_BOOSTS, vector=vector,
            space=self._built.space, text_k=TEXT_CANDIDATES, vector_k=TOP_K,
        )  # fmt: skip
        found = self._store.search(request)
        ranking = fuse(found, vector_weight=WEIGHT, trust=1.0, threshold=THRESHOLD)
        if fetch:
            self._store.get(self._built.tenant_id, chunk_ids(found.ids[ranking.rows[:PAGE_SIZE]]))


def serve_in_process(channel, built: Corpus) -> None:
    """In a process of its own: answer calls of `InProcess.pace` from the channel until None comes."""
    parts = InProcess(built)
    while (call := channel.recv()) is not None:
        channel.send(parts.pace(*call))
    parts.close()


def over_http(server: ServerProcess, asked: Sequence[str], dataset_ids: Sequence[str]) -> tuple[Pace, Driven]:
    """How fast the server answers, and what its callers saw."""
    bodies = [{"question": question, "dataset_ids": list(dataset_ids)} for question in asked]
    requests = post_requests(server.url, server.api_key, "/api/v1/retrieval", bodies)
    before = family_cpu_seconds(server.process.pid)
    driven = drive(server.url, requests, CALLERS)
    if driven.failed:
        raise SystemExit(f"{driven.failed} of {len(requests)} requests failed\n{server.logs[-2000:]}")
    cpu = family_cpu_seconds(server.process.pid) - before
    return Pace(len(requests) / driven.seconds, cpu * 1000 / len(requests)), driven


def bench(built: Corpus, rounds: int, requests: int) -> bool:
    """Print the table; whether the goal is met."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-bench-")))
        channel, other = context.Pipe()
        baseline = context.Process(target=serve_in_process, args=(other, built), daemon=True)
        baseline.start()
        stack.callback(baseline.join)
        stack.callback(channel.send, None)
        server = ServerProcess(built.data_dir, log_file=folder / "server.log").wait_until_ready()
        stack.callback(server.stop)

        def call(*arguments: object) -> Pace:
            channel.send(arguments)
            return channel.recv()

        print(
            f"{CHUNKS:,} chunks, {CALLERS} callers, pages of {PAGE_SIZE}, {rounds} rounds of {requests} questions, {os.cpu_count()} cores"
        )
        print("| searched | in process: best threads | req/s (CPU ms) | with the page | HTTP req/s | server CPU ms | callers' CPU ms "
              "| p50 / p95 ms | KB | HTTP / in process (goal 0.6) | with the page |\n|" + "---|" * 11)  # fmt: skip
        met = True
        for name, dataset_ids in {"one dataset of 10,000": built.dataset_ids[:1], "all": built.dataset_ids}.items():
            met &= _row(name, dataset_ids, server, call, rounds, requests)
        return met


def _row(name: str, dataset_ids: tuple[str, ...], server: ServerProcess, call, rounds: int, requests: int) -> bool:
    seeds = iter(range(10_000 * len(dataset_ids), 10_000 * len(dataset_ids) + 1000))
    over_http(server, questions(WARM_UP, next(seeds)), dataset_ids)
    call(questions(WARM_UP, next(seeds)), dataset_ids, 2, True)
    trials = {threads: call(questions(requests // 2, next(seeds)), dataset_ids, threads, False).rate for threads in THREADS}
    threads = max(trials, key=trials.get)
    bare, whole, http, seen = [], [], [], []
    for _ in range(rounds):
        asked = questions(requests, next(seeds))
        bare.append(call(asked, dataset_ids, threads, False))
        pace, driven = over_http(server, asked, dataset_ids)
        http.append(pace)
        seen.append(driven)
        whole.append(call(asked, dataset_ids, threads, True))
    latencies = sorted(latency for driven in seen for latency in driven.latencies)
    ratio = statistics.median(ours.rate / its.rate for ours, its in zip(http, bare, strict=True))
    ratio_page = statistics.median(ours.rate / its.rate for ours, its in zip(http, whole, strict=True))
    columns = [
        name, str(threads), f"{_median(bare, 'rate'):.0f} ({_median(bare, 'cpu_ms'):.1f})",
        f"{_median(whole, 'rate'):.0f} ({_median(whole, 'cpu_ms'):.1f})", f"{_median(http, 'rate'):.0f}", f"{_median(http, 'cpu_ms'):.1f}",
        f"{statistics.median(driven.cpu_seconds * 1000 / requests for driven in seen):.2f}",
        f"{latencies[len(latencies) // 2] * 1000:.0f} / {latencies[int(len(latencies) * 0.95)] * 1000:.0f}",
        f"{sum(driven.answer_bytes for driven in seen) / len(latencies) / 1000:.0f}", f"**{ratio:.2f}**", f"{ratio_page:.2f}",
    ]  # fmt: skip
    print("| " + " | ".join(columns) + " |", flush=True)
    return ratio >= GOAL


def _median(paces: Sequence[Pace], field: str) -> float:
    return statistics.median(getattr(pace, field) for pace in paces)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1000, help="questions a round")
    options = parser.parse_args()
    raise SystemExit(0 if bench(corpus(), options.rounds, options.requests) else 1)


if __name__ == "__main__":
    main()
