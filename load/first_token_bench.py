"""What Millrace adds before an answer's first word: `python -m load.first_token_bench`.

A real Millrace process asks a real llama.cpp server through a relay that notes when a request came in and when its first word went
out. What the client waited beyond that is ours: HTTP, the session, retrieval with its embedding, the prompt, the citations. Every
question is new, so that nothing is remembered. The goal is at most 10 ms (p95), on a machine that does nothing else: all of it shares
the cores. The CPU time of the Millrace process, for the whole answer, is what a busy machine does not blur.
"""

import argparse
import asyncio
import os
import re
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import orjson

from api.chat_input import DEFAULTS, PROMPT_DEFAULTS
from api.keys import ensure_first_key
from api.parts import open_parts
from db.models import Dataset, name_key
from db.services import dialog_service, tenant_service
from load.callers import quantile
from load.processes import family_cpu_seconds
from rag.nlp.tokenize import chunk_terms
from rag.settings import Settings
from rag.types import Chunk
from tests.model_server import CHAT_CONTEXT_TOKENS, model_server

GOAL_MS = 10.0
CHUNKS = 1_000
WARM_UP = 20
SUBJECTS = ("turbine", "bridge", "glacier", "contract", "vaccine", "sonata", "harvest", "reactor", "satellite", "tariff")
ASPECTS = ("cost", "history", "failure", "design", "owner", "efficiency", "safety", "origin", "future", "size")

_FIRST_WORD = re.compile(rb'"content":"[^"]')
_REQUEST = re.compile(rb"^POST ", re.MULTILINE)
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


@dataclass
class Relay:
    """Passes bytes on and times the model: `milliseconds` from the last request to its first word."""

    target: str
    asked: float = 0.0
    milliseconds: float | None = None

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[str]:
        """The relay's URL while it runs."""
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.removeprefix("http://").split(":")
        first = await reader.read(65536)  # noted before the relay's own connection is made, which is none of Millrace's
        self._note_request(first)
        model_reader, model_writer = await asyncio.open_connection(host, int(port))
        model_writer.write(first)
        async with asyncio.TaskGroup() as group:
            group.create_task(_pass_on(reader, model_writer, self._note_request))
            group.create_task(_pass_on(model_reader, writer, self._note_answer))

    def _note_request(self, data: bytes) -> None:
        if _REQUEST.search(data):
            self.asked, self.milliseconds = time.perf_counter(), None

    def _note_answer(self, data: bytes) -> None:
        if self.milliseconds is None and _FIRST_WORD.search(data):
            self.milliseconds = (time.perf_counter() - self.asked) * 1000


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: Callable[[bytes], None]) -> None:
    try:
        while data := await reader.read(65536):
            note(data)
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def prepare(data_dir: Path) -> tuple[str, dict[str, str]]:
    """A data directory with a key and two chats: one over a dataset of 1,000 chunks, one without. The key, and the chats by name."""
    async with open_parts(Settings(data_dir=data_dir, ingest_workers=0), {}) as parts:
        key = await parts.lanes.db.run(ensure_first_key, parts.session, data_dir, parts.settings.default_tenant)
        tenant = (await parts.session.write(tenant_service.ensure_tenant, parts.settings.default_tenant)).id
        embedding = parts.models.default_embedding

        def rows() -> tuple[str, dict[str, str]]:
            dataset = Dataset.create(
                tenant_id=tenant, created_by=tenant, name="bench", name_key=name_key("bench"), embedding_model=embedding, chunk_count=CHUNKS
            )
            chats = {"with retrieval": [dataset.id], "model alone": []}
            made = {
                name: dialog_service.create(
                    tenant, {**DEFAULTS, "name": name, "dataset_ids": ids, "prompt_config": {**PROMPT_DEFAULTS, "empty_response": ""}}
                ).id
                for name, ids in chats.items()
            }
            return dataset.id, made

        dataset_id, chats = await parts.session.write(rows)
        texts = [f"Report {n} on the {subject(n)}. Its {aspect(n)} was {n * 37 % 991} units in {1900 + n % 120}." for n in range(CHUNKS)]
        embedder = parts.models.embedder(embedding)
        vectors = await embedder.embed_documents(texts)
        chunks = [
            Chunk(f"{n:016x}", dataset_id, f"{n // 20:032x}", f"report{n // 20}.md", text, chunk_terms("", (), text), version=1, position=n)
            for n, text in enumerate(texts)
        ]
        await parts.lanes.search.run(parts.store.put, tenant, chunks, vectors, embedder.space)
    return key, chats


def subject(number: int) -> str:
    """What the report of that number is about."""
    return SUBJECTS[number % len(SUBJECTS)]


def aspect(number: int) -> str:
    """Which figure of it the report gives."""
    return ASPECTS[number // len(SUBJECTS) % len(ASPECTS)]


@asynccontextmanager
async def millrace(data_dir: Path, model_url: str) -> AsyncIterator[tuple[str, int]]:
    """The URL and the process id of a Millrace process over that directory and model."""
    config = data_dir.parent / "millrace.toml"
    config.write_text(
        f'[[models]]\nname = "tiny"\nprovider = "Bench"\nkind = "chat"\nbase_url = "{model_url}"\n'
        f"context_tokens = {CHAT_CONTEXT_TOKENS}\ndefault = true\n"
    )
    environ = {**os.environ, "MILLRACE_CONFIG": str(config), "MILLRACE_DATA_DIR": str(data_dir), "MILLRACE_PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "api", "serve", env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        async for line in process.stdout:
            if found := _ADDRESS.search(line.decode()):
                break
        else:
            raise SystemExit("the server did not start")
        drain = asyncio.create_task(process.stdout.read())
        await ready(found[0])
        yield found[0], process.pid
        drain.cancel()
    finally:
        process.terminate()
        await process.wait()


async def ready(url: str) -> None:
    """Return when the server at that URL would answer a chat."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            try:
                async with session.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass  # not listening yet
            await asyncio.sleep(0.05)


async def first_word_ms(session: aiohttp.ClientSession, url: str, question: str) -> float:
    """Milliseconds from sending the question to the frame that holds the answer's first word."""
    started = time.perf_counter()
    found = 0.0
    async with session.post(url, json={"question": question, "max_tokens": 12}) as response:
        async for line in response.content:
            if not line.startswith(b"data:") or found:
                continue
            frame = orjson.loads(line[5:])
            if frame["code"]:
                raise SystemExit(frame["message"])
            if isinstance(frame["data"], dict) and frame["data"]["answer"]:
                found = (time.perf_counter() - started) * 1000
    return found


async def measure(session: aiohttp.ClientSession, url: str, relay: Relay, count: int) -> list[tuple[float, float]]:
    """Per question what the client waited and what the model took, in milliseconds."""
    pairs = []
    for number in range(-WARM_UP, count):
        question = f"What was the {aspect(number * 7)} of the {subject(number * 3)} in the year {1900 + number}?"
        waited = await first_word_ms(session, url, question)
        if number >= 0 and waited and relay.milliseconds is not None:
            pairs.append((waited, relay.milliseconds))
    return pairs


async def run(count: int) -> bool:
    """Measure, print the table, and say whether the goal is met."""
    with model_server("chat") as model_url, tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        key, chats = await prepare(data_dir)
        relay = Relay(model_url)
        headers = {"Authorization": f"Bearer {key}"}
        met = True
        async with (
            relay.listen() as relay_url,
            millrace(data_dir, relay_url) as (url, pid),
            aiohttp.ClientSession(headers=headers) as session,
        ):
            print("| chat | questions | model's first word, median ms | added: median ms | added: p95 ms | CPU ms | goal |")
            print("|---|---|---|---|---|---|---|")
            for name, chat in chats.items():
                used = family_cpu_seconds(pid)
                pairs = await measure(session, f"{url}/api/v1/chats/{chat}/completions", relay, count)
                cpu = (family_cpu_seconds(pid) - used) * 1000 / (count + WARM_UP)
                added = sorted(waited - model for waited, model in pairs)
                p95 = quantile(added, 0.95)
                met = met and p95 <= GOAL_MS
                model = quantile(sorted(took for _, took in pairs), 0.5)
                goal = f"<= {GOAL_MS:g} ms p95: {'met' if p95 <= GOAL_MS else 'MISSED'}"
                print(f"| {name} | {len(pairs)} | {model:.1f} | {quantile(added, 0.5):.1f} | {p95:.1f} | {cpu:.1f} | {goal} |")
    return met


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="questions to each chat")
    raise SystemExit(0 if asyncio.run(run(parser.parse_args().count)) else 1)


if __name__ == "__main__":
    main()
