"""CPU of one rerank call beyond that of the bare HTTP client: `python -m load.rerank_bench`.

Both post the same bytes to the same simulated vendor, which runs in a process of its own, in turns within one run. The bare client
is the one that the server uses; it gets the finished bytes and reads the answer's.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import httpx
import orjson

from load.rerank_simulator import MODELS, WIRES
from rag.llm.endpoint import Endpoint, authorization
from rag.llm.rerank_chain import FailoverReranker
from rag.llm.rerank_model import VendorReranker, vendor_class
from rag.llm.resilience import Guard
from rag.llm.transport import Transport, open_client
from rag.nlp.search import async_rerank_by_model
from rag.threads import Lane

GOAL_MILLISECONDS = 0.3
QUERY = "which words of this question are in the texts"
KEY = "sk-bench"


def main() -> None:
    """Print a table of milliseconds of CPU a call, vendor by vendor; exit with 1 when one is over the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--characters", type=int, default=500, help="length of each text")
    parser.add_argument("--calls", type=int, default=200, help="calls in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vendors", nargs="*", default=["OpenAI-API-Compatible", "Jina", "NVIDIA", "SILICONFLOW"], choices=list(WIRES))
    given = parser.parse_args()
    command = [sys.executable, "-m", "load.rerank_simulator", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as simulator:
        try:
            base_url = simulator.stdout.readline().split()[-1]
            worst = asyncio.run(measure(base_url, given))
        finally:
            simulator.kill()
    sys.exit(worst > GOAL_MILLISECONDS)


async def measure(base_url: str, given: argparse.Namespace) -> float:
    """The largest of the vendors' medians, in milliseconds."""
    texts = [
        (f"{number} some words of a text that is long enough to be a chunk of a document " * 20)[: given.characters]
        for number in range(given.texts)
    ]
    lane = Lane("bench", 1, 1)
    worst = 0.0
    print(f"{given.texts} texts of {given.characters} characters, {given.rounds} rounds of {given.calls} calls; ms of CPU a call (median)")
    print(f"{'vendor':24}{'bare client':>12}{'rerank call':>12}{'beyond':>10}{'goal':>8}")
    async with open_client() as client:
        for provider in given.vendors:
            reranker, endpoint = open_reranker(provider, base_url, Transport(client))
            chain = FailoverReranker({provider: reranker}, lane, 60.0)
            body = orjson.dumps(reranker.body(QUERY, texts))
            bare, called = [], []
            for _ in range(given.rounds):
                bare.append(await cpu(lambda: post(client, endpoint, body), given.calls))  # noqa: B023 - awaited at once
                called.append(await cpu(lambda: async_rerank_by_model(QUERY, texts, chain, lane), given.calls))  # noqa: B023
            beyond = statistics.median(one - other for one, other in zip(called, bare, strict=True))
            print(f"{provider:24}{statistics.median(bare):12.3f}{statistics.median(called):12.3f}{beyond:10.3f}{GOAL_MILLISECONDS:8.1f}")
            worst = max(worst, beyond)
    lane.close()
    return worst


def open_reranker(provider: str, base_url: str, transport: Transport) -> tuple[VendorReranker, Endpoint]:
    vendor, base_url, model = vendor_class(provider), base_url + WIRES[provider].base, MODELS.get(provider, "bge-reranker")
    name = f"{model}@{provider}"
    endpoint = Endpoint(name, vendor.url(base_url, model), authorization(base_url, KEY))
    return vendor(model, endpoint, transport, Guard(name, 64, 60.0, repeats_failures=True)), endpoint


async def post(client: httpx.AsyncClient, endpoint: Endpoint, body: bytes) -> None:
    headers = {"content-type": "application/json", "accept-encoding": "identity", "authorization": endpoint.authorization}
    response = await client.post(endpoint.url, content=body, headers=headers)
    assert response.status_code == 200, response.status_code


async def cpu(call: Callable[[], Awaitable[object]], calls: int) -> float:
    """Milliseconds of this process's CPU a call."""
    started = time.process_time()
    for _ in range(calls):
        await call()
    return (time.process_time() - started) * 1000.0 / calls


if __name__ == "__main__":
    main()
