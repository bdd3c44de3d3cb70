"""Reranking on threads against reranking that is awaited: `python -m load.compare` or `make compare`.

Four servers, each the real application in a process of its own, over a store that takes a set time and a simulated vendor that takes
another; they are asked in turns.

- request: a request holds one of 35 threads from its beginning to its end, as a blocking server's does;
- rerank: searches and rerankers share 35 threads, and a reranker has only `similarity`; all else is asynchronous;
- awaited 35: as the server is, with 35 threads for the store;
- awaited: the same with as many threads for the store as it can use.

Total time is that of all callers asking at once, from the first request to the last answer, the median of some rounds. Threads are
sampled every 20 ms while 100 callers ask one question after the other.

What can be expected follows from arithmetic. With t threads, n callers at once are served in ceil(n / t) waves of store plus reranker
where a request holds a thread throughout; awaited, only the store comes in waves, and with threads enough it does not either. So 50
callers on 35 threads, two waves, gain at most 2x at any latencies; 3x is the most for three waves (up to 105 callers) and within
reach with four.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from load.callers import drive
from load.sampling import mean_of, share_below
from load.stage import Executor, Play, StagedServer, staged
from load.staged_parts import EXECUTOR_THREADS
from load.vendors import RERANKER, Vendors, vendors

# seconds of store and reranker: the specification's first
SPECIFIED = (0.2, 0.3)
LATENCIES = (SPECIFIED, (0.1, 0.3), (0.05, 0.3), (0.02, 0.3), (0.05, 1.0))
CALLERS = (50, 100, 140)
STORE_THREADS = 128
VARIANTS: Mapping[str, tuple[Executor, int]] = {
    "request": ("request", STORE_THREADS),
    "rerank": ("rerank", EXECUTOR_THREADS),
    "awaited 35": ("lanes", EXECUTOR_THREADS),
    "awaited": ("lanes", STORE_THREADS),
}
GOAL = 2.0


def at_once(server: StagedServer, callers: int) -> float:
    """Seconds until all callers, who ask at once, have their answers."""
    driven = drive(server.url, server.searches(callers, RERANKER), callers)
    if driven.failed:
        raise SystemExit(f"{driven.failed} of {callers} requests failed")
    return driven.seconds


def total_times(servers: Mapping[str, StagedServer], simulated: Vendors, rounds: int, latencies: Sequence[tuple[float, float]]) -> float:
    """Print the table of total times; the gain at the specification's latencies and 50 callers."""
    print(f"\n| store + reranker ms | callers at once | {' | '.join(f'{name} s' for name in servers)} | gain over request | over rerank |")
    print("|---" * (4 + len(servers)) + "|")
    specified = 0.0
    for store, reranker in latencies:
        simulated.change(rerank_seconds=reranker)
        for server in servers.values():
            server.take(store_seconds=store)
        for callers in CALLERS:
            times: dict[str, list[float]] = {name: [] for name in servers}
            for _ in range(rounds):
                for name, server in servers.items():
                    times[name].append(at_once(server, callers))
            took = {name: statistics.median(seconds) for name, seconds in times.items()}
            gain = took["request"] / took["awaited"]
            print(
                f"| {store * 1000:.0f} + {reranker * 1000:.0f} | {callers} | {' | '.join(f'{took[name]:.2f}' for name in servers)} "
                f"| **{gain:.2f}** | {took['rerank'] / took['awaited']:.2f} |", flush=True,
            )  # fmt: skip
            if (store, reranker) == SPECIFIED and callers == CALLERS[0]:
                specified = gain
    return specified


def threads_busy(
    servers: Mapping[str, StagedServer], simulated: Vendors, seconds: float, latencies: Sequence[tuple[float, float]]
) -> None:  # fmt: skip
    """Print how many threads are busy while 100 callers keep asking, and what they get."""
    print(f"\n{CALLERS[1]} callers:\n")
    print("| store + reranker ms | variant | threads busy: mean | p99 | but for the store | requests/s | of the ideal | p50 ms |")
    print("|---" * 8 + "|")
    for store, reranker in latencies:
        simulated.change(rerank_seconds=reranker)
        ideal = CALLERS[1] / (store + reranker)
        for name, server in servers.items():
            server.take(store_seconds=store)
            server.figures()
            asked = server.searches(int(ideal * (seconds + 2)), RERANKER)
            driven = drive(server.url, asked, CALLERS[1], seconds, ramp_seconds=store + reranker)
            seen = server.figures()
            steady = driven.between(1.0, seconds)
            rate = len(steady.latencies) / steady.seconds
            print(
                f"| {store * 1000:.0f} + {reranker * 1000:.0f} | {name} | {mean_of(seen.busy):.1f} | {share_below(seen.busy, 0.99)} "
                f"| {mean_of(seen.outside):.1f} | {rate:.0f} | {rate / ideal:.2f} | {statistics.median(steady.latencies) * 1000:.0f} |",
                flush=True,
            )  # fmt: skip


def compare(rounds: int, seconds: float, *, short: bool) -> bool:
    """Print both tables; whether the goal is met."""
    latencies = LATENCIES[:1] if short else LATENCIES
    with ExitStack() as stack:
        simulated = stack.enter_context(vendors(rerank_seconds=SPECIFIED[1]))
        servers = {}
        for name, (executor, threads) in VARIANTS.items():
            # those who wait longest are what is measured: nobody is refused
            settings = {"models": simulated.models(), "search_threads": threads, "patience_seconds": 600.0}
            servers[name] = stack.enter_context(staged(Play(settings, SPECIFIED[0], executor)))
            at_once(servers[name], CALLERS[1])  # connections and code paths
        gain = total_times(servers, simulated, rounds, latencies)
        threads_busy(servers, simulated, seconds, latencies[:2])
    met = gain >= GOAL
    print(f"\n50 callers at once, store 200 ms, reranker 300 ms: {gain:.2f}x (goal {GOAL:g}x: {'met' if met else 'MISSED'})")
    return met


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="bursts of each kind")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long threads are watched")
    parser.add_argument("--short", action="store_true", help="the specification's latencies alone")
    options = parser.parse_args()
    raise SystemExit(0 if compare(options.rounds, options.seconds, short=options.short) else 1)


if __name__ == "__main__":
    main()
