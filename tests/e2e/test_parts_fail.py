"""A whole server on its real services, one of which is killed, hangs or is emptied: what its callers see, and what is there afterwards."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from signal import SIGCONT
from typing import Any

import pytest
import requests

from tests.e2e.flows import create_chat, create_dataset, ingest, retrieve, start_parsing, wait_until_parsed
from tests.e2e.server_process import ROOT, ServerProcess
from tests.e2e.topology import require_services
from tests.services import elasticsearch, postgres, redis, s3
from tests.services.machine import free_port, stop

DEADLINE_SECONDS = 4.0
ANSWERED_WITHIN_SECONDS = DEADLINE_SECONDS + 4.0  # what a loaded machine adds to it
PATIENCE_SECONDS = 30.0  # until it is told that the part is away; until all answers again
ENVIRON = {
    "MILLRACE_STORE": "elasticsearch",
    "MILLRACE_REQUEST_TIMEOUT_SECONDS": str(DEADLINE_SECONDS),
    "MILLRACE_CHAT_TIMEOUT_SECONDS": str(DEADLINE_SECONDS),
    "MILLRACE_DATABASE_TIMEOUT_SECONDS": "1",
    "MILLRACE_ELASTICSEARCH_TIMEOUT_SECONDS": "2",
    "MILLRACE_BLOB_TIMEOUT_SECONDS": "1",
}
LAST_FRAME = {"code": 0, "message": "", "data": True}
# in TOML; a hanging model is given up before the chat's own deadline, and so is known to be at fault
MODEL = 'name = "fake", provider = "Test", kind = "chat", base_url = "http://127.0.0.1:{port}/v1", default = true, timeout_seconds = 1'


@dataclass(frozen=True)
class Case:
    """A part that is away, what is refused meanwhile (all else answers as ever), and how that is told."""

    part: str
    way: str
    refused: str = ""  # the names of what is
    says: str = ""  # what each refusal says, a pattern; of one that waited, also that its time is over
    ready: str = ""  # the part's name in `/readyz`; "" where the server is ready without it
    status: str = ""  # its name in `/system/status`; "" where that does not show it
    colour: str = "red"

    def expected(self, *names: str) -> dict[str, str]:
        """What comes of each thing that is asked."""
        return {name: "refused" if name in self.refused.split() else "answers" for name in names}


def cases(way: str) -> list[Case]:
    late = "|longer than" if way == "hanging" else ""
    return [
        Case("elasticsearch", way, "search chat stream", f"elasticsearch{late}", "store", "doc_engine"),
        Case("database", way, "search chat stream upload parse", f"database{late}", "database", "database"),
        Case("bucket", way, "upload", f"blob store{late}", "blobs", "storage"),
        Case("model", way, "chat stream", f"model|provider{late}", "chat"),
        Case("redis", way, status="redis", colour="yellow"),
    ]


CASES = [*cases("killed"), *cases("hanging"), Case("redis", "emptied", status="redis", colour="green")]


class Program:
    """A service that is a process of this test's; `run` starts it anew where it was, and returns when it answers."""

    def __init__(self, process: "subprocess.Popen[Any]", run: Callable[[], "subprocess.Popen[Any]"]) -> None:
        self.process, self.run = process, run

    def start(self) -> None:
        self.process = self.run()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def hang(self) -> None:
        stop(self.process.pid)

    def go_on(self) -> None:
        self.process.send_signal(SIGCONT)


def run_model(stack: ExitStack, port: int) -> "subprocess.Popen[str]":
    """A vendor of a chat model."""
    command = [sys.executable, "-m", "load.vendor_simulator", "--port", str(port), "--words", "3"]
    process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("listening")
    return process


@dataclass
class Whole:
    """The server. `acts` are what takes a part away, and what brings it back: (part, way) -> both. `stored`: document -> its bytes."""

    server: ServerProcess
    acts: dict[tuple[str, str], tuple[Callable[[], Any], Callable[[], Any]]]
    dataset: str
    chat: str
    stored: dict[str, bytes] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    def request(self, method: str, path: str, **more: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {self.server.api_key}"}
        started = time.monotonic()
        reply = requests.request(method, self.server.url + path, headers=headers, timeout=60, **more)
        assert time.monotonic() - started < ANSWERED_WITHIN_SECONDS, (method, path, reply.text)
        return reply

    def ask(self, path: str, **more: Any) -> requests.Response:
        """A question that cannot be answered from memory."""
        question = f"For what does heron number {next(self.numbers)} wait?"
        return self.request("POST", f"/api/v1{path}", json={"question": question, **more})

    def upload(self) -> requests.Response:
        number = next(self.numbers)
        text = f"Heron number {number} waits for eels below the weir.".encode()
        reply = self.request("POST", f"/api/v1/datasets/{self.dataset}/documents", files={"file": (f"heron-{number}.txt", text)})
        if reply.status_code == 200:
            self.stored[reply.json()["data"][0]["id"]] = text
        return reply

    def asked(self, says: str) -> dict[str, str]:
        """What comes of each thing, all asked at the same time."""
        found, chat = '"chunks":[{', f"/chats/{self.chat}/completions"
        asks: dict[str, Callable[[], str]] = {
            "search": lambda: outcome(self.ask("/retrieval", dataset_ids=[self.dataset]), says, found),
            "chat": lambda: outcome(self.ask(chat, stream=False), says, found, "word"),
            "stream": lambda: outcome(self.ask(chat, stream=True), says, found, "word"),
            "upload": lambda: outcome(self.upload(), says),
        }
        with ThreadPoolExecutor(len(asks)) as pool:
            return dict(zip(asks, pool.map(lambda ask: ask(), asks.values()), strict=True))

    def tells(self, case: Case) -> str:
        """ "" when `/readyz` and `/system/status` name the part; else what they say."""
        reply = self.request("GET", "/readyz")
        failed = {name: state["reason"] for name, state in reply.json()["parts"].items() if not state["ok"]}
        if set(failed) != ({case.ready} if case.ready else set()) or not all(failed.values()):
            return reply.text
        assert (reply.status_code, "Retry-After" in reply.headers) == ((503, True) if failed else (200, False))
        reply = self.request("GET", "/api/v1/system/status")
        if case.part == "database" and outcome(reply, case.says) == "refused":
            return ""  # the caller's key is not remembered any more
        return "" if not case.status or reply.json()["data"][case.status]["status"] == case.colour else reply.text


def outcome(reply: requests.Response, says: str = "", *needs: str) -> str:
    """ "answers" (with what it needs, nothing degraded), "refused" (503 and when to come back, or an error frame), or what else came."""
    text = reply.text
    if reply.status_code == 503 and int(reply.headers["Retry-After"]) >= 1 and re.search(says, reply.json()["message"], re.IGNORECASE):
        return "refused"
    if reply.headers["Content-Type"].startswith("text/event-stream"):
        *frames, last = (json.loads(line.removeprefix("data:")) for line in text.splitlines() if line)
        if last == LAST_FRAME and frames[-1]["code"] == 500 and re.search(says, frames[-1]["message"], re.IGNORECASE):
            return "refused"
        fine = last == LAST_FRAME and all(frame["code"] == 0 for frame in frames)
    else:
        fine = reply.status_code == 200 and reply.json()["code"] == 0
    return "answers" if fine and "degraded" not in text and all(need in text for need in needs) else f"{reply.status_code} {text}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    require_services()
    folder = tmp_path_factory.mktemp("parts")
    with ExitStack() as stack:
        node = stack.enter_context(elasticsearch.elasticsearch())
        database = stack.enter_context(postgres.postgres())
        cache = stack.enter_context(redis.redis_server())
        bucket_port, model_port = free_port(), free_port()
        service = stack.enter_context(s3.s3(folder, bucket_port))
        bucket = Program(service.process, lambda: stack.enter_context(s3.s3(folder, bucket_port)).process)
        model = Program(run_model(stack, model_port), lambda: run_model(stack, model_port))
        config = folder / "millrace.toml"
        config.write_text(f"models = [{{{MODEL.format(port=model_port)}}}]")
        places = {
            "MILLRACE_CONFIG": str(config),
            "MILLRACE_DATABASE_URL": database.create_database("served"),
            "MILLRACE_ELASTICSEARCH_HOSTS": node.url,
            "MILLRACE_REDIS_URL": cache.url,
            "MILLRACE_BLOB_URL": f"s3://{s3.BUCKET}/parts",
            **service.environ,
        }
        server = ServerProcess(folder / "data", log_file=folder / "server.log", environ=ENVIRON | places)
        stack.callback(server.kill)
        server.wait_until_ready()
        acts = {
            ("elasticsearch", "killed"): (node.kill, node.start),
            ("elasticsearch", "hanging"): (node.stop_in_its_tracks, node.go_on),
            ("database", "killed"): (database.kill, database.start),
            ("database", "hanging"): (database.pause, database.resume),
            ("bucket", "killed"): (bucket.kill, bucket.start),
            ("bucket", "hanging"): (bucket.hang, bucket.go_on),
            ("model", "killed"): (model.kill, model.start),
            ("model", "hanging"): (model.hang, model.go_on),
            ("redis", "killed"): (cache.kill, cache.start),
            ("redis", "hanging"): (cache.hang, cache.go_on),
            ("redis", "emptied"): (cache.flush, lambda: None),
        }
        dataset = create_dataset(server, "birds")
        ingest(server, dataset, {"heron.txt": b"The heron waits for eels below the weir."})
        yield Whole(server, acts, dataset, create_chat(server, "miller", [dataset]))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.part}-{case.way}")
def test_what_needs_a_part_that_is_away_is_refused_and_nothing_taken_is_lost(whole: Whole, case: Case) -> None:
    path = f"/api/v1/datasets/{whole.dataset}"
    whole.stored.clear()
    assert outcome(whole.upload()) == "answers"
    (document,) = whole.stored
    take_away, bring_back = whole.acts[case.part, case.way]
    take_away()
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        parsing = outcome(whole.request("POST", f"{path}/chunks", json={"document_ids": [document]}), case.says)
        assert {"parse": parsing} == case.expected("parse")
        while True:
            assert whole.asked(case.says) == case.expected("search", "chat", "stream", "upload")
            if not (said := whole.tells(case)):
                break
            assert time.monotonic() < until, said
    finally:
        bring_back()
    whole.server.wait_until_ready()
    until = time.monotonic() + PATIENCE_SECONDS
    while "refused" in (answers := whole.asked(case.says)).values():
        assert time.monotonic() < until, answers
        time.sleep(0.1)
    assert set(answers.values()) == {"answers"}
    start_parsing(whole.server, whole.dataset, [name for name in whole.stored if name != document or parsing == "refused"])
    wait_until_parsed(whole.server, whole.dataset, list(whole.stored))
    found = retrieve(whole.server, [whole.dataset], "heron eels weir", similarity_threshold=0, page_size=100)
    assert set(whole.stored) <= {chunk["document_id"] for chunk in found["chunks"]}
    for name, text in whole.stored.items():
        assert whole.request("GET", f"{path}/documents/{name}").content == text
