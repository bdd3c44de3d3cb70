"""100 callers for an hour while 5 % of the vendors' answers fail: does the server grow?

Memory, threads, descriptors and tasks are read every few seconds while the callers work. A line is fitted through what was seen after
the first third (until then caches fill): its slope, by the hour. Resident memory is held to the same as private memory: nothing is
ingested meanwhile, so that the files which are mapped do not grow either.
"""

import threading
import time
from collections.abc import Sequence

import numpy as np

from load.sampling import Held
from load.scale import mixed
from load.scale.verdict import verdict
from load.stage import StagedServer

GOAL = "100 CCU with 5 % vendor failures: flat memory, threads, descriptors; no leaked task"
FAILURE_RATE = 0.05
SAMPLES = 120
WARM_SHARE = 1 / 3
# callers ask in runs of this length: each run's requests are made beforehand
LEG_SECONDS = 300.0
# what may be left of the samples' spread in the slope of a whole hour
MOST_MB_AN_HOUR, MOST_AN_HOUR = 30.0, 5.0


def run(seconds: float) -> bool:
    """Run and print; whether the goals are met."""
    samples: list[tuple[float, Held]] = []
    done = threading.Event()
    with mixed.stage(failure_rate=FAILURE_RATE) as (server, _):
        mixed.ask(server, min(20.0, seconds))
        idle = _settled(server)
        sampler = threading.Thread(target=_sample, args=(server, samples, seconds / SAMPLES, done))
        sampler.start()
        unplanned = answers = 0
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 1.0:
            seen = mixed.ask(server, min(LEG_SECONDS, left))
            unplanned += seen.unplanned()
            answers += seen.statuses().total()
        done.set()
        sampler.join()
        after = _settled(server)
    print(f"{answers} answers in {seconds:g} s")
    print(f"idle before: {_words(idle)}; idle afterwards: {_words(after)}")
    met = verdict("unplanned failures", unplanned, "==", 0)
    return judge(samples, after.tasks - idle.tasks, seconds) and met


def judge(samples: Sequence[tuple[float, Held]], tasks_left: int, seconds: float) -> bool:
    """Print what was gained, by the hour, in a run of that many seconds; whether that is little enough."""
    kept = samples[int(len(samples) * WARM_SHARE) :]
    slopes = {name: _slope(kept, name) for name in ("resident", "private", "threads", "descriptors", "tasks")}
    print("slopes an hour: " + ", ".join(f"{name} {_unit(name, value)}" for name, value in slopes.items()))
    # A short run's slope, blown up to an hour, tells of its noise; what a run gained is what counts then.
    hours = max(1.0, 3600 / seconds)
    return all((
        verdict("resident memory, MB an hour", slopes["resident"] / (1 << 20), "<=", MOST_MB_AN_HOUR * hours),
        verdict("private memory, MB an hour", slopes["private"] / (1 << 20), "<=", MOST_MB_AN_HOUR * hours),
        verdict("threads an hour", slopes["threads"], "<=", MOST_AN_HOUR * hours),
        verdict("descriptors an hour", slopes["descriptors"], "<=", MOST_AN_HOUR * hours),
        verdict("tasks left when idle, beyond those before", tasks_left, "<=", 0),
    ))  # fmt: skip


def _sample(server: StagedServer, samples: list[tuple[float, Held]], pause: float, done: threading.Event) -> None:
    started = time.monotonic()
    while not done.wait(pause):
        samples.append((time.monotonic() - started, server.figures().held))


def _settled(server: StagedServer) -> Held:
    """What is held when nobody asks: after the vendors' timeout, so that no call is under way."""
    time.sleep(mixed.VENDOR_TIMEOUT_SECONDS + 1.0)
    return server.figures().held


def _slope(samples: Sequence[tuple[float, Held]], name: str) -> float:
    """Growth an hour, by least squares; 0 for fewer than three samples."""
    if len(samples) < 3:
        return 0.0
    times, values = zip(*((at, getattr(held, name)) for at, held in samples), strict=True)
    return float(np.polyfit(times, values, 1)[0]) * 3600


def _words(held: Held) -> str:
    memory = f"{held.resident >> 20} MB ({held.private >> 20} private)"
    return f"{memory}, {held.threads} threads, {held.descriptors} descriptors, {held.tasks} tasks"


def _unit(name: str, value: float) -> str:
    return f"{value / (1 << 20):+.1f} MB" if name in ("resident", "private") else f"{value:+.2f}"
