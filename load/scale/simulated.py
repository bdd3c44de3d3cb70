"""100 callers over a store of 200 ms and a reranker of 300 ms: how near to what the latencies alone allow."""

from load.callers import drive, quantile
from load.sampling import mean_of, share_below
from load.scale.verdict import verdict
from load.stage import Play, staged, watched
from load.vendors import RERANKER, vendors

CALLERS, STORE_SECONDS, RERANK_SECONDS = 100, 0.2, 0.3
GOAL = "throughput >= 0.95 of 100 / 0.5 s, no thread busy during rerank time, p95 of our own overhead <= 30 ms"
STORE_THREADS = 64
WARM_SECONDS = 3.0
# Threads work for the database, and wait a little for the interpreter's lock. One that waited for the reranker would add 300 ms.
MOST_THREAD_MS = 15.0


def run(seconds: float) -> bool:
    """Measure and print; whether the goals are met."""
    ideal_seconds = STORE_SECONDS + RERANK_SECONDS
    ideal = CALLERS / ideal_seconds
    with vendors(rerank_seconds=RERANK_SECONDS) as simulated:
        settings = {"models": simulated.models(), "search_threads": STORE_THREADS}
        with staged(Play(settings, STORE_SECONDS)) as server:
            drive(server.url, server.searches(2 * CALLERS, RERANKER), CALLERS, ramp_seconds=ideal_seconds)
            asked = server.searches(int(ideal * (seconds + WARM_SECONDS + 2)), RERANKER)
            driven, seen, before = watched(
                server,
                WARM_SECONDS,
                seconds - 1.0,
                lambda: drive(server.url, asked, CALLERS, WARM_SECONDS + seconds, ramp_seconds=ideal_seconds),
            )
    steady = driven.between(WARM_SECONDS, WARM_SECONDS + seconds)
    rate = len(steady.latencies) / steady.seconds
    answers = len(driven.latencies)
    latencies = sorted(steady.latencies)
    cpu_ms = (seen.held.cpu_seconds - before.cpu_seconds) * 1000 / (rate * (seconds - 1.0))
    print(
        f"{answers} answers, {driven.failed} failed, {rate:.1f}/s; p50 {quantile(latencies, 0.5) * 1000:.0f} ms, p95 "
        f"{quantile(latencies, 0.95) * 1000:.0f} ms; server {cpu_ms:.2f} ms of CPU a request, callers "
        f"{driven.cpu_seconds * 1000 / answers:.2f} ms; threads busy {mean_of(seen.busy):.1f} (p99 {share_below(seen.busy, 0.99)}), "
        f"{mean_of(seen.outside):.2f} of them not in the store\n{seen.loop}"
    )
    for_models = max((max(counts) for name, counts in seen.by_lane.items() if name in ("model", "rerank")), default=0)
    return all((
        verdict("failed requests", driven.failed, "==", 0),
        verdict("throughput / ideal", rate / ideal, ">=", 0.95),
        verdict("own overhead, p95", (quantile(latencies, 0.95) - ideal_seconds) * 1000, "<=", 30, " ms"),
        verdict("threads of the model lanes that were ever busy", for_models, "==", 0),
        verdict("thread time a request outside the store", mean_of(seen.outside) / rate * 1000, "<=", MOST_THREAD_MS, " ms"),
    ))  # fmt: skip
