"""Questions asked again, with results remembered and without: `python -m load.cache_bench`.

Three real servers over the same 100,000 chunks: one remembers nothing but vectors of questions, as a server without Redis does; two
remember results and share a private Redis. Rounds alternate. Each asks new questions, then the same ones again, then a mixture. What
the second one is asked again only the first was asked before, so that it has its answers from Redis. Goals: the hit rate is the repeat
rate, and the median of repeated questions is at most a third of that of new ones where nothing is remembered.
"""

import argparse
import random
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from api.results import SETTLED_SECONDS
from load.callers import Driven, drive, post_requests, quantile
from load.corpus import Corpus, corpus, questions
from load.scale.verdict import verdict
from tests.e2e.server_process import ServerProcess
from tests.services.redis import redis_server

CALLERS = 4
REPEAT_RATE = 0.5
GOAL_RATIO = 1 / 3
MARGIN = 0.01  # of the hit rate: the same question may be asked twice at the same time
COUNTS = re.compile(rb'^millrace_cache_total\{cache="result",outcome="(hit|miss)"\} ([0-9.]+)', re.MULTILINE)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=200, help="new questions a round")
    options = parser.parse_args()
    built = corpus()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-bench-")))
        redis = stack.enter_context(redis_server())
        servers = []
        for name, environ in {"bare": {}, "first": {"MILLRACE_REDIS_URL": redis.url}, "second": {"MILLRACE_REDIS_URL": redis.url}}.items():
            environ |= {"MILLRACE_INGEST_WORKERS": "0", "MILLRACE_REDIS_TIMEOUT_SECONDS": "1"}
            servers.append(ServerProcess(built.data_dir, log_file=folder / f"{name}.log", environ=environ).wait_until_ready())
            stack.callback(servers[-1].stop)
        raise SystemExit(0 if bench(built, servers, options.rounds, options.questions) else 1)


def bench(built: Corpus, servers: Sequence[ServerProcess], rounds: int, number: int) -> bool:
    """Print the medians and the rates; whether the goals are met."""
    bare, first, second = servers
    fresh = _questions(seed=int(time.time()))
    for server in servers:
        ask(server, built, [next(fresh) for _ in range(50)])
    time.sleep(SETTLED_SECONDS)  # versions must have been seen for so long before anything is kept under them
    new, known, again, by_redis, rates = [], [], [], [], []
    dice = random.Random(1)
    for _ in range(rounds):
        asked = [next(fresh) for _ in range(number)]
        new.append(median(ask(bare, built, asked)))
        known.append(median(ask(bare, built, asked)))
        ask(first, built, asked)
        again.append(median(ask(first, built, asked)))
        by_redis.append(median(ask(second, built, asked)))
        repeats = int(number * REPEAT_RATE)
        mixed = [*dice.sample(asked, repeats), *(next(fresh) for _ in range(number - repeats))]
        dice.shuffle(mixed)
        before = hits_and_misses(first)
        ask(first, built, mixed)
        hits, misses = (now - then for now, then in zip(hits_and_misses(first), before, strict=True))
        rates.append(hits / (hits + misses))
    print(f"{rounds} rounds of {number} questions, {CALLERS} callers; medians in ms\n")
    print("| nothing remembered: new | vector known | result in this process | result in Redis |\n|---|---|---|---|")
    print("| " + " | ".join(f"{statistics.median(each):.1f}" for each in (new, known, again, by_redis)) + " |\n", flush=True)
    return all((
        verdict("hit rate - repeat rate", abs(statistics.median(rates) - REPEAT_RATE), "<=", MARGIN),
        verdict("repeated / new, in this process", statistics.median(again) / statistics.median(new), "<=", GOAL_RATIO),
        verdict("repeated / new, from Redis", statistics.median(by_redis) / statistics.median(new), "<=", GOAL_RATIO),
    ))  # fmt: skip


def ask(server: ServerProcess, built: Corpus, asked: Sequence[str]) -> Driven:
    """Every question once."""
    bodies = [{"question": question, "dataset_ids": list(built.dataset_ids[:1])} for question in asked]
    driven = drive(server.url, post_requests(server.url, server.api_key, "/api/v1/retrieval", bodies), CALLERS)
    if driven.failed:
        raise SystemExit(f"{driven.failed} requests failed\n{server.logs[-2000:]}")
    return driven


def median(driven: Driven) -> float:
    """Milliseconds."""
    return quantile(sorted(driven.latencies), 0.5) * 1000


def hits_and_misses(server: ServerProcess) -> tuple[float, float]:
    """Of results, so far."""
    counted = {outcome: float(count) for outcome, count in COUNTS.findall(server.get("/metrics")[1])}
    return counted.get(b"hit", 0.0), counted.get(b"miss", 0.0)


def _questions(seed: int) -> Iterator[str]:
    for more in range(1000):
        yield from questions(1000, seed + more)


if __name__ == "__main__":
    main()
