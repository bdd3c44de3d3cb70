"""The real application over parts of the load run's own making, in a process of its own: a store that takes a set time, rerankers that
hold a thread, one executor for everything.

What the server itself would do is not touched and has no switch for it: the parts are replaced where `api.parts` has put them
together, by classes of this module. A thread samples how many threads are busy, and what the process holds.
"""

import asyncio
import gc
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import uvloop

from api import listening, logs, serve
from api.chat_input import DEFAULTS, PROMPT_DEFAULTS
from api.keys import ensure_first_key
from api.parts import Parts, open_parts
from db.models import Dataset, Document, name_key
from db.services import dialog_service, tenant_service
from load.callers import post_requests
from load.processes import cpu_seconds, memory_of
from load.vendors import API_KEY, KEY_VARIABLE
from rag.llm.model_directory import bundled_model_path
from rag.nlp.tokenize import chunk_terms
from rag.ports import ChunkStore, Reranker
from rag.settings import Settings
from rag.threads import Lane
from rag.types import Candidates, Chunk, SearchRequest

ROOT = Path(__file__).parents[1]
MODEL_CACHE = ROOT / ".cache" / "models"
EXECUTOR_THREADS = 35
SAMPLE_SECONDS = 0.005
BEAT_SECONDS = 0.01
START_SECONDS = 60.0
LOG, SHOWN_ERRORS = "server.log", 3
DIMENSION = 384
# what the staged store finds for every question: as many as a page and a reranker can tell apart, of a usual length
CANDIDATES, DOCUMENTS, CHUNK_CHARACTERS = 256, 16, 500
TEXT = "water mills grind wheat into flour while the river floods meadows in spring and swallows nest under roofs " * 8

T = TypeVar("T")
Executor = Literal["lanes", "rerank", "request"]
"""What runs on threads: "lanes" as the server is; "rerank" searches and rerankers share one executor of 35 threads, and
rerankers have only `similarity`; "request" an executor of 35 threads, of which a request holds one from its beginning to its end."""


@dataclass(frozen=True, slots=True)
class Play:
    """What is put on. `settings` are those of the server beside the data directory.

    `store_seconds` None leaves the embedded store as it is; otherwise searches take that time and find the same chunks, and unless
    `embeds`, questions are not embedded. `data_dir` and `dataset_id` name what is there already; without them a dataset and chats
    are made in a directory of their own.
    """

    settings: Mapping[str, Any]
    store_seconds: float | None = None
    executor: Executor = "lanes"
    embeds: bool = False
    data_dir: Path | None = None
    dataset_id: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """What the server process holds at one moment. Bytes and counts; `cpu_seconds` is what it has used since it began."""

    resident: int
    private: int
    threads: int
    descriptors: int
    tasks: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What was seen since the last time they were asked for. `busy` counts samples by how many threads of all lanes worked, `outside`
    by how many of them did anything but wait for the staged store. `late` counts by how many milliseconds, rounded down, the event
    loop woke a timer too late; `longest_collection_ms` is the CPU time of the longest pause for the garbage collector."""

    busy: Mapping[int, int]
    outside: Mapping[int, int]
    by_lane: Mapping[str, Mapping[int, int]]
    late: Mapping[int, int]
    longest_collection_ms: float
    held: Held

    @property
    def loop(self) -> str:
        """How the event loop fared, in words."""
        late = f"{share_below(self.late, 0.5)} ms (median), {share_below(self.late, 0.99)} (p99), {max(self.late, default=0)} (most)"
        return f"event loop late by {late}; longest garbage collection {self.longest_collection_ms:.0f} ms of CPU"


def share_below(counts: Mapping[int, int], share: float) -> int:
    """The smallest number that is at least that share of the samples."""
    total, seen = sum(counts.values()), 0
    for number in sorted(counts):
        seen += counts[number]
        if seen >= share * total:
            return number
    return 0


def mean_of(counts: Mapping[int, int]) -> float:
    """The samples' mean."""
    return sum(number * count for number, count in counts.items()) / max(1, sum(counts.values()))


@dataclass(slots=True)
class StagedServer:
    """The running process and what a caller must know of it."""

    url: str
    process_id: int
    api_key: str
    dataset_id: str
    chats: Mapping[str, str]
    _channel: Connection = field(repr=False)
    _numbers: Iterator[int] = field(default_factory=count, repr=False)

    def searches(self, number: int, *rerankers: str) -> list[bytes]:
        """Requests for pages of ten, each with another question, reranked by the rerankers in turn."""
        bodies = []
        for turn in range(number):
            body = {"question": f"What does mill number {next(self._numbers)} grind?", "dataset_ids": [self.dataset_id], "page_size": 10}
            bodies.append(body | {"rerank_id": rerankers[turn % len(rerankers)]} if rerankers else body)
        return post_requests(self.url, self.api_key, "/api/v1/retrieval", bodies)

    def talks(self, chat: str, number: int, *, stream: bool = True) -> list[bytes]:
        """Questions to a chat, each the beginning of another conversation."""
        bodies = [{"question": f"What does mill number {next(self._numbers)} grind?", "stream": stream} for _ in range(number)]
        return post_requests(self.url, self.api_key, f"/api/v1/chats/{self.chats[chat]}/completions", bodies)

    def figures(self) -> Figures:
        """What was seen since the last call."""
        self._channel.send("figures")
        return self._channel.recv()

    def take(self, store_seconds: float) -> None:
        """Let searches take that time from now on."""
        self._channel.send(("store", store_seconds))
        self._channel.recv()

    def profile(self, seconds: float) -> list[tuple[str, float]]:
        """Where the event loop's thread was found, by share of the samples, the most frequent first."""
        self._channel.send(("profile", seconds))
        return self._channel.recv()


def watched(server: StagedServer, warm_seconds: float, seconds: float, drive: Callable[[], T]) -> tuple[T, Figures, Held]:
    """Run `drive` on a thread; what was seen of the server in `seconds` of it that begin after `warm_seconds`, and what it held then."""
    with ThreadPoolExecutor(1) as pool:
        driving = pool.submit(drive)
        time.sleep(warm_seconds)
        before = server.figures().held
        time.sleep(seconds)
        seen = server.figures()
        return driving.result(), seen, before


@contextmanager
def staged(play: Play) -> Iterator[StagedServer]:
    """A server process that plays this, ended with the context."""
    with tempfile.TemporaryDirectory(prefix="millrace-load-") as made:
        folder = Path(made)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_play, args=(theirs, play, folder), daemon=True)
        process.start()
        theirs.close()
        try:
            try:
                url, api_key, dataset_id, chats = ours.recv() if ours.poll(START_SECONDS) else None
            except (EOFError, TypeError):
                raise SystemExit(f"the staged server did not start\n{(folder / LOG).read_text()[-2000:]}") from None
            assert process.pid is not None
            yield StagedServer(url, process.pid, api_key, dataset_id, chats, ours)
        finally:
            process.terminate()
            process.join(20)
            process.kill()
            process.join()
            _tell_errors(folder / LOG)


def _tell_errors(log: Path) -> None:
    """Print the first errors that the server logged: there should be none."""
    errors = [line for line in log.read_text("utf-8", errors="replace").splitlines() if '"level":"error"' in line]
    if errors:
        print("\n".join([f"the staged server logged {len(errors)} errors, first:", *errors[:SHOWN_ERRORS]]), file=sys.stderr)


# ---------------------------------------------------------------------------------------------------- in the server's process
def _play(channel: Connection, play: Play, folder: Path) -> None:
    sys.stdout = (folder / "stdout").open("w")  # the banner
    sys.stderr = (folder / LOG).open("w", buffering=1)
    logs.configure("warning", "json")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_perform(channel, play, play.data_dir or folder / "data"))


async def _perform(channel: Connection, play: Play, data_dir: Path) -> None:
    settings = Settings(data_dir=data_dir, cache_dir=MODEL_CACHE, port=0, ingest_workers=0, **play.settings)
    async with open_parts(settings, {KEY_VARIABLE: API_KEY}) as parts:
        api_key = await parts.lanes.db.run(ensure_first_key, parts.session, data_dir, settings.default_tenant)
        tenant_id = (await parts.session.write(tenant_service.ensure_tenant, settings.default_tenant)).id
        rerankers = [spec.identifier for spec in parts.models.list("rerank")]
        scene = Scene(play.dataset_id, (), {})
        if not play.dataset_id:
            scene = await parts.session.write(_rows, tenant_id, parts.models.default_embedding, rerankers)
        watch = Watch()
        parts = _staged_parts(parts, play, scene, watch)
        listener = listening.listen(settings.host, 0)
        url = listening.url_of(listener)
        lanes = parts.lanes.all
        if play.executor == "request":
            lanes = (_executor(parts),)
            serve.create_app = _hold_a_thread(serve.create_app, lanes[0])
        sampler = Sampler(list(dict.fromkeys(lanes)), asyncio.get_running_loop(), watch)
        sampler.start()
        sampler.listen()
        channel.send((url, api_key, scene.dataset_id, scene.chats))
        threading.Thread(target=_answer, args=(channel, sampler, parts.store, threading.get_ident()), daemon=True).start()
        await serve.serve(parts, listener)


@dataclass(frozen=True, slots=True)
class Scene:
    """Ids of the rows: a dataset with documents, and chats by name: "plain" without a dataset, "found" with it, "ranked" with the first
    reranker, too."""

    dataset_id: str
    document_ids: tuple[str, ...]
    chats: Mapping[str, str]


def _rows(tenant_id: str, embedding_model: str, rerankers: Sequence[str]) -> Scene:
    dataset = Dataset.create(
        tenant_id=tenant_id, created_by=tenant_id, name=f"stage {os.getpid()}", name_key=name_key(f"stage {os.getpid()}"),
        embedding_model=embedding_model, document_count=DOCUMENTS, chunk_count=CANDIDATES,
    )  # fmt: skip
    documents = [
        Document.create(
            tenant_id=tenant_id, dataset_id=dataset.id, created_by=tenant_id, name=f"report {place}.txt",
            name_key=name_key(f"report {place}.txt"), location="", type="doc", suffix="txt", chunk_count=CANDIDATES // DOCUMENTS,
            progress=1.0, run="DONE", version=1,
        ).id
        for place in range(DOCUMENTS)
    ]  # fmt: skip
    casts = {"plain": ([], ""), "found": ([dataset.id], ""), "ranked": ([dataset.id], rerankers[0] if rerankers else "")}
    chats = {}
    for name, (dataset_ids, reranker) in casts.items():
        values = {
            **DEFAULTS,
            "name": f"{name} {os.getpid()}",
            "dataset_ids": dataset_ids,
            "rerank_id": reranker,
            "similarity_threshold": 0.0,
        }
        chats[name] = dialog_service.create(tenant_id, values | {"prompt_config": dict(PROMPT_DEFAULTS)}).id
    return Scene(dataset.id, tuple(documents), chats)


def _staged_parts(parts: Parts, play: Play, scene: Scene, watch: "Watch") -> Parts:
    if play.executor == "rerank":
        one = _executor(parts)
        # the database keeps its own threads, as many as connections; its calls are short
        parts = replace(parts, lanes=replace(parts.lanes, search=one, model=one, rerank=one))
    if play.store_seconds is not None:
        parts = replace(parts, store=StagedStore(parts.store, play.store_seconds, scene, watch))
    instant = play.store_seconds is not None and not play.embeds
    models = StagedModels(parts.models, instant=instant, blocking=play.executor == "rerank")
    return replace(parts, models=models)  # type: ignore[arg-type]


def _executor(parts: Parts) -> Lane:
    return Lane("executor", EXECUTOR_THREADS, parts.settings.queue_limit, parts.metrics.lane_wait)


class Watch:
    """How many threads wait for the staged store now."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.searching = 0

    @contextmanager
    def during_search(self) -> Iterator[None]:
        """Around a wait for the staged store."""
        with self._lock:
            self.searching += 1
        try:
            yield
        finally:
            with self._lock:
                self.searching -= 1


class StagedStore:
    """A store whose searches take a set time on their thread, as a remote engine's client does, and always find the same chunks."""

    def __init__(self, store: ChunkStore, seconds: float, scene: Scene, watch: Watch) -> None:
        self.seconds = seconds
        self._store = store
        self._watch = watch
        self._chunks = {chunk.id: chunk for chunk in (_chunk(number, scene) for number in range(CANDIDATES))}
        scores = np.linspace(1.0, 0.1, CANDIDATES, dtype=np.float32)
        ranks = np.arange(CANDIDATES, dtype=np.int32)
        self._found = Candidates(
            ids=np.array([int(chunk_id, 16) for chunk_id in self._chunks], dtype=np.uint64),
            documents=list(scene.document_ids),
            document_of=ranks % DOCUMENTS,
            text_scores=scores * 10,
            vector_scores=scores,
            text_ranks=ranks,
            vector_ranks=ranks,
        )

    def search(self, request: SearchRequest) -> Candidates:
        """The same candidates for every question."""
        with self._watch.during_search():
            time.sleep(self.seconds)
        return self._found

    def get(self, tenant_id: str, chunk_ids: Sequence[str]) -> list[Chunk | None]:
        """Chunks from memory: what the engine's second round trip would add is not staged."""
        return [self._chunks.get(chunk_id) for chunk_id in chunk_ids]

    def vectors(self, tenant_id: str, chunk_ids: Sequence[str], space: str) -> np.ndarray:
        """Unit vectors, all alike."""
        return np.full((len(chunk_ids), DIMENSION), DIMENSION**-0.5, dtype=np.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _chunk(number: int, scene: Scene) -> Chunk:
    place = number % DOCUMENTS
    content = f"{number} {TEXT[number % 100 :]}"[:CHUNK_CHARACTERS]
    return Chunk(
        f"{number + 1:016x}", scene.dataset_id, scene.document_ids[place], f"report {place}.txt", content, chunk_terms("", (), content),
        version=1, position=number,
    )  # fmt: skip


class StagedModels:
    """The registry, with other embedders and rerankers in it."""

    def __init__(self, models: Any, *, instant: bool, blocking: bool) -> None:
        self._models = models
        self._instant = instant
        self._blocking = blocking

    def embedder(self, name: str | None = None) -> Any:
        """An embedder that takes no time where the store is staged."""
        return InstantEmbedder() if self._instant else self._models.embedder(name)

    def reranker(self, name: str) -> Reranker:
        """The reranker; with `blocking` one that the server must run on a thread."""
        found = self._models.reranker(name)
        return OnlySimilarity(found) if self._blocking else found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)


class InstantEmbedder:
    """One unit vector for every text."""

    space = "staged"
    dimension = DIMENSION
    tokenizer_path = bundled_model_path() / "tokenizer.json"
    vector = np.full(DIMENSION, DIMENSION**-0.5, dtype=np.float32)

    async def embed_query(self, text: str) -> np.ndarray:
        """The vector."""
        return self.vector

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """The vector, for each text."""
        return np.tile(self.vector, (len(texts), 1))

    def trust(self, text: str) -> float:
        """All."""
        return 1.0


class OnlySimilarity:
    """A reranker as all were before the change: the thread waits for the vendor."""

    def __init__(self, reranker: Any) -> None:
        self._reranker = reranker

    @property
    def excuse(self) -> str:
        """The reranker's own."""
        return self._reranker.excuse

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        """As the reranker's own."""
        return self._reranker.similarity(query, texts)


class HoldingApp:
    """An ASGI application whose every request holds a thread of the lane until it is answered, as a blocking handler does."""

    def __init__(self, app: Any, lane: Lane) -> None:
        self._app = app
        self._lane = lane

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request from a thread."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        await self._lane.run(lambda: asyncio.run_coroutine_threadsafe(self._app(scope, receive, send), loop).result())


def _hold_a_thread(create_app: Callable[[Parts], Any], lane: Lane) -> Callable[[Parts], Any]:
    def create(parts: Parts) -> Any:
        app = create_app(parts)
        app.asgi_app = HoldingApp(app.asgi_app, lane)
        return app

    return create


class Sampler(threading.Thread):
    """Samples the lanes every few milliseconds."""

    def __init__(self, lanes: Sequence[Lane], loop: asyncio.AbstractEventLoop, watch: Watch) -> None:
        super().__init__(daemon=True)
        self._lanes = lanes
        self._loop = loop
        self._watch = watch
        self._reset()

    def _reset(self) -> None:
        self._busy: Counter[int] = Counter()
        self._outside: Counter[int] = Counter()
        self._by_lane: dict[str, Counter[int]] = {lane.name: Counter() for lane in self._lanes}
        self._late: Counter[int] = Counter()
        self._longest_collection = 0.0

    def listen(self) -> None:
        """Watch the loop, on it, and the garbage collector."""
        gc.callbacks.append(self._note_collection)
        self._loop.call_soon(self._beat, self._loop.time())

    def _beat(self, due: float) -> None:
        self._late[int(1000 * (self._loop.time() - due))] += 1
        self._loop.call_later(BEAT_SECONDS, self._beat, self._loop.time() + BEAT_SECONDS)

    def _note_collection(self, phase: str, _: object) -> None:
        if phase == "start":
            self._collection_began = time.thread_time()
        else:
            self._longest_collection = max(self._longest_collection, time.thread_time() - self._collection_began)

    def run(self) -> None:
        while True:
            busy = 0
            for lane in self._lanes:
                state = lane.state
                self._by_lane[state.name][state.busy] += 1
                busy += state.busy
            self._busy[busy] += 1
            self._outside[max(0, busy - self._watch.searching)] += 1
            time.sleep(SAMPLE_SECONDS)

    def figures(self) -> Figures:
        """What was seen since the last call."""
        by_lane = {name: dict(counts) for name, counts in self._by_lane.items()}
        longest = 1000 * self._longest_collection
        seen = Figures(dict(self._busy), dict(self._outside), by_lane, dict(self._late), longest, self._held())
        self._reset()
        return seen

    def _held(self) -> Held:
        process_id = os.getpid()
        memory = memory_of(process_id)
        return Held(
            memory.resident, memory.private, threading.active_count(), len(os.listdir("/proc/self/fd")),
            len(asyncio.all_tasks(self._loop)), cpu_seconds(process_id),
        )  # fmt: skip


def _answer(channel: Connection, sampler: Sampler, store: Any, loop_thread: int) -> None:
    with suppress(EOFError):
        while True:
            match channel.recv():
                case "figures":
                    channel.send(sampler.figures())
                case ("store", seconds):
                    store.seconds = seconds
                    channel.send(None)
                case ("profile", seconds):
                    channel.send(_profile(loop_thread, seconds))


def _profile(thread: int, seconds: float) -> list[tuple[str, float]]:
    """By function, in which share of the samples it was on the thread's stack."""
    found: Counter[str] = Counter()
    samples, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        frame, names = sys._current_frames()[thread], set()
        while frame is not None:
            names.add(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_qualname}")
            frame = frame.f_back
        found.update(names)
        samples += 1
        time.sleep(SAMPLE_SECONDS)
    return [(name, count / samples) for name, count in found.most_common()]
