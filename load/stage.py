"""The real application over parts of the load run's own making, in a process of its own: a store that takes a set time, rerankers that
hold a thread, one executor for everything.

The parts are opened as `millrace serve` opens them, with the process that searches the embedded store where that is kept. What the
server itself would do is not touched and has no switch for it: parts are replaced where `api.parts` has put them together, by those
of `load.staged_parts`. A thread samples how many threads are busy, and what the process and those below it hold.
"""

import asyncio
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvloop

from api import listening, logs, serve
from api.keys import ensure_first_key
from api.metrics import HasState
from api.parts import Parts, open_parts
from api.search_process import SearchProcess
from db.services import tenant_service
from load.callers import post_requests
from load.sampling import Figures, Held, Sampler, Watch
from load.staged_parts import Scene, StagedModels, StagedStore, hold_a_thread, make_scene, open_executor
from load.vendors import API_KEY, KEY_VARIABLE
from rag.settings import Settings

ROOT = Path(__file__).parents[1]
MODEL_CACHE = ROOT / ".cache" / "models"
START_SECONDS, READY_SECONDS = 60.0, 0.02
LOG, SHOWN_ERRORS = "server.log", 3

T = TypeVar("T")
Executor = Literal["lanes", "rerank", "request"]
"""What runs on threads: "lanes" as the server is; "rerank" searches and rerankers share one executor of 35 threads, and
rerankers have only `similarity`; "request" an executor of 35 threads, of which a request holds one from its beginning to its end."""


@dataclass(frozen=True, slots=True)
class Play:
    """What is put on. `settings` are those of the server beside the data directory.

    `store_seconds` None leaves the embedded store as it is; otherwise searches take that time on the search lane and find the same
    chunks, and unless `embeds`, questions are not embedded. `data_dir` and `dataset_id` name what is there already; without them a
    dataset and chats are made in a directory of their own.
    """

    settings: Mapping[str, Any]
    store_seconds: float | None = None
    executor: Executor = "lanes"
    embeds: bool = False
    data_dir: Path | None = None
    dataset_id: str = ""


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
    # a staged store is found on threads of this process: no process beside it could know what it finds
    alone = play.store_seconds is None and play.executor == "lanes"
    async with open_parts(settings, {KEY_VARIABLE: API_KEY}, alone=alone) as parts:
        api_key = await parts.lanes.db.run(ensure_first_key, parts.session, data_dir, settings.default_tenant)
        tenant_id = (await parts.session.write(tenant_service.ensure_tenant, settings.default_tenant)).id
        rerankers = [spec.identifier for spec in parts.models.list("rerank")]
        scene = Scene(play.dataset_id, (), {})
        if not play.dataset_id:
            scene = await parts.session.write(make_scene, tenant_id, parts.models.default_embedding, rerankers)
        watch = Watch()
        parts = _staged_parts(parts, play, scene, watch)
        listener = listening.listen(settings.host, 0)
        url = listening.url_of(listener)
        lanes: list[HasState] = list(dict.fromkeys(parts.lanes.all))
        if play.executor == "request":
            one = open_executor(parts)
            lanes = [one]
            serve.create_app = hold_a_thread(serve.create_app, one)
        if parts.searcher is not None:
            await _ready(parts.searcher)
            lanes.append(parts.searcher)
        sampler = Sampler(lanes, asyncio.get_running_loop(), watch)
        sampler.start()
        sampler.listen()
        channel.send((url, api_key, scene.dataset_id, scene.chats))
        threading.Thread(target=_answer, args=(channel, sampler, parts.store), daemon=True).start()
        await serve.serve(parts, listener)


async def _ready(searcher: SearchProcess) -> None:
    """Wait for its threads: until then the lane searches, which is not what is to be measured."""
    while not searcher.state.threads:  # noqa: ASYNC110 - another process starts
        await asyncio.sleep(READY_SECONDS)


def _staged_parts(parts: Parts, play: Play, scene: Scene, watch: Watch) -> Parts:
    if play.executor == "rerank":
        one = open_executor(parts)
        # the database keeps its own threads, as many as connections; its calls are short
        parts = replace(parts, lanes=replace(parts.lanes, search=one, model=one, rerank=one))
    if play.store_seconds is not None:
        parts = replace(parts, store=StagedStore(parts.store, play.store_seconds, scene, watch))
    instant = play.store_seconds is not None and not play.embeds
    models = StagedModels(parts.models, instant=instant, blocking=play.executor == "rerank")
    return replace(parts, models=models)  # type: ignore[arg-type]


def _answer(channel: Connection, sampler: Sampler, store: Any) -> None:
    with suppress(EOFError):
        while True:
            match channel.recv():
                case "figures":
                    channel.send(sampler.figures())
                case ("store", seconds):
                    store.seconds = seconds
                    channel.send(None)
