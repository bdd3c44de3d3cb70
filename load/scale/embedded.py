"""100 callers over the embedded store, 10,000 chunks of 100,000, with real embeddings and a reranker of 300 ms: how many threads work."""

from load.callers import drive, post_requests, quantile
from load.corpus import corpus, questions
from load.sampling import mean_of, share_below
from load.scale.verdict import verdict
from load.stage import Play, staged, watched
from load.vendors import RERANKER, vendors

CALLERS, RERANK_SECONDS = 100, 0.3
GOAL = "busy threads p99 <= 8"
WARM_SECONDS = 3.0
MOST_REQUESTS_A_SECOND = 300


def run(seconds: float) -> bool:
    """Measure and print; whether the goal is met."""
    built = corpus()
    with vendors(rerank_seconds=RERANK_SECONDS) as simulated:
        play = Play({"models": simulated.models()}, data_dir=built.data_dir, dataset_id=built.dataset_ids[0])
        with staged(play) as server:
            asked = [
                {"question": question, "dataset_ids": [server.dataset_id], "rerank_id": RERANKER, "page_size": 10}
                for question in questions(int(MOST_REQUESTS_A_SECOND * (seconds + WARM_SECONDS)), seed=11)
            ]
            requests = post_requests(server.url, server.api_key, "/api/v1/retrieval", asked)
            drive(server.url, requests[-CALLERS:], CALLERS, ramp_seconds=1.0)
            driven, seen, before = watched(
                server,
                WARM_SECONDS,
                seconds - 1.0,
                lambda: drive(server.url, requests, CALLERS, WARM_SECONDS + seconds, ramp_seconds=1.0),
            )
    steady = driven.between(WARM_SECONDS, WARM_SECONDS + seconds)
    latencies, answers = sorted(steady.latencies), len(driven.latencies)
    cpu_ms = (seen.held.cpu_seconds - before.cpu_seconds) * 1000 / (len(latencies) / seconds * (seconds - 1.0))
    busiest = {name: counts for name, counts in seen.by_lane.items() if mean_of(counts) >= 0.05}
    by_lane = ", ".join(f"{name} {mean_of(counts):.1f} (p99 {share_below(counts, 0.99)})" for name, counts in busiest.items())
    print(
        f"{answers} answers, {driven.failed} failed, {len(latencies) / steady.seconds:.1f}/s; p50 {quantile(latencies, 0.5) * 1000:.0f} ms,"
        f" p95 {quantile(latencies, 0.95) * 1000:.0f} ms; server {cpu_ms:.1f} ms of "
        f"CPU a request; threads busy on average: {by_lane}"
    )
    return all((
        verdict("failed requests", driven.failed, "==", 0),
        verdict("busy threads, p99", share_below(seen.busy, 0.99), "<=", 8),
    ))  # fmt: skip
