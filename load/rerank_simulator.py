"""Ten rerank vendors on this machine: each speaks its own wire format over HTTP and refuses what is not its own.

Every vendor has a path of its own below one address, so `http://127.0.0.1:9998/jina/v1` is what `https://api.jina.ai/v1` would be.
As a program: `python -m load.rerank_simulator --latency 0.3 --jitter 0.1 --failure-rate 0.05`.
"""

import argparse
import asyncio
import math
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from load.vendor_simulator import Behaviour, Request, VendorSimulator

Entries = list[dict[str, Any]]

# What a vendor may do to some of its answers: see `load.vendor_simulator.Behaviour`.
FAILURES = (
    Behaviour("reset"), Behaviour("html"), Behaviour("error_body"), Behaviour("short_body"), Behaviour(status=500),
    Behaviour(status=503, headers=(("retry-after", "1"),)), Behaviour(status=429, headers=(("retry-after", "1"),)), Behaviour("hang"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wire:
    """A vendor's wire format: where it listens below its base, what it takes, how it answers.

    `keys` are the only ones a request may have, `needs` those it must. `tokens` makes the part of the answer that counts tokens.
    """

    base: str
    path: str
    keys: frozenset[str] = frozenset({"model", "query", "documents", "top_n"})
    needs: frozenset[str] = frozenset({"model", "query", "documents"})
    texts: Callable[[Mapping[str, Any]], list[str]] = lambda body: body["documents"]
    query: Callable[[Mapping[str, Any]], str] = lambda body: body["query"]
    score_key: str = "relevance_score"
    logits: bool = False
    key_needed: bool = True
    most_texts: int = 1000
    answer: Callable[[Entries, int], Any] = lambda entries, tokens: {"results": entries, "usage": {"total_tokens": tokens}}

    def status(self, request: Request) -> int:
        """200, or the status with which the vendor refuses the request."""
        body = request.body
        if request.path != self.base + self.path:
            return 404
        if self.key_needed and not request.headers.get("authorization", "").startswith("Bearer "):
            return 401
        if not isinstance(body, dict) or not self.needs <= body.keys() <= self.keys:
            return 422
        texts = self.texts(body)
        if not all(isinstance(text, str) and text for text in texts) or not self.query(body):
            return 400
        return 413 if len(texts) > self.most_texts else 200

    def entries(self, body: Mapping[str, Any]) -> Entries:
        """The scored entries, the best first."""
        query = self.query(body)
        scored = [(relevance(query, text), index) for index, text in enumerate(self.texts(body))]
        named = [{"index": index, self.score_key: logit(score) if self.logits else score} for score, index in scored]
        return sorted(named, key=lambda entry: -entry[self.score_key])

    def reply(self, body: Mapping[str, Any], spoil: Callable[[Entries], Entries] = lambda entries: entries) -> Any:
        """The whole answer; `spoil` may change its entries."""
        return self.answer(spoil(self.entries(body)), len(self.texts(body)) * 10)


def relevance(query: str, text: str) -> float:
    """The share of the query's words that the text has, a little less or more for each text, strictly between 0 and 1."""
    words, own = _words(query), _words(text)
    share = len(words & own) / max(1, len(words))
    return 0.1 + 0.7 * share + _little(text)


# load runs send the same chunks again and again, and a slow vendor would be measured instead of the server
@lru_cache(maxsize=1 << 12)
def _words(text: str) -> frozenset[str]:
    return frozenset(text.lower().split())


@lru_cache(maxsize=1 << 12)
def _little(text: str) -> float:
    return 0.1 * (zlib.crc32(text.encode()) / 2**32)


def logit(probability: float) -> float:
    """What the sigmoid makes the probability of, many times steeper, so that it leaves [0, 1]."""
    return 5.0 * math.log(probability / (1.0 - probability)) - 2.0


def _with_documents(entries: Entries) -> Entries:
    return [{**entry, "document": {"text": "a copy"}} if isinstance(entry, dict) else entry for entry in entries]


def _siliconflow(entries: Entries, tokens: int) -> Any:
    return {"id": "1", "results": entries, "meta": {"billed_units": {"input_tokens": tokens}, "tokens": {"input_tokens": tokens}}}


def _xinference(entries: Entries, tokens: int) -> Any:
    meta = {"api_version": None, "billed_units": None, "tokens": {"input_tokens": tokens, "output_tokens": tokens}}
    return {"id": "1", "results": entries, "meta": meta}


def _jina(entries: Entries, tokens: int) -> Any:
    return {"model": "m", "object": "list", "usage": {"total_tokens": tokens}, "results": _with_documents(entries)}


_SILICONFLOW_KEYS = frozenset({"model", "query", "documents", "top_n", "return_documents", "max_chunks_per_doc", "overlap_tokens"})
_NVIDIA = Wire(
    "/nvidia/v1/retrieval/nvidia", "/llama-3_2-nv-rerankqa-1b-v2/reranking",
    keys=frozenset({"model", "query", "passages", "truncate"}), needs=frozenset({"model", "query", "passages"}),
    texts=lambda body: [passage["text"] for passage in body["passages"]], query=lambda body: body["query"]["text"],
    score_key="logit", logits=True, most_texts=512, answer=lambda entries, tokens: {"rankings": entries},
)  # fmt: skip

# The ten vendors by provider name, and two servers that share a class with another one.
WIRES: Mapping[str, Wire] = {
    "OpenAI-API-Compatible": Wire("/openai", "/rerank", key_needed=False, logits=True, answer=_jina),
    "Jina": Wire("/jina/v1", "/rerank", answer=_jina),
    "Xinference": Wire(
        "/xinference", "/v1/rerank", keys=frozenset({"model", "query", "documents"}), key_needed=False, logits=True, answer=_xinference
    ),
    "LocalAI": Wire("/localai", "/v1/rerank", key_needed=False, answer=_jina),
    "NVIDIA": _NVIDIA,
    "SILICONFLOW": Wire("/siliconflow/v1", "/rerank", keys=_SILICONFLOW_KEYS, answer=_siliconflow),
    "GPUStack": Wire("/gpustack", "/v1/rerank", logits=True),
    "NovitaAI": Wire("/novita", "/openai/v1/rerank"),
    "GiteeAI": Wire("/gitee/v1", "/rerank", answer=_jina),
    "Jiekou.AI": Wire("/jiekou", "/openai/v1/rerank", answer=_jina),
}
TEI = Wire(
    "/tei", "/rerank", keys=frozenset({"query", "texts", "truncate"}), needs=frozenset({"query", "texts"}),
    texts=lambda body: body["texts"], score_key="score", key_needed=False, most_texts=32, answer=lambda entries, tokens: entries,
)  # fmt: skip
NIM = replace(_NVIDIA, base="/nim", path="/v1/ranking", key_needed=False)
ALL_WIRES: Sequence[Wire] = (*WIRES.values(), TEI, NIM)
# A model that each vendor would know.
MODELS = {"NVIDIA": "nvidia/llama-3.2-nv-rerankqa-1b-v2", "SILICONFLOW": "BAAI/bge-reranker-v2-m3"}


@dataclass(slots=True)
class RerankVendors:
    """Chooses how a request to one of the vendors is answered. `failure_rate` is the share of requests that fail somehow."""

    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    failure_rate: float = 0.0
    failures: Sequence[Behaviour] = FAILURES
    spoil: Callable[[Entries], Entries] = lambda entries: entries
    dice: random.Random = field(default_factory=random.Random)

    def __call__(self, request: Request) -> Behaviour:
        latency = max(0.0, self.latency_seconds + self.dice.uniform(-self.jitter_seconds, self.jitter_seconds))
        if self.dice.random() < self.failure_rate:
            return replace(self.dice.choice(self.failures), latency_seconds=latency)
        wire = next((wire for wire in ALL_WIRES if request.path.startswith(wire.base + "/")), None)
        status = wire.status(request) if wire else 404
        if wire is None or status != 200:
            return Behaviour(status=status, latency_seconds=latency)
        return Behaviour(latency_seconds=latency, reply=lambda body: wire.reply(body, self.spoil))


async def _main() -> None:
    parser = argparse.ArgumentParser(description="ten rerank vendors on this machine")
    parser.add_argument("--port", type=int, default=9998)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before an answer")
    parser.add_argument("--jitter", type=float, default=0.0, help="seconds the latency varies by, to either side")
    parser.add_argument("--failure-rate", type=float, default=0.0, help="share of requests that fail, from 0 to 1")
    given = parser.parse_args()
    vendors = RerankVendors(given.latency, given.jitter, given.failure_rate)
    async with VendorSimulator(choose=vendors, kept=1).listen(given.port) as simulator:
        print(f"listening on {simulator.base_url}", flush=True)
        for provider, wire in WIRES.items():
            print(f"  {provider:24}{simulator.base_url}{wire.base}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
