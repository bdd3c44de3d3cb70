"""`kill -9` of processes of a whole topology under load: nothing acknowledged is lost, nothing is there twice, nothing is left over.

Callers upload, parse and delete through nginx without a pause and write down what was acknowledged. Round after round one of seven
processes dies at a random moment: a worker of either server, a server with all its workers, or the host that only ingests. In the end
every acknowledged document is checked by id, by word and by vector, and database, index and bucket hold the same documents. The whole
time through no task keeps a lease that has run out while there is a worker that could take it.
MILLRACE_TEST_KILL_ROUNDS sets the rounds (10; 100 in CI and by `make soak`).
"""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import psycopg
import pytest

from rag.ingest.worker import POLL_SECONDS
from tests.e2e.acknowledged import Acknowledged, Driver, check
from tests.e2e.flows import create_dataset, documents
from tests.e2e.server_process import ServerProcess
from tests.e2e.topology import Topology, require_services, topology
from tests.services.s3 import BUCKET

ROUNDS = int(os.environ.get("MILLRACE_TEST_KILL_ROUNDS", "100" if os.environ.get("CI") else "10"))
DRIVERS = 3
PAUSE_SECONDS = (0.1, 1.5)
BETWEEN_DOCUMENTS_SECONDS = 0.3
LEASE_SECONDS = 2
# behind the end of a lease: the next worker that has a place and looks takes the task, on a machine that starts processes all the time
STUCK_SECONDS = POLL_SECONDS + 20
LOOK_SECONDS = 0.2
ENVIRON = {"MILLRACE_LEASE_SECONDS": str(LEASE_SECONDS), "MILLRACE_INGEST_WORKERS": "4", "MILLRACE_PARSER_PROCESSES": "1"}
# what a caller may see while a server dies under its request; every other failure is one too many
CUT = (502, 503, 504)


class Watch(threading.Thread):
    """Looks at the queue, from its start to `end`: for how long at most a claimed task lay there whose lease had run out.

    Only time with a worker counts: while one holds a lease that has not run out, and always after `calm`, when nobody is killed any more.
    """

    def __init__(self, database_url: str) -> None:
        super().__init__(daemon=True)
        self.database_url = database_url
        self.longest_seconds = 0.0
        self.expired = 0
        self._calm, self._over = threading.Event(), threading.Event()

    def run(self) -> None:
        query = (
            "SELECT id, attempt, lease_until > now, GREATEST(lease_until, due_at) <= now FROM task, "
            "(SELECT EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS now) AS clock WHERE owner IS NOT NULL"
        )
        lain: dict[tuple[str, int], float] = {}
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            looked = time.monotonic()
            while not self._over.wait(LOOK_SECONDS):
                rows = connection.execute(query).fetchall()
                since, looked = looked, time.monotonic()
                counted = looked - since if self._calm.is_set() or any(held for _, _, held, _ in rows) else 0.0
                before, expired = lain, [(task, attempt) for task, attempt, _, expired in rows if expired]
                lain = {lease: before[lease] + counted if lease in before else 0.0 for lease in expired}
                self.expired += len(lain.keys() - before.keys())
                self.longest_seconds = max(self.longest_seconds, *lain.values(), 0.0)

    def calm(self) -> None:
        """From now on there are workers to take what others have lost."""
        self._calm.set()

    def end(self) -> None:
        """Look no more; what was seen was seen to the end."""
        assert self.is_alive()
        self._over.set()
        self.join(timeout=30)


@pytest.fixture
def grown(tmp_path: Path) -> Iterator[Topology]:
    require_services()
    with topology(tmp_path, ENVIRON) as running:
        yield running


@pytest.mark.soak
@pytest.mark.slow
def test_a_killed_process_of_many_loses_nothing_that_was_acknowledged(grown: Topology) -> None:
    chance = random.Random(ROUNDS)
    acknowledged = Acknowledged()
    caller = grown.tenant("killed")
    dataset_id = create_dataset(caller, "killed", parser_config={"chunk_token_num": 48})
    worker = grown.start_worker()
    stop, watch = threading.Event(), Watch(grown.database_url)
    watch.start()
    drivers = [
        Driver(
            caller, dataset_id, acknowledged, f"{number}", stop, count(), pause_seconds=BETWEEN_DOCUMENTS_SECONDS, cut=CUT
        )
        for number in range(DRIVERS)
    ]  # fmt: skip
    for driver in drivers:
        driver.start()
    try:
        for _ in range(ROUNDS):
            time.sleep(chance.uniform(*PAUSE_SECONDS))  # the moment of the kill is what is tested
            worker = kill_one(grown, worker, chance)
    finally:
        stop.set()
        for driver in drivers:
            driver.join(timeout=120)
    assert [driver.failure for driver in drivers] == [None] * DRIVERS
    assert len(acknowledged.parsing) >= ROUNDS // 2, "the callers had hardly anything acknowledged"
    for server in grown.servers:
        server.wait_until_ready()
    watch.calm()
    check(caller, dataset_id, acknowledged)
    make_pledges_due(grown.database_url)
    wait_until_no_task_is_left(grown.database_url)
    check(caller, dataset_id, acknowledged)
    assert_the_same_documents_everywhere(grown, set(documents(caller, dataset_id)))
    watch.end()
    print(f"{ROUNDS} kills, {len(acknowledged.words)} documents, {watch.expired} leases lost, {watch.longest_seconds:.1f} s behind at most")
    assert watch.longest_seconds < STUCK_SECONDS


def kill_one(grown: Topology, worker: ServerProcess, chance: random.Random) -> ServerProcess:
    """Kill a process of the topology's; what has no parent to start it again is started by us. The host that only ingests."""
    victim = chance.choice(("member", "member", "member", "server", "worker"))
    if victim == "worker":
        worker.kill()
        return grown.start_worker()
    number = chance.randrange(len(grown.servers))
    if victim == "server":
        grown.servers[number].kill()
        # others go on meanwhile; without a wait two could be down, and then callers see that for a while
        grown.start_server(number)
        return worker
    members = grown.servers[number].worker_ids
    if members:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(members), signal.SIGKILL)
    return worker


def make_pledges_due(database_url: str) -> None:
    """Let the minute pass after which a worker removes what an interrupted upload left."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE task SET due_at = 0 WHERE kind = 'purge'")


def wait_until_no_task_is_left(database_url: str) -> None:
    deadline = time.monotonic() + 120
    with psycopg.connect(database_url, autocommit=True) as connection:
        while tasks := connection.execute("SELECT kind, document_id, attempt, due_at, lease_until FROM task").fetchall():
            assert time.monotonic() < deadline, tasks
            time.sleep(0.1)


def assert_the_same_documents_everywhere(grown: Topology, listed: set[str]) -> None:
    """Chunks and files of documents that exist, and no others."""
    with psycopg.connect(grown.database_url) as connection:
        rows = {row[0] for row in connection.execute("SELECT id FROM document")}
    assert rows == listed
    grown.node.ask("POST", "/millrace-*/_refresh")
    terms = {"size": 0, "aggs": {"documents": {"terms": {"field": "document", "size": 100_000}}}}
    found = grown.node.ask("POST", "/millrace-*/_search", terms)
    assert {bucket["key"] for bucket in found["aggregations"]["documents"]["buckets"]} == listed
    # a document's id, and not that of a readiness check that was killed
    files = {path.name for path in (grown.bucket.folder / BUCKET).rglob("*") if path.is_file() and "probe" not in path.parts}
    parts = {path.name for path in grown.bucket.parts}
    assert files - parts == listed
