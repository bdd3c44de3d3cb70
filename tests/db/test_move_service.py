"""The row that holds writes, in every database: who changes it waits for writers, and who writes after it is refused."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from db.address import Address
from db.migrate import STEPS
from db.models import Move, SchemaVersion, Tenant, proxy
from db.services import move_service
from db.session import Session
from rag.errors import WritesHeld
from rag.threads import Lane

PLACES = frozenset(("folder /a", "folder /b"))


class Mover(threading.local):
    """Whether this thread plays the program that moves the data, which nothing guards."""

    at_work = False


mover = Mover()


@pytest.fixture
def guarded(session: Session, address: Address, lane: Lane) -> Iterator[Session]:
    """A server's session, over an empty database that is open."""
    made = Session(address, lane, guard=lambda: None if mover.at_work else move_service.check_writable(PLACES))
    moving(made, "open", "", {}, [])
    yield made
    moving(made, "open", "", {}, [])
    made.close()


def moving(session: Session, *state: Any) -> None:
    """Change the row as the program that moves the data does."""
    mover.at_work = True
    try:
        session.write_now(move_service.put, *state)
    finally:
        mover.at_work = False


def make(name: str) -> None:
    Tenant.create(name=name)


def test_nothing_is_written_while_writes_are_held_and_everything_read(guarded: Session) -> None:
    guarded.write_now(make, "before")
    moving(guarded, "held", "1" * 32, {"kinds": ["postgresql"]})
    with pytest.raises(WritesHeld, match="being moved to postgresql"):
        guarded.write_now(make, "after")
    assert guarded.read_now(lambda: [row.name for row in Tenant.select()]) == ["before"]
    moving(guarded, "moved", "1" * 32)
    with pytest.raises(WritesHeld, match="was moved to postgresql"):
        guarded.write_now(make, "after")
    moving(guarded, "open")
    guarded.write_now(make, "after")


def test_a_place_that_was_left_is_not_written_by_those_who_still_use_it(guarded: Session) -> None:
    moving(guarded, "open", "", {}, ["folder /elsewhere"])
    guarded.write_now(make, "fine")
    moving(guarded, "open", "", {"kinds": ["elasticsearch"]}, ["folder /b"])
    with pytest.raises(WritesHeld, match="was moved to elasticsearch"):
        guarded.write_now(make, "after")


def test_no_acknowledged_write_comes_after_the_hold(guarded: Session) -> None:
    """Writers on threads: whatever was acknowledged is there when holding returns, and nothing comes later."""
    acknowledged: list[str] = []
    refused = threading.Event()

    def write(worker: int) -> None:
        for number in range(10_000):
            try:
                guarded.write_now(make, f"{worker} {number}")
            except WritesHeld:
                refused.set()
                return
            acknowledged.append(f"{worker} {number}")

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 10:
        assert not refused.is_set()
    moving(guarded, "held", "1" * 32, {"kinds": []})
    then = set(guarded.read_now(lambda: [row.name for row in Tenant.select()]))
    for thread in threads:
        thread.join()
    later = set(guarded.read_now(lambda: [row.name for row in Tenant.select()]))
    assert set(acknowledged) <= then == later


def test_holding_does_not_wait_for_ever_where_writers_overlap(guarded: Session) -> None:
    """On a server there is a writer at every moment: who holds waits for those that have begun, not for those that come.

    SQLite has no queue; who waits for its one writer looks ten times a second whether it is between two transactions.
    """
    pause_seconds = 0.05 if guarded.kind == "sqlite" else 0.0
    stop, begun = threading.Event(), threading.Semaphore(0)

    def write(name: str) -> None:
        make(name)
        begun.release()
        stop.wait(random.uniform(0.02, 0.1))

    def keep_writing(worker: int) -> None:
        number = 0
        while not stop.is_set():
            try:
                guarded.write_now(write, f"{worker} {number}")
            except WritesHeld:
                return
            number += 1
            stop.wait(pause_seconds)

    threads = [
        threading.Thread(target=keep_writing, args=(worker,)) for worker in range(1 if guarded.kind == "sqlite" else 16)
    ]  # SQLite's writers are alone
    for thread in threads:
        thread.start()
    try:
        for _ in range(2 * len(threads)):
            begun.acquire()
        moving(guarded, "held", "1" * 32, {"kinds": []})
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_schema_without_the_row_is_brought_up_before_anything_is_guarded(tmp_path: Path, lane: Lane) -> None:
    first = Session(tmp_path / "old.sqlite3", lane)
    first.create_tables()
    first.write_now(lambda: (proxy.obj.drop_tables([Move]), SchemaVersion.delete().where(SchemaVersion.version == 4).execute()))
    first.close()
    second = Session(tmp_path / "old.sqlite3", lane, guard=lambda: move_service.check_writable(PLACES))
    second.create_tables()
    second.write_now(make, "fine")
    assert second.read_now(lambda: SchemaVersion.select().count()) == len(STEPS)
    second.close()
