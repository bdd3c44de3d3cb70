"""The server as a process: how soon it is ready, what memory it takes, what ingestion does to searches: `python -m load.process_bench`.

Start: from running the command on a data directory that is set up to `/readyz` answering 200 (goal: below 2 s). CPU and memory are those of
the server and all processes below it, CPU also of those that have ended. Resident memory counts shared pages once for every process,
proportional (PSS) once in all, and pages of mapped files count while they are in memory. The goals (300 MB idle, 700 MB during ingestion)
are for all processes together, and so held against PSS, which counts a page that two of them share once.
Searches: the median of sequential `/retrieval` calls, every question new, while generated real files (PDF, DOCX, HTML, Markdown, text,
CSV) are ingested at full speed, against the median before (goal: at most 2x).
"""

import argparse
import http.client
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from load.corpus import questions
from load.ingest_bench import make_files
from load.processes import Memory, MemorySampler, family_cpu_seconds, family_memory
from tests.e2e.flows import create_dataset, documents, start_parsing, upload
from tests.e2e.server_process import ServerProcess

START_GOAL_SECONDS, IDLE_GOAL, INGEST_GOAL, LATENCY_GOAL = 2.0, 300 << 20, 700 << 20, 2.0
SETTLE_SECONDS = 3.0
IDLE_SEARCHES = 150
PAUSE_SECONDS = 0.02  # between searches: a person reads
CHARACTERS_A_TOKEN = 1.65  # of the generated text, roughly
FILE_CHARACTERS = 100_000
UPLOADED_AT_ONCE = 10


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=10_000, help="about so many chunks are ingested; 0 for none")
    parser.add_argument("--tokens", type=int, default=32, help="of a chunk: small ones reach the number sooner")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name:
        folder = Path(name)
        met = start(folder, options.starts)
        if options.chunks:
            met &= ingest(folder, options.chunks, options.tokens)
    raise SystemExit(0 if met else 1)


def start(folder: Path, starts: int) -> bool:
    """Print how long starts take, and the idle memory; whether the goals are met."""
    seconds, cpu, memory = [], [], []
    for number in range(starts + 1):
        began = time.perf_counter()
        server = ServerProcess(folder / "data", log_file=folder / "server.log").wait_until_ready()
        took = time.perf_counter() - began
        if number:  # the first makes the database
            seconds.append(took)
            cpu.append(family_cpu_seconds(server.process.pid))
            time.sleep(SETTLE_SECONDS)
            memory.append(family_memory(server.process.pid))
        server.stop()
    idle = memory[-1]
    print("| start to ready, median (worst) s | CPU s | idle: resident | proportional | private MB |\n|" + "---|" * 5)
    print(f"| {statistics.median(seconds):.2f} ({max(seconds):.2f}) | {statistics.median(cpu):.2f} | {_megabytes(idle)} |")
    return statistics.median(seconds) < START_GOAL_SECONDS and idle.proportional < IDLE_GOAL


def ingest(folder: Path, chunks: int, tokens: int) -> bool:
    """Print the memory and the searches while that many chunks are ingested; whether the goals are met."""
    count = -(-int(chunks * tokens * CHARACTERS_A_TOKEN) // FILE_CHARACTERS)
    files = list(make_files(folder / "files", count, FILE_CHARACTERS))
    server = ServerProcess(folder / "data", log_file=folder / "server.log").wait_until_ready()
    try:
        searched = create_dataset(server, "searched")
        ingested = create_dataset(server, "ingested", chunk_method="naive", parser_config={"chunk_token_num": tokens})
        _parse(server, searched, files[:2])
        _wait(server, searched)
        asked = iter(questions(100_000, seed=3))
        list(searches(server, searched, asked, lambda count: count < IDLE_SEARCHES // 3))
        idle = list(searches(server, searched, asked, lambda count: count < IDLE_SEARCHES))
        began, cpu = time.perf_counter(), family_cpu_seconds(server.process.pid)
        with MemorySampler(server.process.pid) as sampler:
            _parse(server, ingested, files)
            busy = list(searches(server, searched, asked, _while_running(server, ingested)))
        seconds, cpu = time.perf_counter() - began, family_cpu_seconds(server.process.pid) - cpu
        done = documents(server, ingested)
        failed = [document["progress_msg"] for document in done.values() if document["run"] != "DONE"]
        if failed:
            raise SystemExit(f"{len(failed)} files failed: {failed[:2]}")
        made = sum(document["chunk_count"] for document in done.values())
    finally:
        server.stop()
    ratio = statistics.median(busy) / statistics.median(idle)
    print("| chunks | chunks/s | CPU s | peak: resident | proportional | private MB | search idle p50 / p95 ms "
          "| while ingesting p50 / p95 ms | ratio (goal 2) |\n|" + "---|" * 9)  # fmt: skip
    print(
        f"| {made:,} | {made / seconds:.0f} | {cpu:.0f} | {_megabytes(sampler.peak)} | {_milliseconds(idle)} | {_milliseconds(busy)}"
        f" | **{ratio:.2f}** |"
    )
    return sampler.peak.proportional < INGEST_GOAL and ratio <= LATENCY_GOAL


def searches(server: ServerProcess, dataset_id: str, asked: Iterator[str], more: Callable[[int], bool]) -> Iterator[float]:
    """Seconds of one search after another over one connection, as long as `more(number of searches)` says."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    headers = {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}
    count = 0
    while more(count):
        body = orjson.dumps({"question": next(asked), "dataset_ids": [dataset_id]})
        began = time.perf_counter()
        connection.request("POST", "/api/v1/retrieval", body, headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"a search failed with status {answer.status}")
        yield time.perf_counter() - began
        count += 1
        time.sleep(PAUSE_SECONDS)
    connection.close()


def _while_running(server: ServerProcess, dataset_id: str) -> Callable[[int], bool]:
    """Asks now and then whether documents are still being ingested."""
    running = [True]

    def more(count: int) -> bool:
        if count % 20 == 19:
            running[0] = any(document["run"] in ("UNSTART", "RUNNING") for document in documents(server, dataset_id).values())
        return running[0]

    return more


def _parse(server: ServerProcess, dataset_id: str, files: Sequence[Path]) -> None:
    for first in range(0, len(files), UPLOADED_AT_ONCE):
        batch = {file.name: file.read_bytes() for file in files[first : first + UPLOADED_AT_ONCE]}
        start_parsing(server, dataset_id, upload(server, dataset_id, batch))


def _wait(server: ServerProcess, dataset_id: str) -> None:
    while any(document["run"] in ("UNSTART", "RUNNING") for document in documents(server, dataset_id).values()):
        time.sleep(0.1)


def _megabytes(memory: Memory) -> str:
    return " | ".join(str(figure >> 20) for figure in (memory.resident, memory.proportional, memory.private))


def _milliseconds(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    return f"{ordered[len(ordered) // 2] * 1000:.1f} / {ordered[int(len(ordered) * 0.95)] * 1000:.1f}"


if __name__ == "__main__":
    main()
