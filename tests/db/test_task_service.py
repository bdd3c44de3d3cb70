"""db/services/task_service.py: leases, parse runs and the outbox of purges."""

import asyncio
from typing import Any

import pytest

from db.models import Dataset, Document, Task, new_id, now_ms
from db.services import dataset_service, document_service, lease_service, state_service, task_service
from db.services.document_service import Upload
from db.services.lease_service import ATTEMPTS, FAILURES
from db.services.task_service import Drop, Purge
from db.session import Session
from rag.errors import Unavailable
from rag.types import IngestTask

TENANT = "1" * 32
LEASE = 60.0


def make_dataset(session: Session, tenant: str = TENANT) -> str:
    values = {"name": "facts", "embedding_model": "m@P", "parser_config": {"chunk_token_num": 9}}
    return session.write_now(dataset_service.create, tenant, values).id


def make_document(session: Session, dataset: str, tenant: str = TENANT) -> str:
    pledge = Purge(new_id(), tenant, dataset, new_id(), "key", again=False)
    session.write_now(task_service.pledge, pledge)
    upload = Upload(pledge, "a.txt", "", 5, "doc", "txt", "hash", "naive", None, {"chunk_token_num": 9})
    (record,) = session.write_now(document_service.add, tenant, dataset, [upload]) or []
    return record.id


def start(session: Session, *documents: str) -> None:
    session.write_now(task_service.dropped, session.write_now(task_service.start, documents))


def stop(session: Session, *documents: str) -> None:
    session.write_now(task_service.dropped, session.write_now(task_service.stop, documents))


def claim(session: Session, worker: str = "w", after: str = "") -> IngestTask:
    task = session.write_now(lease_service.claim, worker, LEASE, after)
    assert task is not None
    return task


def document(session: Session, document_id: str) -> Any:
    return session.read_now(document_service.get, TENANT, document_id)


def expire(session: Session) -> None:
    """Let every lease and every delay run out."""
    session.write_now(lambda: Task.update(lease_until=1, due_at=0).execute())


@pytest.fixture
def running(session: Session) -> tuple[str, str]:
    dataset = make_dataset(session)
    document_id = make_document(session, dataset)
    start(session, document_id)
    return dataset, document_id


# ---------------------------------------------------------------------------------------------------- leases
def test_a_claimed_task_carries_what_a_worker_needs(session: Session, running: tuple[str, str]) -> None:
    dataset, document_id = running
    task = claim(session)
    assert task == IngestTask(
        task.id, "parse", TENANT, dataset, document_id, document_name="a.txt", blob_key="key", size=5, chunk_method="naive",
        parser_config={"chunk_token_num": 9}, embedding_model="m@P", version=1, attempt=1, available=True,
    )  # fmt: skip
    assert session.write_now(lease_service.claim, "other", LEASE) is None
    assert not session.read_now(lease_service.any_due)


def test_a_silent_workers_task_is_taken_over_and_it_is_told(session: Session, running: tuple[str, str]) -> None:
    lost = claim(session, "first")
    expire(session)
    taken = claim(session, "second")
    assert (taken.id, taken.version, taken.attempt) == (lost.id, 1, 2)
    assert not session.write_now(lease_service.renew, lost, "first", LEASE)
    assert not session.write_now(lease_service.report, lost, "first", 0.5, "x")
    assert not session.write_now(lease_service.finish, lost, "first", chunk_count=1, token_count=1, message="Task done")
    assert not session.write_now(lease_service.fail, lost, "first", "x", retry=True)
    assert not session.write_now(lease_service.give_back, lost, "first")
    assert session.write_now(lease_service.renew, taken, "second", LEASE)


def test_a_worker_of_the_same_name_does_not_inherit_a_lease(session: Session, running: tuple[str, str]) -> None:
    lost = claim(session, "same")
    expire(session)
    claim(session, "same")
    assert not session.write_now(lease_service.renew, lost, "same", LEASE)


def test_finishing_counts_in_document_and_dataset(session: Session, running: tuple[str, str]) -> None:
    dataset, document_id = running
    session.write_now(state_service.add_counts, document_id, 1, 10)  # a chunk added by hand meanwhile
    task = claim(session)
    assert session.write_now(lease_service.finish, task, "w", chunk_count=4, token_count=40, message="a warning\nTask done (1.0 s)")
    after = document(session, document_id)
    assert (after.run, after.progress, after.chunk_count, after.token_count) == ("DONE", 1.0, 5, 50)
    assert after.progress_msg.splitlines() == ["a warning", "Task done (1.0 s)"]
    record = session.read_now(dataset_service.get, TENANT, dataset)
    assert record is not None
    assert (record.chunk_count, record.token_num) == (5, 50)


def test_reported_progress_stays_within_its_bounds(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    task = claim(session)
    for given, shown in ((-1.0, 0.0), (0.5, 0.5), (2.0, 0.999)):
        session.write_now(lease_service.report, task, "w", given, "")
        assert document(session, document_id).progress == shown
    for number in range(100):
        session.write_now(lease_service.report, task, "w", 0.5, f"line {number}")
    lines = document(session, document_id).progress_msg.splitlines()
    assert (len(lines), lines[-1]) == (40, "line 99")


def test_a_line_of_progress_takes_the_place_of_the_last_of_its_kind(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    task = claim(session)
    for line in ("parsing page 1 of 2", "parsing page 2 of 2", "found 9 chunks", "embedded 3 of 9 chunks", "", "embedded 6 of 9 chunks"):
        session.write_now(lease_service.report, task, "w", 0.5, line)
    assert document(session, document_id).progress_msg.splitlines() == ["parsing page 2 of 2", "found 9 chunks", "embedded 6 of 9 chunks"]


def test_a_run_that_is_taken_over_begins_its_lines_anew_and_keeps_why_it_failed(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    task = claim(session)
    session.write_now(lease_service.report, task, "w", 0.5, "found 9 chunks")
    session.write_now(lease_service.fail, task, "w", "the model is busy", retry=True)
    expire(session)
    session.write_now(lease_service.report, claim(session), "w", 0.5, "found 9 chunks")
    assert document(session, document_id).progress_msg.splitlines() == ["the model is busy", "found 9 chunks"]
    expire(session)  # its worker was killed
    claim(session)
    assert document(session, document_id).progress_msg == "the model is busy"


def test_a_failure_is_tried_again_later_each_time_and_then_ends(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    delays = []
    for _ in range(FAILURES - 1):
        task = claim(session)
        assert session.write_now(lease_service.fail, task, "w", "the model is busy", retry=True)
        assert document(session, document_id).run == "RUNNING"
        assert session.write_now(lease_service.claim, "w", LEASE) is None
        delays.append(session.read_now(lambda: Task.select().get().due_at) - now_ms())
        expire(session)
    assert delays == sorted(delays)
    assert delays[0] > 0
    assert session.write_now(lease_service.fail, claim(session), "w", "the model is busy", retry=True)
    after = document(session, document_id)
    assert (after.run, after.progress) == ("FAIL", -1.0)
    assert after.progress_msg.endswith("the model is busy")
    assert session.read_now(lambda: Task.select().count()) == 0


def test_a_failure_that_does_not_count_is_tried_again_for_as_long_as_it_takes(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    delays = []
    for _ in range(2 * FAILURES):
        assert session.write_now(lease_service.fail, claim(session), "w", "the store is down", retry=True, counts=False)
        assert document(session, document_id).run == "RUNNING"
        delays.append(session.read_now(lambda: Task.select().get().due_at) - now_ms())
        expire(session)
    assert delays[0] < 2_000
    assert delays == sorted(delays, key=lambda delay: round(delay, -3))
    assert delays[-1] <= 60_000
    for _ in range(FAILURES):  # those that count are all still there
        assert document(session, document_id).run == "RUNNING"
        assert session.write_now(lease_service.fail, claim(session), "w", "the model is busy", retry=True)
        expire(session)
    assert document(session, document_id).run == "FAIL"


def test_a_failure_that_will_not_mend_ends_at_once(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    assert session.write_now(lease_service.fail, claim(session), "w", "the file is encrypted", retry=False)
    assert document(session, document_id).run == "FAIL"


def test_a_task_that_loses_its_workers_keeps_its_distance_and_is_never_given_up(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    for _ in range(ATTEMPTS + 1):
        task = claim(session)
        session.write_now(lambda: Task.update(lease_until=0).execute())  # the worker is gone
    assert task.attempt == ATTEMPTS + 1
    assert session.write_now(lease_service.claim, "w", LEASE) is None
    expire(session)
    assert claim(session).attempt == ATTEMPTS + 2
    assert document(session, document_id).run == "RUNNING"


def test_a_task_given_back_is_due_at_once_and_uses_no_attempt_up(session: Session, running: tuple[str, str]) -> None:
    for _ in range(ATTEMPTS + 5):
        assert session.write_now(lease_service.give_back, claim(session), "w")
    assert claim(session).attempt == 1


def test_a_stop_after_a_task_was_given_back_leaves_a_sweep_for_late_writes(session: Session, running: tuple[str, str]) -> None:
    session.write_now(lease_service.give_back, claim(session), "w")
    stop(session, running[1])
    assert [row.kind for row in session.read_now(lambda: list(Task.select()))] == ["sweep"]


def test_a_deletion_after_a_task_was_given_back_is_done_again_for_late_writes(session: Session, running: tuple[str, str]) -> None:
    dataset, document_id = running
    session.write_now(lease_service.give_back, claim(session), "w")
    session.write_now(lambda: Document.update(update_time=1).execute())  # nothing was told for long
    (purge,) = session.write_now(document_service.delete, TENANT, dataset, [document_id])
    assert purge.again


def test_tenants_take_turns(session: Session) -> None:
    for tenant, number in (("a" * 32, 3), ("b" * 32, 1), ("c" * 32, 2)):
        dataset = make_dataset(session, tenant)
        start(session, *(make_document(session, dataset, tenant) for _ in range(number)))
    served, last = [], ""
    while (task := session.write_now(lease_service.claim, "w", LEASE, last)) is not None:
        last = task.tenant_id
        served.append(last[0])
    assert "".join(served) == "abcaca"


async def test_parallel_claims_never_share_a_task(session: Session) -> None:
    dataset = make_dataset(session)
    documents = [make_document(session, dataset) for _ in range(20)]
    start(session, *documents)
    tasks = await asyncio.gather(*(session.write(lease_service.claim, f"w{number}", LEASE) for number in range(30)))
    claimed = [task.document_id for task in tasks if task is not None]
    assert sorted(claimed) == sorted(documents)


# ---------------------------------------------------------------------------------------------------- start, stop
def test_starting_again_supersedes_the_run_under_way(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    old = claim(session)
    start(session, document_id)
    assert not session.write_now(lease_service.finish, old, "w", chunk_count=1, token_count=1, message="Task done")
    assert claim(session).version == 2
    assert document(session, document_id).chunk_count == 0


def test_a_run_waits_until_the_chunks_of_before_are_dropped(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    drops = session.write_now(task_service.start, [document_id])
    assert drops == [Drop(document_id, 2)]
    assert document(session, document_id).run == "RUNNING"
    assert session.write_now(lease_service.claim, "w", LEASE) is None
    session.write_now(task_service.dropped, drops)
    assert (claim(session).kind, document(session, document_id).version) == ("parse", 2)


def test_a_first_run_has_no_chunks_to_wait_for_unless_some_were_added_by_hand(session: Session) -> None:
    document_id = make_document(session, make_dataset(session))
    assert session.write_now(task_service.start, [document_id]) == []
    assert session.write_now(task_service.start, [document_id]) == [Drop(document_id, 2)]
    other = make_document(session, make_dataset(session))
    session.write_now(state_service.add_counts, other, 1, 10)
    assert session.write_now(task_service.start, [other]) == [Drop(other, 1)]


def test_a_first_run_waits_for_the_drop_of_a_reset_that_was_not_done(session: Session) -> None:
    document_id = make_document(session, make_dataset(session))
    session.write_now(state_service.add_counts, document_id, 1, 10)
    session.write_now(document_service.reset, document_id, {"chunk_method": "qa"})
    assert session.write_now(task_service.start, [document_id]) == [Drop(document_id, 2)]


def test_a_drop_that_nobody_did_is_a_workers_until_it_is_done_and_then_the_run_begins(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    slow = session.write_now(task_service.start, [document_id])
    for _ in range(ATTEMPTS + FAILURES):
        expire(session)
        task = claim(session)
        assert (task.kind, task.version) == ("drop", 2)
        session.write_now(task_service.dropped, slow)  # the server that came first, late: the worker has it now
        assert session.write_now(lease_service.fail, task, "w", "the store is down", retry=False)
    assert document(session, document_id).progress_msg.splitlines()[-1] == "the store is down"
    expire(session)
    assert session.write_now(lease_service.finish, claim(session), "w", chunk_count=0, token_count=0, message="")
    parse = claim(session)
    assert (parse.kind, parse.version, parse.attempt, parse.blob_key) == ("parse", 2, 1, "key")
    session.write_now(task_service.dropped, slow)
    assert session.write_now(lease_service.renew, parse, "w", LEASE)


def test_what_is_removed_by_hand_before_the_old_chunks_are_dropped_does_not_count(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    drops = session.write_now(task_service.start, [document_id])
    session.write_now(state_service.add_counts, document_id, -1, -10)
    session.write_now(task_service.dropped, drops)
    session.write_now(lease_service.finish, claim(session), "w", chunk_count=4, token_count=40, message="Task done")
    assert (document(session, document_id).chunk_count, document(session, document_id).token_count) == (4, 40)


def test_a_slow_drop_does_not_disturb_a_later_start(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    slow = session.write_now(task_service.start, [document_id])
    later = session.write_now(task_service.start, [document_id])
    session.write_now(task_service.dropped, slow)
    assert session.write_now(lease_service.claim, "w", LEASE) is None
    session.write_now(task_service.dropped, later)
    assert claim(session).version == 3


def test_the_slow_drop_of_a_stop_does_not_end_that_of_a_later_start(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    slow = session.write_now(task_service.stop, [document_id])
    later = session.write_now(task_service.start, [document_id])
    session.write_now(task_service.dropped, slow)
    assert session.write_now(lease_service.claim, "w", LEASE) is None
    session.write_now(task_service.dropped, later)
    assert (claim(session).kind, document(session, document_id).version) == ("parse", later[0].version)


def test_a_run_that_begins_anew_still_waits_for_the_drop(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    slow = session.write_now(task_service.start, [document_id])
    session.write_now(document_service.update, document_id, {"enabled": False}, restart=True)
    session.write_now(task_service.dropped, slow)
    task = claim(session)
    assert (task.kind, task.version) == ("drop", 3)


def test_a_stopped_document_gives_no_task_and_is_not_released(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    drops = session.write_now(task_service.start, [document_id])
    stop(session, document_id)
    session.write_now(task_service.dropped, drops)
    assert session.read_now(lambda: Task.select().count()) == 0
    assert (document(session, document_id).run, document(session, document_id).progress_msg) == ("CANCEL", "Task stopped by user.")


def test_stopping_a_claimed_run_leaves_a_sweep_of_its_version_for_after_its_lease(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    for version in (1, 3):
        claimed = claim(session)
        stop(session, document_id)
        (row,) = session.read_now(lambda: list(Task.select()))
        assert (row.kind, row.version, claimed.version) == ("sweep", version, version)
        assert row.due_at > now_ms() + LEASE * 1000
        start(session, document_id)
    expire(session)
    kinds = {task.kind: task for task in (claim(session), claim(session))}
    assert (kinds["sweep"].version, kinds["parse"].version) == (3, 5)
    assert session.write_now(lease_service.fail, kinds["sweep"], "w", "the store is down", retry=False)  # never given up
    assert session.write_now(lease_service.finish, kinds["parse"], "w", chunk_count=1, token_count=1, message="Task done")
    assert [row.kind for row in session.read_now(lambda: list(Task.select()))] == ["sweep"]


@pytest.mark.parametrize("again", ["restarted", "started", "started, and being dropped"])
def test_a_run_that_was_begun_anew_is_swept_after_its_lease_also_if_it_is_stopped_at_once(
    session: Session, running: tuple[str, str], again: str
) -> None:
    """Its worker may be killed before it learns that it has lost the task, and before it removes what it wrote."""
    _, document_id = running
    lost = claim(session)
    if again == "restarted":
        session.write_now(document_service.update, document_id, {"enabled": False}, restart=True)
    elif again == "started":
        start(session, document_id)
    else:
        session.write_now(task_service.start, [document_id])
    (row,) = session.read_now(lambda: [row for row in Task.select() if row.kind == "sweep"])
    stop(session, document_id)
    assert session.read_now(lambda: [(row.id, row.version) for row in Task.select()]) == [(row.id, lost.version)]
    assert row.due_at > now_ms() + LEASE * 1000


def test_a_second_sweep_waits_for_the_worker_of_the_first(session: Session, running: tuple[str, str]) -> None:
    _, document_id = running
    claim(session)
    start(session, document_id)
    (first,) = session.read_now(lambda: [row.due_at for row in Task.select() if row.kind == "sweep"])
    second = claim(session)
    session.write_now(lease_service.give_back, second, "w")  # its lease ends before that of the first
    stop(session, document_id)
    (row,) = session.read_now(lambda: list(Task.select()))
    assert (row.kind, row.version, row.due_at) == ("sweep", second.version, first)


def test_deleting_a_document_purges_after_its_workers_lease_though_an_earlier_run_is_yet_to_be_swept(
    session: Session, running: tuple[str, str]
) -> None:
    dataset, document_id = running
    session.write_now(lease_service.give_back, claim(session), "w")
    start(session, document_id)
    claim(session)
    session.write_now(document_service.delete, TENANT, dataset, None)
    (row,) = session.read_now(lambda: list(Task.select()))
    assert row.due_at > now_ms() + LEASE * 1000


def test_deleting_a_stopped_document_purges_after_the_stopped_workers_lease(session: Session, running: tuple[str, str]) -> None:
    dataset, document_id = running
    claim(session)
    stop(session, document_id)
    session.write_now(lambda: Document.update(update_time=0).execute())
    (purge,) = session.write_now(document_service.delete, TENANT, dataset, None)
    (row,) = session.read_now(lambda: list(Task.select()))
    assert (purge.again, row.kind) == (True, "purge")
    assert row.due_at > now_ms() + LEASE * 1000


def test_what_is_deleted_during_a_run_is_subtracted_from_what_the_run_made(session: Session, running: tuple[str, str]) -> None:
    dataset, document_id = running
    task = claim(session)
    session.write_now(state_service.add_counts, document_id, -1, -10)
    session.write_now(lease_service.finish, task, "w", chunk_count=4, token_count=40, message="Task done")
    assert document(session, document_id).token_count == 30
    record = session.read_now(dataset_service.get, TENANT, dataset)
    assert record is not None
    assert record.token_num == 30


def test_a_document_that_is_gone_is_not_counted(session: Session, running: tuple[str, str]) -> None:
    dataset, document_id = running
    session.write_now(document_service.delete, TENANT, dataset, None)
    assert not session.write_now(state_service.add_counts, document_id, 1, 10)
    session.write_now(state_service.recount, document_id, 1)
    record = session.read_now(dataset_service.get, TENANT, dataset)
    assert record is not None
    assert (record.chunk_count, record.token_num) == (0, 0)


def test_counters_never_fall_below_zero(session: Session) -> None:
    document_id = make_document(session, make_dataset(session))
    session.write_now(state_service.add_counts, document_id, -5, -5)
    assert (document(session, document_id).chunk_count, document(session, document_id).token_count) == (0, 0)


# ---------------------------------------------------------------------------------------------------- renames
def test_a_rename_leaves_a_task_until_the_last_one_is_done(session: Session) -> None:
    dataset = make_dataset(session)
    document_id = make_document(session, dataset)

    def rename(name: str) -> str:
        session.write_now(document_service.update, document_id, {"name": name}, restart=True)
        record, task = session.read_now(document_service.to_rename, document_id)
        assert record is not None
        assert record.name == name
        return task

    first, second = rename("b.txt"), rename("c.txt")
    session.write_now(task_service.renamed, first)
    assert session.read_now(document_service.to_rename, document_id)[1] == second
    assert session.write_now(lease_service.claim, "w", LEASE) is None  # the server that renamed it comes first
    expire(session)
    task = claim(session)
    assert (task.kind, task.id, task.document_id) == ("rename", second, document_id)
    session.write_now(task_service.renamed, second)
    assert session.write_now(lease_service.finish, task, "w", chunk_count=0, token_count=0, message="")
    session.write_now(task_service.renamed, rename("d.txt"))
    rename("e.txt")
    session.write_now(document_service.delete, TENANT, dataset, None)
    assert session.read_now(document_service.to_rename, document_id) == (None, "")


# ---------------------------------------------------------------------------------------------------- purges
def test_deleting_leaves_a_purge_that_is_done_by_a_worker_unless_taken_back(session: Session, running: tuple[str, str]) -> None:
    dataset, document_id = running
    quiet = make_document(session, dataset)
    session.write_now(lambda: Document.update(update_time=0).execute())
    purges = session.write_now(document_service.delete, TENANT, dataset, None)
    assert {purge.document_id: purge.again for purge in purges} == {document_id: False, quiet: False}
    assert session.read_now(lambda: Document.select().count()) == 0
    assert session.write_now(lease_service.claim, "w", LEASE) is None  # whoever deleted comes first
    expire(session)
    task = claim(session)
    assert (task.kind, task.blob_key) == ("purge", "key")
    assert session.write_now(lease_service.finish, task, "w", chunk_count=0, token_count=0, message="")
    session.write_now(task_service.purged, purges)
    assert session.read_now(lambda: Task.select().count()) == 0


def test_a_purge_stays_while_a_worker_may_still_write(session: Session, running: tuple[str, str]) -> None:
    dataset, _ = running
    claim(session)
    session.write_now(lambda: Document.update(update_time=0).execute())
    purges = session.write_now(document_service.delete, TENANT, dataset, None)
    session.write_now(task_service.purged, purges)
    rows = session.read_now(lambda: [(row.kind, row.due_at) for row in Task.select()])
    assert [kind for kind, _ in rows] == ["purge"]
    assert rows[0][1] > now_ms() + LEASE * 1000


def test_a_purge_stays_for_a_worker_that_was_stopped_a_moment_ago(session: Session, running: tuple[str, str]) -> None:
    dataset, document_id = running
    claim(session)
    session.write_now(task_service.stop, [document_id])
    assert [purge.again for purge in session.write_now(document_service.delete, TENANT, dataset, None)] == [True]


def test_a_purge_is_never_given_up(session: Session) -> None:
    dataset = make_dataset(session)
    make_document(session, dataset)
    session.write_now(document_service.delete, TENANT, dataset, None)
    for _ in range(ATTEMPTS + FAILURES):
        expire(session)
        assert session.write_now(lease_service.fail, claim(session), "w", "the store is down", retry=False)
    expire(session)
    assert claim(session).kind == "purge"


def test_an_upload_redeems_its_pledge_or_is_too_late(session: Session) -> None:
    dataset = make_dataset(session)
    pledge = Purge(new_id(), TENANT, dataset, new_id(), "key", again=False)
    upload = Upload(pledge, "a.txt", "", 5, "doc", "txt", "hash", "naive", None, {})
    session.write_now(task_service.pledge, pledge)
    expire(session)
    session.write_now(task_service.extend, [pledge])
    assert session.write_now(lease_service.claim, "w", LEASE) is None
    expire(session)
    claim(session)  # a worker is about to remove the file
    with pytest.raises(Unavailable):
        session.write_now(document_service.add, TENANT, dataset, [upload])
    assert session.read_now(lambda: Document.select().count()) == 0
    assert session.read_now(lambda: Dataset.get_by_id(dataset).document_count) == 0
