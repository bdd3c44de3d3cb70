"""db/services/lease_service.py with workers in several processes, on hosts whose clocks differ."""

import time
from collections import Counter
from urllib.parse import quote

import pytest

from db.address import Address
from db.models import Task, new_id
from db.services import lease_service
from db.session import Session
from rag.threads import Lane
from tests.db.programs import let_go_together

SERVERS = ["postgresql", "mysql"]  # who share a file share a clock, and write one after another
PROCESSES, TENANTS, TASKS = 3, 5, 20

CLAIMING = """
import sys
from pathlib import Path
from db.address import address_of
from db.services import lease_service
from db.session import Session
from rag.threads import Lane
url, path, name = sys.argv[1:]
session = Session(address_of(url, Path(path)), Lane("db", 1, 1))
print("ready", flush=True)
sys.stdin.readline()
last = ""
while (task := session.write_now(lease_service.claim, name, 60.0, last)) is not None:
    last = task.tenant_id
    print(task.tenant_id, task.id, flush=True)
session.close()
"""


def add_tasks(tenants: int, tasks: int) -> None:
    for _ in range(tasks):
        for tenant in range(tenants):
            Task.create(kind="purge", tenant_id=f"{tenant:032x}", dataset_id=new_id(), document_id=new_id(), due_at=0)


def url_of(address: Address) -> str:
    password = quote(address.password, safe="")
    return "" if address.kind == "sqlite" else f"{address.kind}://{address.user}:{password}@{address.host}:{address.port}/{address.name}"


def test_workers_in_several_processes_share_the_tasks_and_no_task_is_claimed_twice(session: Session, address: Address) -> None:
    session.write_now(add_tasks, TENANTS, TASKS)
    with let_go_together(CLAIMING, [[url_of(address), str(address.path.parent), f"w{number}"] for number in range(PROCESSES)]) as workers:
        claimed = [[line.split() for line in worker.communicate(timeout=60)[0].splitlines()] for worker in workers]
        assert all(worker.returncode == 0 for worker in workers)
    ids = [task for lines in claimed for _, task in lines]
    assert len(ids) == len(set(ids)) == TENANTS * TASKS
    for lines in claimed:
        if len(lines) < 2 * TENANTS:
            continue  # tenants take turns at each worker, as long as they all have tasks
        turns = Counter(tenant for tenant, _ in lines[: len(lines) // 2])
        assert max(turns.values()) - min(turns.values()) <= 2 + len(lines) // 10


@pytest.mark.parametrize("address", SERVERS, indirect=True)
def test_a_lease_holds_for_a_worker_whose_clock_is_an_hour_ahead(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.write_now(add_tasks, 1, 1)
    assert session.write_now(lease_service.claim, "here", 60.0) is not None
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 3_600_000_000_000)
    assert not session.read_now(lease_service.any_due)
    assert session.write_now(lease_service.claim, "there", 60.0) is None


@pytest.mark.parametrize("address", SERVERS, indirect=True)
def test_a_claim_passes_over_what_another_is_claiming(session: Session, lane: Lane) -> None:
    session.write_now(add_tasks, 1, 2)

    def claim_within_a_claim() -> tuple[str, str]:
        first = lease_service.claim("one", 60.0)
        second = lane.submit(session.write_now, lease_service.claim, "two", 60.0).result(10)
        assert first is not None
        assert second is not None
        return first.id, second.id

    first, second = session.write_now(claim_within_a_claim)
    assert first != second
