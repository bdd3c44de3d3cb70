"""The speed table of reranking, chats and failing vendors: `python -m load.scale`, or some of it with `--only`.

Each part is a module with `run(seconds) -> bool`, which prints its rows and says whether the goals are met; exit code 1 when one is
missed. `--seconds` is the length of one measurement; without it each part takes its own, about ten minutes in all (`soak` an hour: it
runs only when named).
"""

import argparse
import time
from collections.abc import Callable, Mapping

from load.scale import chaos, chats, dead, embedded, overload, simulated, soak

# name -> what it is held against, what runs it, seconds of one measurement
PARTS: Mapping[str, tuple[str, Callable[[float], bool], float]] = {
    "simulated": (simulated.GOAL, simulated.run, 20.0),
    "embedded": (embedded.GOAL, embedded.run, 20.0),
    "chats": (chats.GOAL, chats.run, 60.0),
    "dead": (dead.GOAL, dead.run, 20.0),
    "overload": (overload.GOAL, overload.run, 60.0),
    "chaos": (chaos.GOAL, chaos.run, 120.0),
    "soak": (soak.GOAL, soak.run, 3600.0),
}
NOT_UNLESS_NAMED = ("soak",)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m load.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=[name for name in PARTS if name not in NOT_UNLESS_NAMED])
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    options = parser.parse_args()
    outcomes = []
    for name in options.only:
        goal, run, seconds = PARTS[name]
        print(f"\n## {name}: {goal}\n", flush=True)
        started = time.monotonic()
        met = run(options.seconds or seconds)
        outcomes.append((name, met))
        print(f"\n{name}: {'met' if met else 'MISSED'} ({time.monotonic() - started:.0f} s)", flush=True)
    raise SystemExit(not all(met for _, met in outcomes))


if __name__ == "__main__":
    main()
