"""Every benchmark of load/README.md, one after another: `python -m load` or `make bench`.

Each runs in a process of its own and prints its table. `--full` adds the million chunks of the store (about ten minutes and 3 GB
of disk); `--only` takes the names of some.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bench:
    """One benchmark and the goal it is held against."""

    name: str
    goal: str
    arguments: tuple[str, ...] = ()
    full_arguments: tuple[str, ...] | None = None


BENCHES = (
    Bench("retrieval", "Python CPU of one retrieval with 64 candidates, store and embedding stubbed: <= 1.5 ms"),
    Bench("http", "/retrieval over HTTP, 100k chunks, 16 callers: >= 0.6 of the same work in process", ("--requests", "500")),
    Bench(
        "store",
        "p95 of search with a dataset filter: 1M chunks < 3x of 10k",
        ("--sizes", "10000,100000"),
        ("--sizes", "10000,100000,1000000"),
    ),
    Bench("ingest", "chunks/s from a folder of real files to searchable: >= 0.9 of the bare embedder"),
    Bench("split", "splitting: >= 10x a naive splitter that recounts tokens per window"),
    Bench("process", "start < 2 s; memory idle < 300 MB, ingesting 10,000 chunks < 700 MB; median search meanwhile <= 2x"),
    Bench("metadata", "p95 of lists of datasets, documents and sessions among 100,000 rows, three databases: <= 2x of 100 rows"),
    Bench(
        "elastic",
        "on Elasticsearch at 100k chunks: /retrieval >= 0.8 of a bare client, CPU <= 4 ms, put >= 0.9 of parallel_bulk",
        ("--rounds", "2"),
    ),
    Bench("first_token", "first token minus the model's first token: <= 10 ms p95"),
)


def main() -> None:
    """Run them; exit code 1 when one missed its goal or broke off."""
    names = [bench.name for bench in BENCHES]
    parser = argparse.ArgumentParser(prog="python -m load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--full", action="store_true", help="with a million chunks")
    options = parser.parse_args()
    outcomes = [run(bench, options.full) for bench in BENCHES if bench.name in options.only]
    print("\n" + "\n".join(outcomes))
    raise SystemExit(any(not outcome.endswith("exit code 0") for outcome in outcomes))


def run(bench: Bench, full: bool) -> str:
    """Run one; a line on how it went. Its exit code is 1 when it knows its goal and missed it."""
    arguments: Sequence[str] = bench.full_arguments if full and bench.full_arguments is not None else bench.arguments
    module = f"load.{bench.name}_bench"
    print(f"\n## {bench.goal}\n\n`python -m {' '.join([module, *arguments])}`\n", flush=True)
    started = time.monotonic()
    code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    return f"{bench.name}: {time.monotonic() - started:.0f} s, exit code {code}"


if __name__ == "__main__":
    main()
