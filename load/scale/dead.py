"""The reranker is dead, and 100 callers want it: first it refuses connections, then it takes them and says nothing.

Searches without a reranker and with the dead one are asked in turns over a store of 200 ms, so that both see the same machine.
"""

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from load.callers import drive, quantile
from load.scale.verdict import verdict
from load.stage import Play, StagedServer, staged
from load.vendors import RERANKER, vendors

CALLERS, STORE_SECONDS = 100, 0.2
GOAL = "0 failed requests; after the breaker opens p50 <= the p50 without rerank + 5 ms"
ROUNDS = 3
# the shortest time after which nobody may notice any more: a hanging reranker is waited for as long as the settings allow, once
RERANK_TIMEOUT_SECONDS = 2.0
MOST_REQUESTS_A_SECOND = 600


def run(seconds: float) -> bool:
    """Measure and print both; whether the goals are met."""
    with vendors(failing="hang") as simulated:
        met = [_row("hangs", simulated.models(), seconds)]
        refused = [{**model, "base_url": _closed_port()} if model["kind"] == "rerank" else model for model in simulated.models()]
        met.append(_row("refuses", refused, seconds))
    return all(met)


def _closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/jina/v1"


def _row(name: str, models: Sequence[Mapping[str, Any]], seconds: float) -> bool:
    settings = {"models": models, "search_threads": CALLERS, "rerank_timeout_seconds": RERANK_TIMEOUT_SECONDS}
    with staged(Play(settings, STORE_SECONDS)) as server:
        _ask(server, (), 2.0)
        first = _ask(server, (RERANKER,), RERANK_TIMEOUT_SECONDS + 3)
        without, dead, failed = [], [], first[1]
        for _ in range(ROUNDS):
            for latencies, rerankers in ((without, ()), (dead, (RERANKER,))):
                some, failures = _ask(server, rerankers, seconds / ROUNDS / 2)
                latencies += some
                failed += failures
    p50, p50_dead = (quantile(sorted(latencies), 0.5) * 1000 for latencies in (without, dead))
    print(
        f"it {name}: p50 without {p50:.1f} ms, with the dead reranker {p50_dead:.1f} ms (p99 {quantile(sorted(dead), 0.99) * 1000:.0f}), "
        f"the longest before the breaker opened {max(first[0]) * 1000:.0f} ms; {len(dead)} answers"
    )
    return all((
        verdict(f"it {name}: failed requests", failed, "==", 0),
        verdict(f"it {name}: p50 beyond the p50 without rerank", p50_dead - p50, "<=", 5, " ms"),
    ))  # fmt: skip


def _ask(server: StagedServer, rerankers: Sequence[str], seconds: float) -> tuple[list[float], int]:
    """The latencies, but for those of the first tenth of the time, and how many requests failed."""
    requests = server.searches(int(MOST_REQUESTS_A_SECOND * seconds), *rerankers)
    driven = drive(server.url, requests, CALLERS, seconds, ramp_seconds=STORE_SECONDS)
    return list(driven.between(seconds / 10, driven.seconds + 1).latencies), driven.failed
