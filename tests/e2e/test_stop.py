"""SIGTERM: no request is cut, streams end properly, ingestion is given back; and a second server beside the first."""

import itertools
import json
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests

from load.vendor_simulator import Behaviour, VendorSimulator
from tests.e2e.flows import create_chat, create_dataset, documents, ingest, ok, retrieve, start_parsing, upload, wait_until_parsed
from tests.e2e.server_process import ServerProcess
from tests.e2e.vendors import listening


@pytest.fixture
def vendor() -> Iterator[VendorSimulator]:
    """A chat model that takes about three seconds for its answer, a word at a time."""
    words = tuple(f"word{number} " for number in range(30))
    with listening(VendorSimulator(Behaviour(words=words, gap_seconds=0.1))) as simulator:
        yield simulator


def start_with_model(start, tmp_path: Path, vendor: VendorSimulator, **environ: str) -> ServerProcess:
    config = tmp_path / "millrace.toml"
    config.write_text(f'[[models]]\nname = "slow"\nprovider = "Test"\nkind = "chat"\nbase_url = "{vendor.base_url}/v1"\ndefault = true\n')
    return start(environ={"MILLRACE_CONFIG": str(config), **environ})


def ask(server: ServerProcess, chat_id: str) -> requests.Response:
    return requests.post(
        f"{server.url}/api/v1/chats/{chat_id}/completions",
        headers={"Authorization": f"Bearer {server.api_key}"},
        json={"question": "Say something long.", "stream": True},
        stream=True,
        timeout=60,
    )


def frames(reply: requests.Response) -> Iterator[dict]:
    return (json.loads(line.removeprefix(b"data:")) for line in reply.iter_lines() if line)


def test_a_streamed_answer_is_finished_before_the_server_stops(start, tmp_path: Path, vendor: VendorSimulator) -> None:
    server = start_with_model(start, tmp_path, vendor)
    chat_id = create_chat(server, "talker", [])
    events = frames(ask(server, chat_id))
    received = [next(events)]
    server.process.send_signal(signal.SIGTERM)
    received += events
    assert received[-1] == {"code": 0, "message": "", "data": True}
    answer = "".join(frame["data"]["answer"] for frame in received[:-1])
    assert answer.split() == [f"word{number}" for number in range(30)]
    assert server.stop() == 0


def test_new_connections_are_refused_while_the_server_drains(start, tmp_path: Path, vendor: VendorSimulator) -> None:
    server = start_with_model(start, tmp_path, vendor)
    events = frames(ask(server, create_chat(server, "talker", [])))
    next(events)
    server.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 5
    seen = set()
    while (status := server.get("/readyz")[0]) != 0:
        seen.add(status)
        assert time.monotonic() < deadline
    assert seen <= {200, 503}
    assert list(events)[-1]["data"] is True


def test_a_stream_that_takes_too_long_ends_with_an_error_frame_and_its_last_frame(start, tmp_path: Path, vendor: VendorSimulator) -> None:
    vendor.behaviour = Behaviour(words=("word ",) * 1000, gap_seconds=0.1)
    server = start_with_model(start, tmp_path, vendor, MILLRACE_DRAIN_SECONDS="2")
    events = frames(ask(server, create_chat(server, "talker", [])))
    next(events)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    received = list(events)
    assert received[-1] == {"code": 0, "message": "", "data": True}
    assert received[-2]["code"] == 500
    assert received[-2]["message"] == "the server is stopping"
    assert server.stop() == 0
    assert time.monotonic() - started < 6


def test_the_part_of_an_answer_that_was_sent_is_saved_when_the_server_stops(start, tmp_path: Path, vendor: VendorSimulator) -> None:
    vendor.behaviour = Behaviour(words=("word ",) * 1000, gap_seconds=0.1)
    server = start_with_model(start, tmp_path, vendor, MILLRACE_DRAIN_SECONDS="2")
    chat_id = create_chat(server, "talker", [])
    events = frames(ask(server, chat_id))
    session_id = next(events)["data"]["session_id"]
    server.stop()
    list(events)
    server = start_with_model(start, tmp_path, vendor)
    session = ok(server.call("GET", f"/chats/{chat_id}/sessions/{session_id}"))
    assert [message["role"] for message in session["messages"][-2:]] == ["user", "assistant"]
    assert session["messages"][-1]["content"].startswith("word")


def test_ingestion_is_given_back_and_goes_on_at_the_next_start(start) -> None:
    server = start()
    dataset_id = create_dataset(server, "half done")
    text = "\n\n".join(f"Paragraph {number} tells of the mill and the tide in words of its own." * 4 for number in range(600))
    ids = upload(server, dataset_id, {"long.txt": text.encode()})
    start_parsing(server, dataset_id, ids)
    deadline = time.monotonic() + 60
    while documents(server, dataset_id)[ids[0]]["progress"] == 0:
        assert time.monotonic() < deadline
    assert server.stop() == 0
    with closing(sqlite3.connect(server.data_dir / "millrace.sqlite3")) as connection:
        ((owner, lease_until),) = connection.execute("SELECT owner, lease_until FROM task WHERE kind = 'parse'").fetchall()
    assert owner is None
    assert lease_until <= time.time() * 1000, "the lease is not left to run out"
    wait_until_parsed(start(), dataset_id, ids)


def test_two_servers_on_one_data_directory_see_each_others_work(start) -> None:
    first, second = start(), start()
    assert first.api_key == second.api_key
    dataset_id = create_dataset(first, "shared")
    texts = {"one.txt": b"The heron stands in the mill pond.", "two.txt": b"The kingfisher nests above the tail race."}
    ingest(first, dataset_id, {"one.txt": texts["one.txt"]})
    ingest(second, dataset_id, {"two.txt": texts["two.txt"]})
    for server in (first, second):
        assert {document["name"] for document in documents(server, dataset_id).values()} == set(texts)
        for word, name in (("heron", "one.txt"), ("kingfisher", "two.txt")):
            found = retrieve(server, [dataset_id], f"Where is the {word}?")
            assert found["chunks"][0]["document_keyword"] == name
    first.kill()
    ingest(second, dataset_id, {"three.txt": b"The otter took over when the heron had gone."})
    assert retrieve(second, [dataset_id], "otter")["chunks"][0]["document_keyword"] == "three.txt"


def test_a_worker_ingests_for_a_server_that_does_not(start) -> None:
    server = start(environ={"MILLRACE_INGEST_WORKERS": "0"})
    dataset_id = create_dataset(server, "elsewhere")
    ids = upload(server, dataset_id, {"one.txt": b"The worker is another process."})
    start_parsing(server, dataset_id, ids)
    worker = start(command="worker")
    wait_until_parsed(server, dataset_id, ids)
    assert retrieve(server, [dataset_id], "another process")["total"] == 1
    assert worker.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once_and_well(start, number: signal.Signals) -> None:
    server = start()
    started = time.monotonic()
    server.process.send_signal(number)
    assert server.stop() == 0
    assert time.monotonic() - started < 5


def test_no_request_of_busy_callers_is_cut(start) -> None:
    server = start()
    headers = {"Authorization": f"Bearer {server.api_key}"}
    broken: list[Exception] = []
    answered = [0] * 8
    busy = threading.Barrier(len(answered) + 1)

    def call(caller: int) -> None:
        with requests.Session() as session:
            while True:
                try:
                    reply = session.get(f"{server.url}/api/v1/datasets", headers=headers, timeout=30)
                except requests.ConnectionError as error:
                    if "refused" not in str(error):
                        broken.append(error)
                    return
                assert reply.json()["code"] == 0
                answered[caller] += 1
                if answered[caller] == 5:
                    busy.wait()

    callers = [threading.Thread(target=call, args=(number,)) for number in range(len(answered))]
    for caller in callers:
        caller.start()
    busy.wait()
    assert server.stop() == 0
    for caller in callers:
        caller.join()
    assert broken == []
    assert min(answered) >= 5
    lines = [json.loads(line) for line in server.logs.splitlines()]
    assert [line for line in lines if line["event"] == "request" and not line["complete"]] == [], "what was begun was finished"


def test_whoever_gets_a_connection_gets_an_answer(start) -> None:
    server = start()
    host, port = server.url.removeprefix("http://").split(":")
    begun, answered = threading.Barrier(9), []
    broken: list[str] = []

    def call() -> None:
        for number in itertools.count():
            if number == 20:
                begun.wait()
            try:
                with socket.create_connection((host, int(port)), timeout=30) as connection:
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
                    status = connection.recv(4096)[:12]
            except ConnectionRefusedError:
                answered.append(number)
                return
            except OSError as error:
                broken.append(repr(error))
                return
            if status != b"HTTP/1.1 200":
                broken.append(f"answered {status!r}")
                return

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    begun.wait()
    assert server.stop() == 0
    for caller in callers:
        caller.join()
    assert broken == []
    assert min(answered) >= 20
