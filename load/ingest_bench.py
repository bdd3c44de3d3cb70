"""Ingestion against the bare embedder: `python -m load.ingest_bench`.

A folder of generated real files (PDF, DOCX, HTML, Markdown, text, CSV) goes through the real worker, sandbox, embedder and
embedded store until everything is searchable; then the same texts go through the embedder alone, on the same cores, in the
same process. The ratio of the two rates is what counts (goal: at least 0.9). `busy` is the share of the time in which the
embedder had work, `embed/s` how fast it was in that time: the one says what ingestion makes it wait, the other what the rest
takes from it. Rounds alternate, and the memory of this process and all below it is sampled all the time: resident (shared
pages counted in each process) and proportional.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from io import BytesIO
from pathlib import Path

import docx
import numpy as np
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.platypus import Paragraph, SimpleDocTemplate

from load.processes import MemorySampler
from load.split_bench import generated
from rag.ingest.pipeline import Pipeline
from rag.ingest.sandbox import Sandbox
from rag.ingest.worker import Worker
from rag.llm.local import LocalEmbedder
from rag.llm.model_directory import bundled_model_path, read_model_directory
from rag.nlp.tokenize import ANALYSER_VERSION
from rag.ports import Embedder
from rag.settings import Settings
from rag.store.blobs import LocalBlobStore
from rag.store.embedded import EmbeddedStore
from rag.threads import Lane
from rag.types import ChunkSelector, IngestTask

DATASET = "d" * 32
SUFFIXES = ("pdf", "docx", "html", "md", "txt", "csv")


def main() -> None:
    """Print a line a round and the medians."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--files", type=int, default=12)
    arguments.add_argument("--characters", type=int, default=40_000, help="of text in each file")
    arguments.add_argument("--tokens", type=int, default=512, help="chunk_token_num")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--stub", action="store_true", help="an embedder that costs nothing: what all the rest takes")
    arguments.add_argument("--cache", type=Path, default=Path(".cache/models"), help="where the model's graph is kept")
    options = arguments.parse_args()
    asyncio.run(_bench(options))


async def _bench(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        files = list(make_files(folder / "files", options.files, options.characters))
        real = stack.enter_context(local_embedder(options.cache))
        recorder = Recorder(real, options.stub)
        await real.embed_documents(["warm"])
        memory = stack.enter_context(MemorySampler(os.getpid()))
        rates = []
        print(f"{'round':>5} {'chunks':>7} {'ingest/s':>9} {'bare/s':>9} {'ratio':>6} {'busy':>6} {'embed/s':>9}")
        for number in range(1, options.rounds + 1):
            recorder.texts.clear()
            recorder.busy_seconds = 0.0
            chunks, seconds = await ingest(folder / f"round{number}", files, recorder, options.tokens)
            bare = await timed(real, recorder.texts) if not options.stub else float("nan")
            rates.append((chunks / seconds, chunks / bare))
            busy = recorder.busy_seconds
            print(
                f"{number:>5} {chunks:>7} {chunks / seconds:>9.1f} {chunks / bare:>9.1f} {bare / seconds:>6.2f}"
                f" {busy / seconds:>6.2f} {chunks / max(busy, 1e-9):>9.1f}",
                flush=True,
            )
        print(f"median ratio {statistics.median(ours / bare for ours, bare in rates):.2f} (goal 0.9)")
        print(f"peak memory, all processes: {memory.peak.resident >> 20} MB resident, {memory.peak.proportional >> 20} MB proportional")


@contextlib.contextmanager
def local_embedder(cache: Path) -> Iterator[LocalEmbedder]:
    """The bundled model with as many threads as a server gives to documents: one core is kept for queries."""
    directory = read_model_directory(bundled_model_path())
    queries, documents = Lane("model", 2, 1024), Lane("ingest_model", max(1, (os.cpu_count() or 2) - 1), 1024)
    try:
        yield LocalEmbedder("all-MiniLM-L6-v2", directory, cache, queries, documents, languages=("en",))
    finally:
        queries.close()
        documents.close()


async def timed(embedder: Embedder, texts: Sequence[str]) -> float:
    """Seconds for the embedder alone."""
    started = time.perf_counter()
    await embedder.embed_documents(texts)
    return time.perf_counter() - started


async def ingest(folder: Path, files: Sequence[Path], embedder: Embedder, tokens: int) -> tuple[int, float]:
    """How many chunks the files became, and the seconds from the first claim until all were searchable."""
    tenant = os.urandom(16).hex()
    store = EmbeddedStore(folder / "chunks", analyser_version=ANALYSER_VERSION)
    blobs = LocalBlobStore(folder / "blobs")
    store_lane, blob_lane = Lane("write", 4, 1024), Lane("blob", 4, 1024)
    sandbox = Sandbox(processes=Settings().parser_processes)
    tasks = []
    for number, file in enumerate(files):
        blobs.put(f"bench/{number}", BytesIO(file.read_bytes()))
        document = f"{number:032x}"
        tasks.append(
            IngestTask(
                document, "parse", tenant, DATASET, document, document_name=file.name, blob_key=f"bench/{number}",
                parser_config={"chunk_token_num": tokens},
            )
        )  # fmt: skip
    records = QueuedRecords(tasks)
    pipeline = Pipeline(store, blobs, sandbox, store_lane=store_lane, blob_lane=blob_lane, spool_dir=folder)
    worker = Worker(records, pipeline, lambda _: embedder, name="bench", poll_seconds=0.05)
    started = time.perf_counter()
    working = asyncio.create_task(worker.run())
    await records.all_done.wait()
    seconds = time.perf_counter() - started
    working.cancel()
    await asyncio.wait([working])
    count = await store_lane.run(store.count, tenant, ChunkSelector(dataset_ids=(DATASET,)))
    if records.failures or count != records.chunks:
        raise SystemExit(f"{len(records.failures)} files failed, {count} of {records.chunks} chunks stored: {records.failures[:3]}")
    await sandbox.close()
    store.close()
    store_lane.close()
    blob_lane.close()
    return count, seconds


class QueuedRecords:
    """The ingestion records of one folder of files, in memory."""

    def __init__(self, tasks: Sequence[IngestTask]) -> None:
        self._waiting = list(tasks)
        self._left = len(tasks)
        self.all_done = asyncio.Event()
        self.failures: list[str] = []
        self.chunks = 0

    async def claim(self, worker: str, lease_seconds: float, busy_tenants: Collection[str] = ()) -> IngestTask | None:
        return self._waiting.pop(0) if self._waiting else None

    async def renew(self, task: IngestTask, worker: str, lease_seconds: float) -> bool:
        return True

    async def report(self, task: IngestTask, worker: str, progress: float, message: str) -> bool:
        return True

    async def give_back(self, task: IngestTask, worker: str) -> bool:
        return True

    async def finish(self, task: IngestTask, worker: str, *, chunk_count: int, token_count: int, message: str) -> bool:
        self.chunks += chunk_count
        return self._one_less()

    async def fail(self, task: IngestTask, worker: str, message: str, *, retry: bool) -> bool:
        self.failures.append(f"{task.document_name}: {message}")
        return self._one_less()

    def _one_less(self) -> bool:
        self._left -= 1
        if not self._left:
            self.all_done.set()
        return True


class Recorder:
    """The embedder, or one that costs nothing, keeping the texts it was given."""

    def __init__(self, embedder: Embedder, stub: bool) -> None:
        self.space, self.dimension, self.tokenizer_path = embedder.space, embedder.dimension, embedder.tokenizer_path
        self.texts: list[str] = []
        self.busy_seconds = 0.0
        self._embedder = embedder
        self._stub = stub

    async def embed_query(self, text: str) -> np.ndarray:
        return await self._embedder.embed_query(text)

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        if self._stub:
            return np.full((len(texts), self.dimension), self.dimension**-0.5, dtype=np.float32)
        started = time.perf_counter()
        vectors = await self._embedder.embed_documents(texts)
        self.busy_seconds += time.perf_counter() - started
        return vectors

    def trust(self, text: str) -> float:
        return self._embedder.trust(text)


def make_files(folder: Path, count: int, characters: int) -> Iterator[Path]:
    """Files of every kind in turn, each with its own text."""
    folder.mkdir(parents=True)
    text = generated(count * characters)
    for number in range(count):
        path = folder / f"file-{number}.{SUFFIXES[number % len(SUFFIXES)]}"
        paragraphs = text[number * characters : (number + 1) * characters].split("\n\n")
        match path.suffix:
            case ".pdf":
                style = getSampleStyleSheet()["BodyText"]
                SimpleDocTemplate(str(path)).build([Paragraph(paragraph, style) for paragraph in paragraphs])
            case ".docx":
                document = docx.Document()
                for paragraph in paragraphs:
                    document.add_paragraph(paragraph)
                document.save(str(path))
            case ".html":
                path.write_text("".join(f"<p>{paragraph}</p>" for paragraph in paragraphs), "utf-8")
            case ".csv":
                path.write_text("number,text\n" + "".join(f'{row},"{cell}"\n' for row, cell in enumerate(paragraphs)), "utf-8")
            case _:
                path.write_text("\n\n".join(paragraphs), "utf-8")
        yield path


if __name__ == "__main__":
    main()
