"""Ten times as many searches arrive as the server has at normal times, for a minute, then as many as before.

The embedded store, real embeddings, no reranker. What the server can do is asked first (callers who wait for their answers); normal is
half of that. Searches arrive at their times whatever became of those before, and latencies count from those times. Those of the
flood's first second are printed apart and held against nothing: the server lets in at first what it takes for a burst (ADR 19).
What is neither answered nor refused counts at all times.
"""

from collections.abc import Sequence

from load.callers import OK, REFUSED, Driven, drive, offer, post_requests, quantile
from load.corpus import corpus, questions
from load.scale.verdict import verdict
from load.stage import Play, StagedServer, staged
from load.vendors import vendors

GOAL = "10x overload, from its second second on: admitted p95 <= 1.5x of normal; refusals in < 20 ms; normal latency back within 2 s"
OVERLOAD, NORMAL_SHARE = 10, 0.5
CAPACITY_CALLERS, CAPACITY_SECONDS = 16, 6.0
NORMAL_SECONDS, BURST_SECONDS, RECOVERY_SECONDS = 10.0, 1.0, 2.0


def run(seconds: float) -> bool:
    """Measure and print; whether the goals are met."""
    built = corpus()
    with vendors() as simulated:
        play = Play({"models": simulated.models()}, data_dir=built.data_dir, dataset_id=built.dataset_ids[0])
        with staged(play) as server:
            asked = iter(questions(200_000, seed=12))

            def requests(count: float) -> list[bytes]:
                bodies = [{"question": next(asked), "dataset_ids": [server.dataset_id], "page_size": 10} for _ in range(int(count))]
                return post_requests(server.url, server.api_key, "/api/v1/retrieval", bodies)

            return _measure(server, requests, seconds)


def _measure(server: StagedServer, requests, seconds: float) -> bool:
    drive(server.url, requests(100), CAPACITY_CALLERS)
    most = drive(server.url, requests(500 * CAPACITY_SECONDS), CAPACITY_CALLERS, CAPACITY_SECONDS)
    capacity = len(most.latencies) / most.seconds
    rate = NORMAL_SHARE * capacity
    normal = offer(server.url, requests(rate * NORMAL_SECONDS), [(rate, NORMAL_SECONDS)])
    whole = [(rate, NORMAL_SECONDS / 2), (OVERLOAD * rate, seconds), (rate, NORMAL_SECONDS)]
    offered = offer(server.url, requests(sum(each * span for each, span in whole)), whole)
    print(f"capacity {capacity:.0f}/s, normal {rate:.0f}/s, overload {OVERLOAD * rate:.0f}/s for {seconds:g} s")
    return judge(normal, offered, seconds)


def judge(normal: Driven, offered: Driven, seconds: float) -> bool:
    """Print what callers saw at normal times, and before, in and after a flood of that many seconds; whether the goals are met."""
    begin, end = NORMAL_SECONDS / 2, NORMAL_SECONDS / 2 + seconds
    burst = _asked_between(offered, begin, begin + BURST_SECONDS)
    flooded = _asked_between(offered, begin + BURST_SECONDS, end)
    after = _asked_between(offered, end + RECOVERY_SECONDS, end + NORMAL_SECONDS)
    admitted, refused = flooded.with_status(OK), flooded.with_status(*REFUSED)
    others = sum(status not in (OK, *REFUSED) for status in offered.statuses)
    usual = quantile(normal.with_status(OK), 0.95)
    print(
        f"{len(admitted) / flooded.seconds:.0f}/s admitted, {len(refused) / flooded.seconds:.0f}/s refused, {others} others\n"
        f"p50 / p95 ms: normal {_ms(normal.with_status(OK))}, the flood's first second {_ms(burst.with_status(OK))}, "
        f"from then on admitted {_ms(admitted)}, refusals {_ms(refused)} "
        f"(p99 {quantile(refused, 0.99) * 1000:.0f}), {RECOVERY_SECONDS:g} s later {_ms(after.with_status(OK))}; "
        f"the client took {offered.cpu_seconds / offered.seconds:.2f} cores"
    )
    return all((
        verdict("normal requests that failed", normal.failed, "==", 0),
        verdict("neither answered nor refused", others, "==", 0),
        verdict("admitted p95 / normal p95", quantile(admitted, 0.95) / usual, "<=", 1.5),
        verdict("refusals, p95", quantile(refused, 0.95) * 1000, "<", 20, " ms"),
        verdict(f"p95 from {RECOVERY_SECONDS:g} s after / normal p95", quantile(after.with_status(OK), 0.95) / usual, "<=", 1.5),
        verdict(f"refused from {RECOVERY_SECONDS:g} s after", after.failed, "==", 0),
    ))  # fmt: skip


def _asked_between(driven: Driven, start: float, end: float) -> Driven:
    """The answers to what was due in that time."""
    kept = [place for place, at in enumerate(driven.ended) if start <= at - driven.latencies[place] < end]

    def pick(values: Sequence) -> tuple:
        return tuple(values[place] for place in kept)

    statuses = pick(driven.statuses)
    failed = sum(status != OK for status in statuses)
    return Driven(end - start, pick(driven.latencies), driven.cpu_seconds, driven.answer_bytes, failed, pick(driven.ended), statuses)


def _ms(ascending: Sequence[float]) -> str:
    return f"{quantile(ascending, 0.5) * 1000:.0f} / {quantile(ascending, 0.95) * 1000:.0f}"
