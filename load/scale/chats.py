"""1,000 chats streamed at once: store 50 ms, reranker 300 ms, a model that says 50 tokens in 25 s.

What a chat takes when it is alone is asked first; what 1,000 at once take beyond that is ours. They begin one after the other within
one chat's time, so that they stay spread. At last chats without datasets stream as fast as the server can, for the cost of an event.
"""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from load.callers import drive, quantile
from load.sampling import mean_of, share_below
from load.scale.verdict import verdict
from load.stage import Play, StagedServer, staged
from load.streams import read
from load.vendors import RERANKER, vendors

CHATS = 1_000
STORE_SECONDS, RERANK_SECONDS, TOKENS, MODEL_SECONDS = 0.05, 0.3, 50, 25.0
GOAL = (
    "1,000 streamed chats: 0 failures, throughput >= 0.9 of ideal, p95 of added first-token delay <= 150 ms, <= 100 kB a chat; "
    "token events a second of one core"
)
# the simulated model pauses after each event: those without a word are the first, the finish and the usage
PAUSES = TOKENS + 3
LIMITS = {"search_threads": 64}
FAST_READERS, FAST_TOKENS, FAST_SECONDS = 40, 500, 8.0


def run(seconds: float) -> bool:
    """Measure and print; whether the goals are met. Less than two chats' time is too short for a steady state."""
    with vendors(rerank_seconds=RERANK_SECONDS, chat_seconds=0.0, gap_seconds=MODEL_SECONDS / PAUSES, words=TOKENS) as simulated:
        with staged(Play({"models": simulated.models(), **LIMITS}, STORE_SECONDS)) as server:
            met = _crowd(server, seconds)
        simulated.change(gap_seconds=0.001, words=FAST_TOKENS)
        with staged(Play({"models": simulated.models(), **LIMITS}, STORE_SECONDS)) as server:
            _fast(server)
    return met


def _crowd(server: StagedServer, seconds: float) -> bool:
    # threads that a crowd brings to life stay, whatever the crowd does: they are not the chats' memory
    drive(server.url, server.searches(4 * LIMITS["search_threads"], RERANKER), LIMITS["search_threads"])
    alone = read(server.url, server.talks("ranked", 8), 8, 2.0, 2.0)
    duration, first_word = _median(alone.ended, alone.asked), _median(alone.first, alone.asked)
    seconds = max(seconds, 2 * duration)
    requests = server.talks("ranked", int(3 * CHATS * seconds / duration))
    before = server.figures().held
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, server.url, requests, CHATS, seconds, duration)
        time.sleep(duration + 2.0)
        began, full = time.monotonic(), server.figures().held
        time.sleep(max(0.0, seconds - duration - 4.0))
        span, later = time.monotonic() - began, server.figures()
        streamed = reading.result()
    ended = sum(duration < at <= seconds for at in streamed.ended)
    ideal = CHATS / duration
    added = sorted(first - asked - first_word for first, asked in zip(streamed.first, streamed.asked, strict=True) if first == first)
    cpu = (later.held.cpu_seconds - full.cpu_seconds) / span
    events = ended / (seconds - duration) * statistics.median(streamed.events)
    print(
        f"alone: first word after {first_word:.3f} s, end after {duration:.2f} s; {len(streamed.ended)} chats, {events:.0f} events/s, "
        f"server {cpu:.2f} cores, readers {streamed.cpu_seconds / streamed.seconds:.2f}; first word added: p50 "
        f"{quantile(added, 0.5) * 1000:.0f} ms, p99 {quantile(added, 0.99) * 1000:.0f} ms; threads busy {mean_of(later.busy):.1f} "
        f"(p99 {share_below(later.busy, 0.99)}); {dict(Counter(streamed.failed)) or 'no failures'}\n{later.loop}"
    )
    return all((
        verdict("failures", len(streamed.failed), "==", 0),
        verdict("throughput / ideal", ended / (seconds - duration) / ideal, ">=", 0.9),
        verdict("added first-token delay, p95", quantile(added, 0.95) * 1000, "<=", 150, " ms"),
        verdict("private memory an open chat", (full.private - before.private) / CHATS / 1000, "<=", 100, " kB"),
    ))  # fmt: skip


def _fast(server: StagedServer) -> None:
    """Print what an event costs, where the model is much faster than the server."""
    before = server.figures().held
    streamed = read(server.url, server.talks("plain", 10_000), FAST_READERS, FAST_SECONDS, 0.5)
    cpu, events = server.figures().held.cpu_seconds - before.cpu_seconds, sum(streamed.events)
    failed = dict(Counter(streamed.failed)) or "none"
    print(
        f"- token events a second that one core carries: **{events / cpu:.0f}** ({events} events in {streamed.seconds:.1f} s, "
        f"{cpu / events * 1e6:.0f} us of CPU each, chats of {FAST_TOKENS} tokens without datasets; failed: {failed})"
    )


def _median(later: Sequence[float], earlier: Sequence[float]) -> float:
    return statistics.median(a - b for a, b in zip(later, earlier, strict=True))
