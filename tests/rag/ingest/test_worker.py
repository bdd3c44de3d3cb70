"""Worker and pipeline over a real sandbox, a real blob store and the in-memory chunk store: no task is lost, nothing is half-visible."""

import asyncio
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from rag.errors import NotFound, Overloaded, ProviderRefused, ProviderUnreachable, Unavailable
from rag.ingest import pipeline as pipeline_module
from rag.ingest.lease import Lease, LeaseLost
from rag.ingest.pipeline import Pipeline, chunk_id
from rag.ingest.sandbox import PARSE_JOB, Sandbox
from rag.ingest.worker import Worker
from rag.store.blobs import LocalBlobStore
from rag.store.memory import MemoryStore
from rag.threads import Lane
from rag.types import ChunkSelector, IngestTask
from tests.rag.ingest.sample_files import FACT
from tests.rag.ingest.stubs import Records, StubEmbedder

TENANT, OTHER_TENANT, DATASET = "1" * 32, "3" * 32, "2" * 32
LONG = "\n\n".join(f"Paragraph {number} tells that {FACT}" for number in range(400))


class Parts:
    """A worker with everything it needs."""

    def __init__(self, folder, tokenizer, parser=PARSE_JOB):
        self.records = Records()
        self.store = MemoryStore()
        self.blobs = LocalBlobStore(folder / "blobs")
        self.embedder = StubEmbedder(tokenizer)
        self.lanes = Lane("search", 2, 100), Lane("blob", 2, 100)
        self.sandbox = Sandbox(parser, processes=1, import_paths=[Path(__file__).parent])
        self.spool_dir = folder / "spool"
        self.spool_dir.mkdir()
        self.pipeline = Pipeline(
            self.store, self.blobs, self.sandbox, store_lane=self.lanes[0], blob_lane=self.lanes[1], spool_dir=self.spool_dir
        )
        self.outcomes = []

    def worker(self, **changes):
        options = {"name": "w1", "poll_seconds": 0.01, "on_outcome": lambda *outcome: self.outcomes.append(outcome), **changes}
        return Worker(self.records, self.pipeline, self.embedder_of, **options)

    def embedder_of(self, name):
        if name == "missing":
            raise NotFound("embedding model missing is not configured")
        return self.embedder

    def task(self, document, text=FACT, **changes):
        if text is not None:
            self.blobs.put(f"blobs/{document}", BytesIO(text.encode()))
        task = IngestTask(
            f"{document}-task", "parse", TENANT, DATASET, document, document_name=f"{document}.txt", blob_key=f"blobs/{document}",
            parser_config={"chunk_token_num": 64},
        )  # fmt: skip
        return replace(task, **changes)

    def found(self):
        return [line for line in self.records.lines if line.startswith("found ")]

    def chunks(self, document, tenant=TENANT):
        return self.store.list(tenant, document, limit=10_000)[1]


@pytest.fixture
async def parts(request, tmp_path, tokenizer):
    parts = Parts(tmp_path, tokenizer, *([request.param] if hasattr(request, "param") else []))
    yield parts
    await parts.sandbox.close()
    for lane in parts.lanes:
        lane.close()


async def run(parts, tasks, ended=None, **changes):
    """Let a worker work until so many tasks have ended."""
    parts.records.tasks += tasks
    working = asyncio.create_task(parts.worker(**changes).run())
    count = len(tasks) if ended is None else ended
    try:
        events = await parts.records.ended(count)
        await until(lambda: len(parts.outcomes) >= count)
        return events
    finally:
        working.cancel()
        await asyncio.wait([working])


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - the store has no event for it
            await asyncio.sleep(0.01)


async def test_a_document_becomes_chunks_in_order_with_vectors(parts):
    events = await run(parts, [parts.task("a", LONG, version=3, document_name="mills.txt")])
    chunks = parts.chunks("a")
    assert events[0][:3] == ("done", "a", len(chunks))
    assert "Task done" in events[0][3]
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    assert chunks[0].id == chunk_id("a", 3, 0)
    assert "\n\n".join(chunk.content for chunk in chunks) == LONG
    assert all(LONG[slice(*chunk.extra["span"])] == chunk.content for chunk in chunks)
    assert all("wheel" in chunk.terms.content and chunk.version == 3 for chunk in chunks)
    assert parts.store.vectors(TENANT, [chunk.id for chunk in chunks], "stub/8").shape == (len(chunks), 8)
    assert sum(map(len, parts.embedder.batches)) == len(chunks)
    assert parts.embedder.batches[0][0].startswith("mills\nParagraph 0")
    assert parts.outcomes == [("done", len(chunks))]


async def test_a_new_version_replaces_the_old_and_a_repeated_run_changes_nothing(parts):
    await run(parts, [parts.task("a", LONG, version=1)])
    before = len(parts.chunks("a"))
    await run(parts, [parts.task("a", None, version=1, attempt=2)], ended=2)
    assert len(parts.chunks("a")) == before
    await run(parts, [parts.task("a", FACT, version=2)], ended=3)
    assert [(chunk.version, chunk.content) for chunk in parts.chunks("a")] == [(2, FACT)]


async def test_a_document_that_is_switched_off_stays_so(parts):
    await run(parts, [parts.task("a", available=False)])
    assert [chunk.available for chunk in parts.chunks("a")] == [False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": ""}, "the file is empty"),
        ({"text": None}, "gone"),
        ({"embedding_model": "missing"}, "not configured"),
        ({"chunk_method": "picture"}, "upload"),
    ],
)
async def test_what_will_fail_again_fails_once_with_its_reason(parts, changes, message):
    events = await run(parts, [parts.task("bad", **changes), parts.task("good")])
    by_document = {event[1]: event for event in events}
    assert by_document["good"][0] == "done"
    assert by_document["bad"][0] == "failed"
    assert message in by_document["bad"][3]
    assert parts.chunks("bad") == []


async def test_an_endpoint_that_is_down_is_tried_later_and_leaves_nothing(parts):
    parts.embedder.errors = [ProviderUnreachable("embedding model e does not answer")]
    events = await run(parts, [parts.task("a")])
    assert events[0][0] == "retry"
    assert "tried again" in events[0][3]
    assert parts.chunks("a") == []


async def test_a_part_of_ours_that_is_down_uses_up_none_of_the_tries(parts, monkeypatch):
    monkeypatch.setattr(pipeline_module, "WAITS_SECONDS", ())
    parts.embedder.errors = [Unavailable("elasticsearch cannot be reached")]
    assert (await run(parts, [parts.task("a")]))[0][0] == "waits"


async def test_an_endpoint_that_refuses_is_not_tried_again(parts):
    parts.embedder.errors = [ProviderRefused("embedding model e refuses")]
    assert (await run(parts, [parts.task("a")]))[0][0] == "failed"


async def test_a_busy_part_is_waited_for(parts, monkeypatch):
    monkeypatch.setattr(pipeline_module, "WAITS_SECONDS", (0.0, 0.0))
    parts.embedder.errors = [Overloaded("full"), Unavailable("not now")]
    assert (await run(parts, [parts.task("a")]))[0][0] == "done"


async def test_a_wait_for_the_store_is_told_once_and_why(parts, monkeypatch):
    monkeypatch.setattr(pipeline_module, "WAITS_SECONDS", (0.0, 0.0))
    errors, put = [Unavailable("the chunk record cannot be used"), Unavailable("still not")], parts.store.put

    def unwilling_put(*arguments, **named):
        if errors:
            raise errors.pop(0)
        put(*arguments, **named)

    monkeypatch.setattr(parts.store, "put", unwilling_put)
    assert (await run(parts, [parts.task("a")]))[0][0] == "done"
    assert [line for line in parts.records.lines if "waits" in line] == ["waits for the chunk store: the chunk record cannot be used"]


async def test_an_error_nobody_foresaw_fails_the_task_in_our_words(parts):
    parts.embedder.errors = [ZeroDivisionError("secret")]
    event = (await run(parts, [parts.task("a")]))[0]
    assert event[0] == "failed"
    assert "internal error" in event[3]
    assert "secret" not in event[3]


async def test_a_stopped_task_is_dropped_and_its_chunks_removed(parts):
    parts.embedder.free_calls = 1
    parts.embedder.may_go_on.clear()
    parts.records.tasks.append(parts.task("a", LONG * 20))
    working = asyncio.create_task(parts.worker(lease_seconds=0.6).run())
    await until(lambda: parts.chunks("a"))
    parts.records.stop("a")
    await until(lambda: parts.outcomes and not parts.chunks("a"))
    working.cancel()
    await asyncio.wait([working])
    assert parts.outcomes == [("lost", 0)]
    assert parts.records.events == []


async def test_a_finish_whose_answer_is_lost_or_overtaken_costs_the_document_nothing(parts):
    finish = parts.records.finish

    async def finished_but_cut_off(task, worker, **counts):
        parts.records.finish = finish
        await finish(task, worker, **counts)
        await asyncio.sleep(0.1)  # renewals go on meanwhile, if they are let, and find no task
        raise Unavailable("the answer is lost")

    parts.records.finish = finished_but_cut_off
    parts.records.tasks += [parts.task("a", LONG)]
    working = asyncio.create_task(parts.worker(lease_seconds=0.03).run())
    await parts.records.ended(1)
    await until(lambda: parts.outcomes)
    working.cancel()
    await asyncio.wait([working])
    assert parts.outcomes == [("lost", 0)]  # as far as this worker knows
    assert len(parts.chunks("a")) == parts.records.events[0][2] > 0


async def test_cancelling_gives_the_task_back_and_kills_its_parser(parts):
    parts.embedder.may_go_on.clear()
    parts.records.tasks.append(parts.task("a", LONG * 50))
    worker = parts.worker()
    working = asyncio.create_task(worker.run())
    await parts.embedder.asked.wait()
    assert worker.alive
    working.cancel()
    await asyncio.wait([working])
    assert not worker.alive
    assert [event[:2] for event in parts.records.events] == [("given back", "a")]
    assert parts.sandbox.process_ids == ()


async def test_a_small_document_ends_while_a_large_one_is_embedded_in_every_tenant(parts):
    large = [parts.task(f"large{number}", LONG * 20) for number in range(2)]
    parts.embedder.may_go_on.clear()
    parts.records.tasks += [*large, parts.task("small"), parts.task("foreign", tenant_id=OTHER_TENANT)]
    working = asyncio.create_task(parts.worker().run())
    await until(lambda: len(parts.found()) == 4)
    parts.embedder.may_go_on.set()
    ended = [event[1] for event in await parts.records.ended(4)]
    working.cancel()
    await asyncio.wait([working])
    assert sorted(ended[:2]) == ["foreign", "small"]
    assert all(event[0] == "done" for event in parts.records.events)
    assert len(parts.chunks("foreign", OTHER_TENANT)) == 1
    assert parts.embedder.most_at_once == 1


async def test_a_document_that_waits_for_the_embedder_holds_no_parser(parts):
    parts.embedder.may_go_on.clear()
    parts.records.tasks += [parts.task(name, LONG * 20) for name in "ab"]
    working = asyncio.create_task(parts.worker().run())
    await until(lambda: len(parts.found()) == 2)  # by one parser process
    working.cancel()
    await asyncio.wait([working])


async def test_one_tenants_documents_do_not_take_all_places(parts):
    parts.embedder.may_go_on.clear()
    parts.records.tasks += [parts.task(f"a{number}") for number in range(8)]
    parts.records.tasks.append(parts.task("foreign", tenant_id=OTHER_TENANT))
    working = asyncio.create_task(parts.worker(documents_at_once=8).run())
    await until(lambda: "foreign-task" in parts.records.held)
    assert sorted(parts.records.held) == ["a0-task", "a1-task", "foreign-task"]
    parts.embedder.may_go_on.set()
    await parts.records.ended(9)
    working.cancel()
    await asyncio.wait([working])


async def test_a_spool_that_fails_is_tried_again_and_leaves_nothing(parts):
    parts.spool_dir.rmdir()
    parts.spool_dir.write_text("no folder")
    events = await run(parts, [parts.task("large", LONG * 50), parts.task("small")])
    by_document = {event[1]: event for event in events}
    assert by_document["small"][0] == "done"
    assert by_document["large"][0] == "waits"
    assert "no room" in by_document["large"][3]
    assert parts.chunks("large") == []


@pytest.mark.parametrize("parts", ["hostile_jobs:abort_unless_careful"], indirect=True)
async def test_a_file_that_crashes_its_parser_is_tried_once_more_with_care(parts):
    assert (await run(parts, [parts.task("a", LONG)]))[0][0] == "done"
    assert "\n\n".join(chunk.content for chunk in parts.chunks("a")) == LONG


@pytest.mark.parametrize("parts", ["hostile_jobs:abort_late_unless_careful"], indirect=True)
async def test_a_parser_that_crashes_when_it_has_handed_chunks_over_fails_its_document(parts):
    event = (await run(parts, [parts.task("a", LONG)]))[0]
    assert event[0] == "failed"
    assert "crashed" in event[3]
    assert parts.chunks("a") == []


async def test_a_spool_leaves_no_file(parts):
    parts.embedder.may_go_on.clear()
    parts.records.tasks.append(parts.task("a", LONG * 50))
    working = asyncio.create_task(parts.worker().run())
    await parts.embedder.asked.wait()
    assert list(parts.spool_dir.iterdir()) == []
    working.cancel()
    await asyncio.wait([working])
    assert list(parts.spool_dir.iterdir()) == []


async def test_a_name_that_promises_something_else_is_told_in_the_last_lines(parts):
    events = await run(parts, [parts.task("a", "{", document_name="a.json")])
    assert events[0][0] == "done"
    assert events[0][3].startswith("the file is not valid JSON: it was read as plain text\nTask done")


async def test_a_purge_removes_chunks_and_file(parts):
    await run(parts, [parts.task("a")])
    await run(parts, [replace(parts.task("a", None), kind="purge")], ended=2)
    assert parts.store.count(TENANT, ChunkSelector(document_ids=("a",))) == 0
    with pytest.raises(NotFound):
        parts.blobs.open("blobs/a")


async def test_a_sweep_removes_the_stopped_run_and_keeps_newer_ones_and_the_file(parts):
    await run(parts, [parts.task("a", version=1)])
    late = [replace(chunk, id=f"{n:016x}") for n, chunk in enumerate(parts.store.list(TENANT, "a")[1])]
    await run(parts, [parts.task("a", version=2)], ended=2)
    parts.store.put(TENANT, late, None, "")
    await run(parts, [replace(parts.task("a", version=1), kind="sweep")], ended=3)
    assert {chunk.version for chunk in parts.store.list(TENANT, "a")[1]} == {2}
    parts.blobs.open("blobs/a").close()


async def test_a_drop_removes_what_there_was_before_its_version_and_keeps_the_file(parts):
    await run(parts, [parts.task("a", version=1)])
    old = parts.store.list(TENANT, "a")[1]
    by_hand, new = (replace(old[0], id=f"{n:016x}", version=version) for n, version in enumerate((0, 2)))
    parts.store.put(TENANT, [by_hand, new], None, "")
    await run(parts, [replace(parts.task("a", version=2), kind="drop")], ended=2)
    assert parts.store.list(TENANT, "a")[1] == [new]
    parts.blobs.open("blobs/a").close()


async def test_a_rename_is_done_where_the_name_is_kept_and_ends_its_task(parts):
    assert await run(parts, [replace(parts.task("a", None), kind="rename")]) == [("done", "a", 0, "Task done (0.0 s)")]
    assert parts.records.renamed == ["a"]


async def test_a_database_that_is_away_is_asked_again(parts):
    parts.records.claim_errors = [Unavailable("the database is away"), RuntimeError("odd")][:1]
    assert (await run(parts, [parts.task("a")]))[0][0] == "done"


async def test_waking_starts_a_task_at_once(parts):
    worker = parts.worker(poll_seconds=60.0)
    working = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    parts.records.tasks.append(parts.task("a"))
    async with asyncio.timeout(20):
        while not parts.records.events:
            worker.wake()
            await asyncio.sleep(0.01)
    working.cancel()
    await asyncio.wait([working])


async def test_progress_reads_like_a_sentence(parts):
    await run(parts, [parts.task("a", LONG)])
    assert parts.records.lines
    assert all(line.startswith(("parsing ", "found ", "embedded ")) for line in parts.records.lines)
    parts.records.lines.clear()
    await run(parts, [parts.task("b")], ended=2)
    assert parts.records.lines[0] == "found 1 chunk"


async def test_how_many_chunks_were_found_is_told_however_soon_it_is_known():
    records, task = Records(), IngestTask("t", "parse", TENANT, DATASET, "a")
    records.held[task.id] = "w1"
    lease = Lease(records, task, "w1", 10.0, lambda: 100.0)
    for line in ("parsing page 1 of 2", "parsing page 2 of 2", "found 3 chunks"):
        await lease.tell(0.0, line)
    assert records.lines == ["parsing page 1 of 2", "found 3 chunks"]


async def test_a_lease_that_may_be_taken_over_is_not_certain():
    now = [100.0]
    lease = Lease(Records(), IngestTask("t", "parse", TENANT, DATASET, "a"), "w1", 10.0, lambda: now[0])
    assert lease.certain
    now[0] += 9.0
    assert not lease.certain


async def test_a_lost_lease_cancels_the_work():
    lease = Lease(Records(), IngestTask("t", "parse", TENANT, DATASET, "a"), "w1", 0.03)
    cancelled = []

    async def work():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with pytest.raises(LeaseLost):
        await lease.hold(work)
    assert cancelled == [True]
