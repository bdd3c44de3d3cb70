"""Every vendor fails in every way, at random, while 100 callers search and chat: nobody may see a 5xx that was not planned.

Planned is 503 with `Retry-After`, and an error frame in our own words in a stream that had begun. Vendors: ten rerankers, an embedder, a
chat model. Ways to fail: all of `load.vendors.FAILURES` and `STREAM_FAILURES`.
"""

from load.scale import mixed
from load.scale.verdict import verdict
from load.vendors import FAILURES, STREAM_FAILURES

GOAL = "every vendor fails at random for minutes at 100 CCU: 0 unplanned 5xx"
FAILURE_RATE = 0.3


def run(seconds: float) -> bool:
    """Run and print; whether the goal is met. Too short a run does not come round to every way to fail, and says so."""
    with mixed.stage(failure_rate=FAILURE_RATE) as (server, simulated):
        seen = mixed.ask(server, seconds)
        counts = simulated.change(failure_rate=0.0)
        healthy = mixed.ask(server, min(5.0, seconds))
        held = server.figures().held
    failed, answered = counts["failed"], sum(counts["answered"].values())
    never = sorted({*FAILURES, *STREAM_FAILURES} - failed.keys())
    print(f"{answered} requests to vendors, {sum(failed.values())} of them failed: {dict(sorted(failed.items()))}")
    print(f"answers: {dict(sorted(seen.statuses().items()))}; with healthy vendors: {dict(sorted(healthy.statuses().items()))}")
    print(f"the server afterwards: {held.resident >> 20} MB, {held.threads} threads, {held.descriptors} descriptors, {held.tasks} tasks")
    if never:
        print(f"did not happen in so short a time: {', '.join(never)}")
    return verdict("unplanned 5xx, cut connections and streams without an end", seen.unplanned() + healthy.unplanned(), "==", 0)
