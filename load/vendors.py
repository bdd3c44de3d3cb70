"""All model vendors in one process: ten rerankers, a chat model and an embedder, with set latency, jitter and failures.

`Vendors` starts it; what it does can be changed while it runs. As a program: `python -m load.vendors --port 9997 --failure-rate 0.05`.
It keeps nothing of what it is asked, so that it may run for hours.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import uvloop

from load.processes import allow_many_files
from load.rerank_simulator import MODELS, WIRES, RerankVendors
from load.vendor_simulator import Behaviour, Request, VendorSimulator

ROOT = Path(__file__).parents[1]
# where a vendor is told what to do from now on
SETTINGS_PATH = "/settings"
API_KEY = "key-of-the-simulated-vendors"
KEY_VARIABLE = "SIMULATED_VENDOR_KEY"
CHAT, EMBEDDING = "chat@Simulated", "embedding@Simulated"

_BUSY = (("retry-after", "1"),)
# Every way to fail of `load.vendor_simulator`, by the name under which it is counted. These suit every request ...
FAILURES: Mapping[str, Behaviour] = {
    **{kind: Behaviour(kind) for kind in (
        "hang", "reset", "html", "garbage", "truncated", "short_body", "huge", "error_body", "bad_gzip", "gzip_bomb", "trickle_body",
    )},
    **{f"status_{status}": Behaviour(status=status) for status in (302, 400, 401, 403, 404, 413, 422, 500, 502, 504)},
    **{f"busy_{status}": Behaviour(status=status, headers=_BUSY) for status in (429, 503)},
}  # fmt: skip
# ... and these only a streamed answer.
STREAM_FAILURES: Mapping[str, Behaviour] = {
    kind: Behaviour(kind)
    for kind in ("hang_after_headers", "hang_mid_stream", "trickle", "reset_mid_stream", "broken_off", "error_event", "not_streamed")
}
WORDS = ("The ", "store ", "finds ", "the ", "chunks ", "of ", "a ", "document ", "and ", "the ", "model ", "reads ", "them. ")
# 100 MB take a second of a core that the server needs: as often as all others would measure the simulator
HUGE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Mood:
    """What the vendors do. Seconds; `gap_seconds` passes between the pieces of a streamed answer, which has `words` of them.

    `failure_rate` is the share of requests that fail somehow, `failing` a failure that all requests to rerankers have.
    """

    rerank_seconds: float = 0.3
    chat_seconds: float = 0.2
    gap_seconds: float = 0.05
    words: int = 30
    embed_seconds: float = 0.02
    jitter: float = 0.0
    failure_rate: float = 0.0
    failing: str = ""


@dataclass(slots=True)
class Choice:
    """Decides how a request is answered. `jitter` of the mood is the share by which a latency varies to either side.

    `failed` counts the failures by kind, `answered` the requests by what was asked for.
    """

    mood: Mood
    dimension: int = 384
    dice: random.Random = field(default_factory=random.Random)
    failed: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)

    def __call__(self, request: Request) -> Behaviour:
        if request.path == SETTINGS_PATH:
            self.mood = Mood(**request.body)
            counts = {"failed": dict(self.failed), "answered": dict(self.answered)}
            return Behaviour(reply=lambda _: counts)
        mood = self.mood
        self.answered[request.path] += 1
        if request.path.endswith("/chat/completions"):
            return self._chat(request)
        if request.path.endswith("/embeddings"):
            return self._failing() or Behaviour(latency_seconds=self._latency(mood.embed_seconds), dimension=self.dimension)
        if mood.failing:
            return FAILURES[mood.failing]
        latency = self._latency(mood.rerank_seconds)
        return self._failing() or replace(RerankVendors()(request), latency_seconds=latency)

    def _chat(self, request: Request) -> Behaviour:
        mood = self.mood
        streamed = bool(request.body.get("stream"))
        latency = self._latency(mood.chat_seconds)
        pieces = {"words": _words(mood.words), "latency_seconds": latency, "gap_seconds": mood.gap_seconds}
        if failing := self._failing(streamed=streamed):
            return replace(failing, **pieces)
        if streamed:
            return Behaviour(**pieces)
        return Behaviour(**pieces | {"latency_seconds": latency + mood.words * mood.gap_seconds})

    def _failing(self, *, streamed: bool = False) -> Behaviour | None:
        if self.dice.random() >= self.mood.failure_rate:
            return None
        kinds = {**FAILURES, **STREAM_FAILURES} if streamed else FAILURES
        if self.dice.random() >= HUGE_SHARE:
            kinds = {kind: behaviour for kind, behaviour in kinds.items() if kind != "huge"}
        kind = self.dice.choice(list(kinds))
        self.failed[kind] += 1
        return kinds[kind]

    def _latency(self, seconds: float) -> float:
        return seconds * (1 + self.dice.uniform(-self.mood.jitter, self.mood.jitter))


@lru_cache
def _words(count: int) -> tuple[str, ...]:
    """Words that many a document has, since a model's answer may be searched for."""
    return tuple(islice(cycle(WORDS), count))


class Vendors:
    """The running process; `url` is where it listens."""

    def __init__(self, url: str, mood: Mood) -> None:
        self.url = url
        self.mood = mood

    def change(self, **changes: Any) -> dict[str, dict[str, int]]:
        """Behave differently from now on. What was asked and how often it failed until now: `{"failed": ..., "answered": ...}`."""
        self.mood = replace(self.mood, **changes)
        body = json.dumps(asdict(self.mood)).encode()
        request = urllib.request.Request(self.url + SETTINGS_PATH, data=body)
        with urllib.request.urlopen(request, timeout=10) as reply:
            return json.loads(reply.read())

    def models(self, *, concurrency: int = 2000, timeout_seconds: float = 60.0, rerankers: int = 1) -> list[dict[str, Any]]:
        """The `[[models]]` tables of a server that asks these vendors: a chat model, an embedder and some rerankers."""
        limits = {"concurrency": concurrency, "timeout_seconds": timeout_seconds, "api_key_env": KEY_VARIABLE}
        chat, embedding = ({"name": name.partition("@")[0], "provider": "Simulated", "base_url": self.url} for name in (CHAT, EMBEDDING))
        models = [
            {**chat, "kind": "chat", "default": True, "context_tokens": 8192, **limits},
            {**embedding, "kind": "embedding", "dimension": 384, **limits},
        ]
        for provider in RERANKERS[:rerankers]:
            name = MODELS.get(provider, "reranker")
            models.append({"name": name, "provider": provider, "kind": "rerank", "base_url": self.url + WIRES[provider].base, **limits})
        return models


# the most usual wire format first
RERANKERS = tuple(sorted(WIRES, key=lambda provider: provider != "Jina"))
RERANKER = f"reranker@{RERANKERS[0]}"


@contextmanager
def vendors(**mood: Any) -> Iterator[Vendors]:
    """All vendors on a free port, stopped when the context ends, or this process."""
    started = Mood(**mood)
    command = [sys.executable, "-m", "load.vendors", "--port", "0", "--while-stdin-is-open"]
    for name, value in asdict(started).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("listening on "):
                raise SystemExit("the simulated vendors did not start")
            yield Vendors(line.split()[2], started)
        finally:
            process.kill()


def _end_with_stdin() -> None:
    sys.stdin.read()
    os._exit(0)


async def _serve(port: int, mood: Mood) -> None:
    async with VendorSimulator(choose=Choice(mood), kept=1).listen(port) as simulator:
        print(f"listening on {simulator.base_url}", flush=True)
        for provider, wire in WIRES.items():
            print(f"  {provider:24}{simulator.base_url}{wire.base}", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=9997)
    for one in fields(Mood):
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default)
    parser.add_argument("--while-stdin-is-open", action="store_true", help="end when standard input does")
    given = vars(parser.parse_args())
    if given.pop("while_stdin_is_open"):
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    allow_many_files()
    uvloop.run(_serve(given.pop("port"), Mood(**given)))


if __name__ == "__main__":
    main()
