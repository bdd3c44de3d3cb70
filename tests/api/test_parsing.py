"""Starting and stopping the parsing of documents, both pairs of routes (contract, 5)."""

import asyncio
from typing import Any

import pytest

from db.models import Document, Task, now_ms
from rag.types import ChunkSelector
from tests.api.conftest import UNKNOWN, Server

NOT_RUNNING = "Can't stop parsing document that has not started or already completed"


async def start(api: Server, dataset: str, *documents: str) -> Any:
    return await api.call("POST", f"/datasets/{dataset}/chunks", {"document_ids": documents})


async def stop(api: Server, dataset: str, *documents: str) -> Any:
    return await api.call("DELETE", f"/datasets/{dataset}/chunks", {"document_ids": documents})


def chunks_of(api: Server, document: str) -> int:
    return api.parts.store.count(api.tenant, ChunkSelector(document_ids=(document,)))


async def test_a_document_goes_from_unstart_over_running_to_done(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    answer = await start(api, dataset, document)
    assert answer.body == {"code": 0}
    running = await api.listed(dataset, document)
    assert (running["run"], running["progress"]) == ("RUNNING", 0)
    assert running["process_begin_at"].endswith(" GMT")
    assert await api.work() == 1
    done = await api.listed(dataset, document)
    assert (done["run"], done["progress"], done["chunk_count"], done["token_count"]) == ("DONE", 1, 2, 4)
    assert "Task done" in done["progress_msg"]
    assert done["process_duration"] > 0
    counts = (await api.call("GET", f"/datasets/{dataset}")).data
    assert (counts["chunk_count"], counts["token_num"]) == (2, 4)


async def test_progress_and_its_lines_are_shown_while_it_runs(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    await start(api, dataset, document)
    task = await api.records.claim("w", 60)
    assert await api.records.report(task, "w", 0.25, "parsing page 1 of 2")
    assert await api.records.report(task, "w", 0.5, "parsing page 2 of 2")
    listed = await api.listed(dataset, document)
    assert (listed["progress"], listed["progress_msg"]) == (0.5, "parsing page 2 of 2")


async def test_a_finished_document_starts_over_without_old_chunks(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.parsed(dataset)
    await api.call("POST", f"/datasets/{dataset}/documents/{document}/chunks", {"content": "by hand"})
    assert chunks_of(api, document) == 3
    await start(api, dataset, document)
    assert chunks_of(api, document) == 0
    listed = await api.listed(dataset, document)
    assert (listed["run"], listed["chunk_count"], listed["token_count"]) == ("RUNNING", 0, 0)
    await api.work()
    assert chunks_of(api, document) == 2
    assert (await api.call("GET", f"/datasets/{dataset}")).data["chunk_count"] == 2


@pytest.mark.parametrize("route", ["POST /chunks", "DELETE /chunks", "POST /documents/parse", "POST /documents/stop"])
async def test_what_all_four_routes_ask_for(api: Server, route: str) -> None:
    method, path = route.split()
    dataset = await api.dataset()
    answer = await api.call(method, f"/datasets/{UNKNOWN}{path}", {"document_ids": ["x"]})
    assert answer.outcome == (102, 404, f"You don't own the dataset {UNKNOWN}.")
    for body in ({}, {"document_ids": []}, {"document_ids": None}, {"document_ids": "x"}):
        assert (await api.call(method, f"/datasets/{dataset}{path}", body)).outcome == (102, 400, "`document_ids` is required")


async def test_start_refuses_what_is_being_parsed(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    await start(api, dataset, document)
    assert (await start(api, dataset, document)).outcome == (102, 409, "Can't parse document that is currently being processed")
    again = await api.call("POST", f"/datasets/{dataset}/documents/parse", {"document_ids": [document]})
    assert again.data == {"success_count": 1}


@pytest.mark.parametrize("path", ["chunks", "documents/parse"])
async def test_unknown_ids_are_named_and_the_others_start(api: Server, path: str) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    answer = await api.call("POST", f"/datasets/{dataset}/{path}", {"document_ids": [document, "a", "b"]})
    assert answer.outcome == (102, 404, "Documents not found: ['a', 'b']")
    assert (await api.listed(dataset, document))["run"] == "RUNNING"


@pytest.mark.parametrize(("method", "path"), [("POST", "chunks"), ("POST", "documents/parse")])
async def test_repeated_ids_start_once_and_are_told(api: Server, method: str, path: str) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    answer = await api.call(method, f"/datasets/{dataset}/{path}", {"document_ids": [document, document]})
    assert answer.data == {"success_count": 1, "errors": [f"Duplicate document ids: {document}"]}


async def test_stop_cancels_and_drops_the_chunks(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    await start(api, dataset, document)
    task = await api.records.claim("w", 60)
    api.parts.store.put(api.tenant, api.chunks_of(task), None, "")
    answer = await stop(api, dataset, document, document)
    assert answer.data == {"success_count": 1, "errors": [f"Duplicate document ids: {document}"]}
    listed = await api.listed(dataset, document)
    assert (listed["run"], listed["progress"]) == ("CANCEL", 0)
    assert listed["progress_msg"].splitlines()[-1] == "Task stopped by user."
    assert chunks_of(api, document) == 0
    assert not await api.records.finish(task, "w", chunk_count=2, token_count=4, message="Task done")
    assert (await api.listed(dataset, document))["run"] == "CANCEL"


async def test_stop_refuses_what_is_not_running(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    answer = await stop(api, dataset, document)
    assert answer.outcome == (102, 409, NOT_RUNNING)
    assert answer.body["data"] == {"error_code": "DOC_STOP_PARSING_INVALID_STATE"}
    assert (await stop(api, dataset, "x", document)).outcome == (102, 404, "you don't own the document x")


async def test_the_other_stop_reports_what_was_not_running(api: Server) -> None:
    dataset = await api.dataset()
    running, idle = await api.document(dataset), await api.document(dataset, "b.txt")
    await start(api, dataset, running)
    path = f"/datasets/{dataset}/documents/stop"
    assert (await api.call("POST", path, {"document_ids": [running, "x"]})).outcome == (102, 404, "Documents not found: ['x']")
    assert (await api.listed(dataset, running))["run"] == "RUNNING"
    assert (await api.call("POST", path, {"document_ids": [idle]})).data == {"success_count": 0, "errors": [NOT_RUNNING]}
    assert (await api.call("POST", path, {"document_ids": [running]})).data == {"success_count": 1}


async def test_stopped_and_failed_documents_can_start_again(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    await start(api, dataset, document)
    await stop(api, dataset, document)
    await start(api, dataset, document)
    task = await api.records.claim("w", 60)
    await api.records.fail(task, "w", "the file is encrypted", retry=False)
    listed = await api.listed(dataset, document)
    assert (listed["run"], listed["progress"]) == ("FAIL", -1)
    assert "the file is encrypted" in listed["progress_msg"]
    assert (await start(api, dataset, document)).body == {"code": 0}
    await api.work()
    assert (await api.listed(dataset, document))["run"] == "DONE"


async def test_no_worker_begins_before_the_old_chunks_are_gone(api: Server) -> None:
    """Between the two steps of a start the task is on hold; a server that dies there leaves it to come due by itself."""
    dataset = await api.dataset()
    document = await api.parsed(dataset)
    delete = api.parts.store.delete
    claimed: list[Any] = []

    def slow_delete(*arguments: Any) -> int:
        claimed.append(asyncio.run_coroutine_threadsafe(api.records.claim("eager", 60), loop).result())
        return delete(*arguments)

    loop = asyncio.get_running_loop()
    api.parts.store.delete = slow_delete  # type: ignore[method-assign]
    await start(api, dataset, document)
    api.parts.store.delete = delete  # type: ignore[method-assign]
    assert claimed == [None]
    assert await api.work() == 1


async def test_a_delete_that_comes_late_leaves_the_run_alone_that_did_not_wait_for_it(api: Server) -> None:
    """A worker has dropped the old chunks meanwhile, because the server did not."""
    dataset = await api.dataset()
    document = await api.parsed(dataset)
    delete = api.parts.store.delete

    def very_slow_delete(*arguments: Any) -> int:
        api.parts.store.delete = delete  # type: ignore[method-assign]

        async def meanwhile() -> None:
            await api.parts.session.write(lambda: Task.update(due_at=now_ms()).execute())
            await api.work()

        asyncio.run_coroutine_threadsafe(meanwhile(), loop).result()
        return delete(*arguments)

    loop = asyncio.get_running_loop()
    api.parts.store.delete = very_slow_delete  # type: ignore[method-assign]
    await start(api, dataset, document)
    assert await api.work() == 0
    assert (await api.listed(dataset, document))["run"] == "DONE"
    assert chunks_of(api, document) == 2
    assert (await api.call("GET", f"/datasets/{dataset}")).data["chunk_count"] == 2


async def test_a_worker_that_writes_after_the_deletion_is_cleaned_up_after(api: Server) -> None:
    dataset = await api.dataset()
    document = await api.document(dataset)
    await start(api, dataset, document)
    task = await api.records.claim("w", 60)
    chunks = api.chunks_of(task)
    await api.call("DELETE", f"/datasets/{dataset}/documents", {"ids": [document]})
    api.parts.store.put(api.tenant, chunks, None, "")  # and then the worker is killed
    assert not await api.records.renew(task, "w", 60)
    await api.parts.session.write(lambda: Task.update(due_at=now_ms()).execute())
    assert await api.work() == 1
    assert chunks_of(api, document) == 0


async def test_a_hundred_parallel_starts_keep_the_counters_right(api: Server) -> None:
    dataset = await api.dataset()
    documents = [item["id"] for item in (await api.upload(dataset, *((f"{n}.txt", b"a b\nc d") for n in range(100)))).data]
    answers = await asyncio.gather(*(start(api, dataset, document) for document in documents))
    assert [answer.body for answer in answers if answer.body != {"code": 0}] == []
    await asyncio.gather(*(api.work() for _ in range(4)))
    counts = (await api.call("GET", f"/datasets/{dataset}")).data
    assert (counts["document_count"], counts["chunk_count"], counts["token_num"]) == (100, 200, 400)
    await asyncio.gather(*(api.call("DELETE", f"/datasets/{dataset}/documents", {"ids": [document]}) for document in documents))
    counts = (await api.call("GET", f"/datasets/{dataset}")).data
    assert (counts["document_count"], counts["chunk_count"], counts["token_num"]) == (0, 0, 0)
    assert await api.parts.session.read(lambda: Document.select().count()) == 0
