"""The load test: `make load`, or `python -m load.locust_run --users 100 --seconds 60`.

Starts by itself what it needs: a real Millrace process that has ingested the pages of docs/ over HTTP, and simulated vendors that speak
the ten rerankers' wire formats, chat and embeddings with latency, jitter and failures. `--model real` takes a real llama.cpp server
for chat and reranking, with the embedding model that comes with Millrace: fewer users then, since everything shares the cores.
Prints what locust counted and what the server says of itself; the report with plots is load/out/report.html.

locust costs a core for about a thousand requests a second, so its latencies are those of a machine that is busy with locust, too. The
figures of load/README.md come from `load.scale`, whose callers cost a tenth.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from load.processes import family_cpu_seconds, family_memory
from load.vendors import API_KEY, EMBEDDING, KEY_VARIABLE, vendors
from tests.e2e.flows import create_chat, create_dataset, ingest
from tests.e2e.server_process import ServerProcess
from tests.model_server import model_server

ROOT = Path(__file__).parents[1]
OUT = ROOT / "load" / "out"
PAGES = ("README.md", "docs/*.md", "docs/adr/*.md", "load/README.md")
WORDS_A_QUESTION = (4, 9)
QUESTIONS = 2_000
ANSWER_TOKENS = 40
# The tiny models read slowly, and the chat model spells most words: what they are given must be short.
REAL_CONTEXT_TOKENS = 420
REAL_CHUNK_TOKENS = 96
REAL_RERANK_TOKENS = 160
SLOW_CALLBACK_MS = 20.0  # of the loop thread's CPU time: nothing of ours may take longer
REAL_RERANK_CANDIDATES = 4


@contextmanager
def simulated_models(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The `[[models]]` tables of simulated vendors."""
    given = {"jitter": options.jitter, "failure_rate": options.failure_rate, "rerank_seconds": options.rerank_seconds}
    with vendors(**given) as simulated:
        # those that hang are given up after a while that a test can wait for
        yield simulated.models(rerankers=10, timeout_seconds=5.0)


@contextmanager
def real_models() -> Iterator[list[dict[str, Any]]]:
    """Those of a real model server."""
    with model_server("chat") as chat, model_server("rerank") as rerank:
        yield [
            {
                "name": "tiny", "provider": "Real", "kind": "chat", "base_url": chat, "context_tokens": REAL_CONTEXT_TOKENS,
                "default": True, "concurrency": 4,
            },
            {
                "name": "tiny", "provider": "LocalAI", "kind": "rerank", "base_url": rerank, "concurrency": 4,
                "context_tokens": REAL_RERANK_TOKENS,
            },
        ]  # fmt: skip


def toml(models: Sequence[dict[str, Any]]) -> str:
    """The tables as millrace.toml has them; JSON's scalars are TOML's."""
    return "\n".join("[[models]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in model.items()) for model in models)


def questions(texts: Sequence[str]) -> list[str]:
    """Runs of words out of the texts, the same at every run."""
    dice = random.Random(4)
    lines = [words for text in texts for line in text.splitlines() if len(words := re.findall(r"[A-Za-z]{3,}", line)) > WORDS_A_QUESTION[1]]
    asked = []
    for _ in range(QUESTIONS):
        words, count = dice.choice(lines), dice.randint(*WORDS_A_QUESTION)
        start = dice.randrange(len(words) - count)
        asked.append(" ".join(words[start : start + count]) + "?")
    return asked


def prepare(server: ServerProcess, models: Sequence[dict[str, Any]], *, simulated: bool) -> dict[str, Any]:
    """Ingest the pages and make the chats; the scene for the users."""
    files = {path.relative_to(ROOT).as_posix().replace("/", "-"): path.read_bytes() for page in PAGES for path in sorted(ROOT.glob(page))}
    more = {"embedding_model": EMBEDDING} if simulated else {"parser_config": {"chunk_token_num": REAL_CHUNK_TOKENS}}
    dataset_id = create_dataset(server, "pages", **more)
    ingest(server, dataset_id, files)
    rerankers = [f"{model['name']}@{model['provider']}" for model in models if model["kind"] == "rerank"]
    chats = [create_chat(server, f"chat {place}", [dataset_id], rerank_id=name) for place, name in enumerate(rerankers)]
    return {
        "api_key": server.api_key,
        "dataset_id": dataset_id,
        "chat_ids": chats,
        "rerankers": rerankers,
        "questions": questions([data.decode() for data in files.values()]),
        "max_tokens": ANSWER_TOKENS,
    }


def run_locust(url: str, scene: Path, users: int, seconds: int) -> list[dict[str, Any]]:
    """Run the users and return locust's statistics, an entry a name."""
    OUT.mkdir(exist_ok=True)
    statistics = OUT / "statistics"
    command = [
        sys.executable, "-m", "locust", "-f", "load/locustfile.py", "--host", url, "--scene", str(scene), "--headless", "-u", str(users),
        "-r", str(max(1, users // 5)), "-t", f"{seconds}s", "--html", str(OUT / "report.html"), "--json-file", str(statistics),
        "--only-summary", "--loglevel", "WARNING", "--stop-timeout", "30",
    ]  # fmt: skip
    with (OUT / "locust.log").open("w") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False)
    return json.loads(statistics.with_suffix(".json").read_text("utf-8"))


def table(statistics: Sequence[dict[str, Any]], seconds: int) -> str:
    """What locust counted, as Markdown. Milliseconds."""
    lines = ["| request | what | count | failed | /s | median | p95 | p99 | longest |", "|---" * 9 + "|"]
    for entry in sorted(statistics, key=lambda entry: (entry["name"], entry["method"])):
        times = sorted((float(time), count) for time, count in entry["response_times"].items())
        shares = " | ".join(f"{_share(times, share):.0f}" for share in (0.5, 0.95, 0.99))
        lines.append(
            f"| {entry['name']} | {entry['method']} | {entry['num_requests']} | {entry['num_failures']} "
            f"| {entry['num_requests'] / seconds:.1f} | {shares} | {entry['max_response_time']:.0f} |"
        )
    return "\n".join(lines)


def _share(times: Sequence[tuple[float, int]], share: float) -> float:
    wanted, seen = share * sum(count for _, count in times), 0
    for time, count in times:
        seen += count
        if seen >= wanted:
            return time
    return float("nan")


def own_words(server: ServerProcess, cpu: float) -> str:
    """What the server says of itself: what it and the processes below it used, what it left out, refused and tried again."""
    _, raw = server.get("/metrics")
    wanted = ("millrace_degraded_total", "millrace_refused", "millrace_vendor_retries", "millrace_vendor_calls")
    lines = [line for line in raw.decode().splitlines() if line.startswith(wanted) and 'outcome="ok"' not in line]
    lines = [line for line in lines if not line.endswith(" 0.0")]
    memory = family_memory(server.process.pid)
    used = f"{cpu:.1f} s of CPU, {memory.resident >> 20} MB resident, {memory.proportional >> 20} proportional"
    return "\n".join([f"server and all below it: {used}", *lines])


def run(options: argparse.Namespace) -> bool:
    """Run it all and print the tables; whether nothing failed and nothing held the event loop for too long."""
    simulated = options.model == "simulated"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-load-")))
        models = stack.enter_context(simulated_models(options) if simulated else real_models())
        (folder / "millrace.toml").write_text(toml(models))
        environ = {"MILLRACE_CONFIG": str(folder / "millrace.toml"), KEY_VARIABLE: API_KEY, "MILLRACE_LOG_LEVEL": "warning"}
        environ["MILLRACE_SLOW_CALLBACK_SECONDS"] = str(options.slow_callback_ms / 1000)
        if not simulated:
            environ["MILLRACE_RERANK_CANDIDATES"] = str(REAL_RERANK_CANDIDATES)
        server = ServerProcess(folder / "data", log_file=folder / "server.log", environ=environ)
        stack.callback(server.stop)
        server.wait_until_ready()
        scene = folder / "scene.json"
        scene.write_text(json.dumps(prepare(server, models, simulated=simulated)))
        used = family_cpu_seconds(server.process.pid)
        print(f"{options.users} users, {options.seconds} s, {options.model} models", flush=True)
        statistics = run_locust(server.url, scene, options.users, options.seconds)
        print(f"\n{table(statistics, options.seconds)}\n")
        print(own_words(server, family_cpu_seconds(server.process.pid) - used))
        held = [line for line in server.logs.splitlines() if "event loop held" in line]
        print("\n".join([f"event loop held for more than {options.slow_callback_ms:g} ms: {len(held)} times", *held[:10]]))
        (OUT / "server.log").write_text(server.logs)
    failures = sum(entry["num_failures"] for entry in statistics)
    print(f"\n{failures} requests failed; report: {(OUT / 'report.html').relative_to(ROOT)}")
    return failures == 0 and not held


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("simulated", "real"), default="simulated")
    parser.add_argument("--users", type=int, help="100, or 10 with real models")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rerank-seconds", type=float, default=0.3)
    parser.add_argument("--jitter", type=float, default=0.3, help="share by which the vendors' latencies vary")
    parser.add_argument("--failure-rate", type=float, default=0.0, help="share of the vendors' answers that fail somehow")
    parser.add_argument("--slow-callback-ms", type=float, default=SLOW_CALLBACK_MS, help="CPU time that no step of the event loop may take")
    options = parser.parse_args()
    options.users = options.users or (100 if options.model == "simulated" else 10)
    raise SystemExit(0 if run(options) else 1)


if __name__ == "__main__":
    main()
