"""`kill -9` at random moments under load: nothing acknowledged is lost, nothing is there twice, nothing is left over.

A driver uploads, parses and deletes over HTTP and writes down what was acknowledged. The server is killed and started again on
the same data directory, round after round. In the end every acknowledged document is checked by id, by word and by vector.
MILLRACE_TEST_KILL_ROUNDS sets the rounds (10; `make soak`: 100).
"""

import os
import random
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.acknowledged import Acknowledged, Driver, check
from tests.e2e.flows import create_dataset
from tests.e2e.server_process import ServerProcess

ROUNDS = int(os.environ.get("MILLRACE_TEST_KILL_ROUNDS", "10"))
DRIVERS = 3
DOCUMENTS_A_ROUND = 8
LIFE_SECONDS = (0.2, 2.5)
# a short lease, so that what a killed worker held is taken up soon
ENVIRON = {"MILLRACE_LEASE_SECONDS": "2"}


@pytest.mark.soak
@pytest.mark.slow
def test_a_killed_server_loses_nothing_it_acknowledged(start, tmp_path: Path) -> None:
    chance = random.Random(ROUNDS)
    acknowledged = Acknowledged()
    server = start(environ=ENVIRON)
    dataset_id = create_dataset(server, "killed", parser_config={"chunk_token_num": 48})
    for number in range(ROUNDS):
        killed, numbers = threading.Event(), range(DOCUMENTS_A_ROUND // DRIVERS + 1)
        drivers = [Driver(server, dataset_id, acknowledged, f"{number}d{driver}", killed, numbers) for driver in range(DRIVERS)]
        for driver in drivers:
            driver.start()
        time.sleep(chance.uniform(*LIFE_SECONDS))  # the moment of the kill is what is tested
        server.kill()
        killed.set()
        for driver in drivers:
            driver.join(timeout=60)
            assert not driver.is_alive()
        assert [driver.failure for driver in drivers] == [None] * DRIVERS
        server = start(environ=ENVIRON)

    check(server, dataset_id, acknowledged)
    server.stop()
    make_pledges_due(server.data_dir)
    server = start(environ=ENVIRON)
    wait_until_no_task_is_left(server)
    check(server, dataset_id, acknowledged)
    server.stop()
    assert_nothing_is_left_over(server.data_dir)


def make_pledges_due(data_dir: Path) -> None:
    """Let the minute pass after which a worker removes what an interrupted upload left."""
    with closing(sqlite3.connect(data_dir / "millrace.sqlite3")) as connection, connection:
        connection.execute("UPDATE task SET due_at = 0 WHERE kind = 'purge'")


def wait_until_no_task_is_left(server: ServerProcess) -> None:
    deadline = time.monotonic() + 60
    while True:
        with closing(sqlite3.connect(server.data_dir / "millrace.sqlite3")) as connection:
            tasks = connection.execute("SELECT kind, document_id, attempt FROM task").fetchall()
        if not tasks:
            return
        assert time.monotonic() < deadline, tasks
        time.sleep(0.1)


def assert_nothing_is_left_over(data_dir: Path) -> None:
    """Chunks and files of documents that exist, and no others; the server is stopped."""
    with closing(sqlite3.connect(data_dir / "millrace.sqlite3")) as connection:
        ids = {row[0] for row in connection.execute("SELECT id FROM document")}
    stored = set()
    for path in (data_dir / "chunks").glob("*/chunks.sqlite3"):
        with closing(sqlite3.connect(path)) as connection:
            stored |= {row[0] for row in connection.execute("SELECT DISTINCT d.id FROM chunks c JOIN documents d ON d.number = c.document")}
    assert stored == ids
    files = {path.name for path in (data_dir / "blobs").rglob("*") if path.is_file()}
    assert files == ids
