"""`millrace serve --workers N`: one server to its callers, whatever happens to its processes."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import requests

from tests.e2e.flows import create_dataset, ingest, retrieve
from tests.e2e.server_process import ROOT, ServerProcess

WITHIN_SECONDS = 60.0


def wait_until(happens: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WITHIN_SECONDS
    while not happens():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def is_alive(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def answering(server: ServerProcess) -> set[str]:
    """The workers that /metrics tells of."""
    _, text = server.get("/metrics")
    return set(re.findall(r'^process_start_time_seconds\{worker="(\d+)"\}', text.decode(), re.MULTILINE))


def test_two_workers_share_a_port_and_their_figures(start) -> None:
    server = start(workers=2)
    assert len(server.worker_ids) == 2
    dataset_id = create_dataset(server, "shared")
    ingest(server, dataset_id, {"one.txt": b"The miller grinds barley."})
    for _ in range(20):  # a connection each: whichever worker answers
        assert retrieve(server, [dataset_id], "barley")["total"] == 1
    assert answering(server) == {"0", "1"}
    _, text = server.get("/metrics")
    pattern = r'^millrace_requests_total\{worker="(\d)",.*route="/api/v1/retrieval".*\} (\d+)'
    served = re.findall(pattern, text.decode(), re.MULTILINE)
    assert sum(int(float(count)) for _, count in served) == 20
    assert {worker for worker, _ in served} == {"0", "1"}
    assert server.stop() == 0
    assert not any("a worker did not end" in line for line in server.logs.splitlines())


def test_a_killed_worker_is_replaced_while_the_other_answers(start) -> None:
    server = start(workers=2)
    victim = server.worker_ids[0]
    os.kill(victim, signal.SIGKILL)
    failures = sum(server.get("/healthz")[0] != 200 for _ in range(50))
    assert failures <= 2, "only what the killed one had taken is lost"
    wait_until(lambda: len(server.worker_ids) == 2 and answering(server) == {"0", "1"}, "the worker is not back")
    assert victim not in server.worker_ids
    assert server.stop() == 0


def test_a_stopping_server_cuts_no_request(start) -> None:
    server = start(workers=2, environ={"MILLRACE_DRAIN_SECONDS": "10"})
    statuses: list[int] = []
    stopped = threading.Event()

    def call() -> None:
        while not stopped.is_set():
            try:
                statuses.append(requests.get(f"{server.url}/healthz", timeout=30).status_code)
            except requests.ConnectionError as error:
                # nobody listens any more: that is the end, not a cut
                if "refused" not in str(error):
                    statuses.append(0)
                return

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    wait_until(lambda: len(statuses) > 50, "no answers")
    assert server.stop() == 0
    stopped.set()
    for caller in callers:
        caller.join()
    assert set(statuses) == {200}


def test_workers_stop_when_their_parent_is_killed(start) -> None:
    server = start(workers=2, environ={"MILLRACE_DRAIN_SECONDS": "1"})
    workers = server.worker_ids
    server.process.kill()
    wait_until(lambda: not any(is_alive(worker) for worker in workers), "a worker outlives its parent")


def test_a_server_whose_parent_was_killed_can_be_started_again_at_once(start) -> None:
    server = start(workers=2)
    server.process.kill()
    server.process.wait()
    port = server.url.rpartition(":")[2]
    again = start(workers=2, environ={"MILLRACE_PORT": port})
    assert again.url == server.url
    assert again.get("/healthz")[0] == 200


def test_a_start_that_fails_ends_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    environ = os.environ | {"MILLRACE_DATA_DIR": str(tmp_path / "data"), "MILLRACE_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "api", "serve", "--workers", "2"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "cannot write to the data directory" in done.stderr
    assert "serves on" not in done.stdout


def test_a_taken_port_is_refused_although_workers_share_theirs(start, tmp_path: Path) -> None:
    server = start(workers=2)
    environ = os.environ | {"MILLRACE_DATA_DIR": str(tmp_path / "data"), "MILLRACE_PORT": server.url.rpartition(":")[2]}
    done = subprocess.run(
        [sys.executable, "-m", "api", "serve", "--workers", "2"], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "cannot listen on" in done.stderr
