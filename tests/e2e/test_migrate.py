"""A running installation is moved to the big parts and back, killed on the way: its callers see nothing but that writes wait."""

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.e2e.flows import create_chat, create_dataset, documents, ingest, ok, retrieve, start_parsing, upload, wait_until_parsed
from tests.e2e.server_process import MODEL_CACHE, ROOT, Caller, ServerProcess
from tests.services import postgres, s3
from tests.services.elasticsearch import Node
from tests.services.missing import missing

LEASE_SECONDS = "2"
QUESTIONS = ("Who keeps the sluice at night?", "\U0001f600 数据 word3", "How much flour did the mill of stone 4 grind?", "sluice")
DIES_AT = ("writes are held", "database: ", "chunks: ", "files: ")


def text_of(number: int) -> bytes:
    line = f"Mill {number}: stone %s ground {number} sacks. 数据 \U0001f600 word{number}. " * 8
    return "\n\n".join([*(line.replace("%s", str(page)) for page in range(4)), "The keeper sits at the sluice at night."]).encode()


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory, elasticsearch_node: Node) -> Iterator[dict[str, str]]:
    """What a server with the big parts needs."""
    if not postgres.installed():
        missing(postgres.INSTALL)
    if not s3.is_installed():
        missing(s3.MISSING)
    name = uuid.uuid4().hex
    with postgres.postgres() as server, s3.s3(tmp_path_factory.mktemp("s3")) as bucket:
        yield {
            "MILLRACE_DATABASE_URL": server.create_database("millrace"),
            "MILLRACE_STORE": "elasticsearch",
            "MILLRACE_ELASTICSEARCH_HOSTS": elasticsearch_node.url,
            "MILLRACE_ELASTICSEARCH_INDEX_PREFIX": f"m{name}-",
            "MILLRACE_BLOB_URL": f"s3://{s3.BUCKET}/{name}",
            **bucket.environ,
        }


def settings_file(folder: Path, environ: Mapping[str, str]) -> Path:
    """The same settings as a file, with a data directory of their own."""
    folder.mkdir()
    values = {name.removeprefix("MILLRACE_").lower(): value for name, value in environ.items() if name.startswith("MILLRACE_")}
    values |= {"data_dir": str(folder / "data"), "cache_dir": str(MODEL_CACHE)}
    file = folder / "millrace.toml"
    file.write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))
    return file


def command(source: Path, environ: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    keys = {name: value for name, value in environ.items() if name.startswith("AWS_")}
    return subprocess.Popen(
        [sys.executable, "-m", "api", "migrate", *arguments],
        cwd=ROOT, env=inherited | keys | {"PYTHONPATH": str(ROOT), "MILLRACE_CONFIG": str(source)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def killed_at(line: str, source: Path, environ: Mapping[str, str], target: Path) -> str:
    """What a run says until this line, at which `kill -9` ends it."""
    process = command(source, environ, "--to", str(target))
    said = ""
    assert process.stderr is not None
    for heard in process.stderr:
        said += heard
        if heard.startswith(line):
            process.kill()
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    return said


def moved(source: Path, environ: Mapping[str, str], target: Path) -> tuple[str, str]:
    """What a run says that comes to its end: to the next program, and to people."""
    process = command(source, environ, "--to", str(target))
    out, said = process.communicate(timeout=150)
    assert process.returncode == 0, said
    return out, said


class Reader(threading.Thread):
    """A caller that searches all the time."""

    def __init__(self, server: Caller, dataset_id: str, wanted: list[list[str]]) -> None:
        super().__init__(daemon=True)
        self.server, self.dataset_id, self.wanted = server, dataset_id, wanted
        self.stop = threading.Event()
        self.answers, self.failures = 0, list[Any]()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                assert best(self.server, self.dataset_id) == self.wanted
            except BaseException as failure:
                self.failures.append(failure)
            self.answers += 1


def best(server: Caller, dataset_id: str) -> list[list[str]]:
    """The ten best chunks for each question."""
    found = [retrieve(server, [dataset_id], question, page_size=10, similarity_threshold=0.0) for question in QUESTIONS]
    return [[chunk["id"] for chunk in answer["chunks"]] for answer in found]


def overlap(one: list[list[str]], other: list[list[str]]) -> float:
    return sum(len({*a} & {*b}) / max(1, len(a)) for a, b in zip(one, other, strict=True)) / len(one)


def serve(file: Path, environ: Mapping[str, str]) -> ServerProcess:
    keys = {name: value for name, value in environ.items() if name.startswith("AWS_")}
    more = {"MILLRACE_CONFIG": str(file), "MILLRACE_LEASE_SECONDS": LEASE_SECONDS}
    folder = file.parent
    return ServerProcess(folder / "data", log_file=folder / "log", environ={**keys, **more}, workers=2).wait_until_ready()


def refused(server: Caller, method: str, path: str, **more: Any) -> str:
    """The reason of a 503 that says when to come back."""
    headers = {"Authorization": f"Bearer {server.api_key}"}
    reply = requests.request(method, f"{server.url}/api/v1{path}", headers=headers, timeout=60, **more)
    assert reply.status_code == 503, (reply.status_code, reply.text)
    assert int(reply.headers["Retry-After"]) >= 1
    return reply.json()["message"]


@pytest.mark.slow
def test_a_running_installation_is_moved_to_the_big_parts_and_back(environ: dict[str, str], tmp_path: Path) -> None:
    small = settings_file(tmp_path / "small", {})
    big = settings_file(tmp_path / "big", environ)
    back = settings_file(tmp_path / "back", {})
    running = [serve(small, environ)]
    try:
        (old,) = running
        dataset_id = create_dataset(old, "mills \U0001f600")
        ingest(old, dataset_id, {f"mill {number}.txt": text_of(number) for number in range(6)})
        chat_id = create_chat(old, "talk", [dataset_id])
        session_id = ok(old.call("POST", f"/chats/{chat_id}/sessions", {"name": "\U0001f600"}))["id"]
        ok(
            old.call(
                "POST", f"/chats/{chat_id}/completions", {"question": "Who keeps the sluice?", "session_id": session_id, "stream": False}
            )
        )
        sessions = ok(old.call("GET", f"/chats/{chat_id}/sessions"))
        listed = documents(old, dataset_id)

        # one document is being parsed when writes begin to be held
        (late,) = upload(old, dataset_id, {"late.txt": text_of(77)})
        start_parsing(old, dataset_id, [late])
        said = killed_at("writes are held", small, environ, big)
        assert "moving database, chunks, files to postgresql, elasticsearch, s3" in said

        reader = Reader(old, dataset_id, best(old, dataset_id))
        reader.start()
        held = "the data is being moved to postgresql, elasticsearch, s3: until that is done it can be read, and not changed"
        assert refused(old, "POST", "/datasets", json={"name": "another"}) == held
        assert refused(old, "POST", f"/datasets/{dataset_id}/documents", files={"file": ("a.txt", b"text")}) == held
        assert refused(old, "POST", f"/chats/{chat_id}/sessions", json={"name": "another"}) == held
        assert old.get("/readyz")[0] == 200
        status = ok(old.call("GET", "/system/status"))
        assert (status["database"]["status"], status["database"]["note"]) == ("green", held)
        with pytest.raises(AssertionError, match="the data is still being moved to these parts"):
            ServerProcess(tmp_path / "early", log_file=tmp_path / "early.log", environ={**environ, "MILLRACE_CACHE_DIR": str(MODEL_CACHE)})
        for line in DIES_AT[1:]:
            assert "goes on" in killed_at(line, small, environ, big)
        out, said = moved(small, environ, big)
        reader.stop.set()
        reader.join()
        assert (reader.failures[:1], reader.answers > 0) == ([], True)
        assert out == f"MILLRACE_CONFIG={big} millrace serve\n"
        assert re.search(r"moved and compared: \d+ rows, \d+ chunks, 7 files \(digest [0-9a-f]{32}\)", said)
        assert "was moved to postgresql, elasticsearch, s3" in refused(old, "POST", "/datasets", json={"name": "another"})
        assert best(old, dataset_id) == reader.wanted

        running.append(serve(big, environ))
        new = running[-1]
        assert new.api_key == old.api_key
        wait_until_parsed(new, dataset_id, [late])
        assert {name: row["chunk_count"] for name, row in documents(new, dataset_id).items() if name != late} == {
            name: row["chunk_count"] for name, row in listed.items()
        }
        assert ok(new.call("GET", f"/chats/{chat_id}/sessions")) == sessions
        assert overlap(best(new, dataset_id), reader.wanted) >= 0.9  # `late` may have come meanwhile
        ingest(new, dataset_id, {"new.txt": text_of(99)})
        found = best(new, dataset_id)
        new.stop()

        out, said = moved(big, environ, back)
        running.append(serve(back, environ))
        last = running[-1]
        assert overlap(best(last, dataset_id), found) >= 0.98
        assert documents(last, dataset_id).keys() == documents(old, dataset_id).keys() | {
            row["id"] for row in documents(last, dataset_id).values() if row["name"] == "new.txt"
        }
        assert ok(last.call("GET", f"/chats/{chat_id}/sessions")) == sessions
        ingest(last, dataset_id, {"newest.txt": text_of(100)})

        forgetting = command(big, environ, "--forget")
        _, said = forgetting.communicate(timeout=60)
        assert (forgetting.returncode, said) == (0, "removed what was moved away: database, chunks, files\n")
    finally:
        for server in running:
            server.kill()
