"""Two ingesting workers against one, where embedding is a remote model's: `python -m load.workers_bench`.

A server that does not ingest takes the documents; `millrace worker` processes of their own do the work. The simulated model takes a set
time for a call, as one far away does, so that what counts is how many calls are under way and not how fast this machine is.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from load.vendors import API_KEY, EMBEDDING, KEY_VARIABLE, Vendors, vendors
from tests.e2e.flows import create_dataset, start_parsing, upload, wait_until_parsed
from tests.e2e.server_process import ServerProcess

GOAL = 1.9
CHUNKS_A_DOCUMENT = 48
SENTENCE = "The miller of mill {number} opens the sluice at hour {line} and the wheel turns while the river is high. "


def main() -> None:
    """Print the table; exit code 1 where the goal is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=0.5, help="the model's, for a call")
    options = parser.parse_args()
    with vendors(embed_seconds=options.seconds) as model, tempfile.TemporaryDirectory() as folder:
        seconds = {count: ingest(Path(folder) / str(count), model, count, options.documents) for count in (1, 2)}
    print(f"| workers | seconds for {options.documents} documents | documents/s |\n|---|---|---|")
    for count, taken in seconds.items():
        print(f"| {count} | {taken:.1f} | {options.documents / taken:.2f} |")
    ratio = seconds[1] / seconds[2]
    print(f"\n2 workers / 1: {ratio:.2f} (goal {GOAL}); the model takes {options.seconds:g} s for a call")
    sys.exit(ratio < GOAL)


def ingest(folder: Path, model: Vendors, workers: int, count: int) -> float:
    """Seconds from the request to parse until every document is done."""
    folder.mkdir()
    config = folder / "millrace.toml"
    config.write_text("\n".join(_table(table) for table in model.models()))
    environ = {"MILLRACE_CONFIG": str(config), KEY_VARIABLE: API_KEY}
    with ExitStack() as stack:
        settings = {**environ, "MILLRACE_INGEST_WORKERS": "0"}
        server = ServerProcess(folder / "data", log_file=folder / "server.log", environ=settings)
        stack.callback(server.kill)
        server.wait_until_ready()
        # small and well before the measurement: every worker has started its parsers and met the model
        dataset = create_dataset(server, "bench", embedding_model=EMBEDDING, parser_config={"chunk_token_num": 24, "delimiter": "\n"})
        for number in range(workers):
            worker = ServerProcess(folder / "data", log_file=folder / f"worker-{number}.log", environ=environ, command="worker")
            stack.callback(worker.kill)
        warm = upload(server, dataset, {f"warm-{number}.txt": _text(number) for number in range(8 * workers)})
        start_parsing(server, dataset, warm)
        wait_until_parsed(server, dataset, warm)
        ids = upload(server, dataset, {f"{number}.txt": _text(number) for number in range(count)})
        started = time.monotonic()
        start_parsing(server, dataset, ids)
        wait_until_parsed(server, dataset, ids, seconds=600)
        return time.monotonic() - started


def _text(number: int) -> bytes:
    return "\n".join(SENTENCE.format(number=number, line=line) for line in range(CHUNKS_A_DOCUMENT)).encode()


def _table(values: dict[str, object]) -> str:
    return "[[models]]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


if __name__ == "__main__":
    main()
