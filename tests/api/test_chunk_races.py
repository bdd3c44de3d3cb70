"""Changes of chunks by hand at the same time as each other, and as what happens to their document."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from api import chunk_edits
from api.ingest_records import COUNTS
from api.renames import CHUNKS_AT_ONCE
from db.models import Task
from db.services import document_service
from rag.errors import Unavailable, WritesHeld
from rag.nlp.tokens import TokenCounter
from rag.types import ChunkSelector
from tests.api.conftest import Answer, CountedWords, Server


class Place:
    """A dataset with one parsed document of two chunks."""

    def __init__(self, api: Server, dataset: str, document: str) -> None:
        self.api, self.dataset, self.document = api, dataset, document
        self.documents = f"/datasets/{dataset}/documents"
        self.path = f"{self.documents}/{document}/chunks"

    async def chunks(self) -> list[dict[str, Any]]:
        return (await self.api.call("GET", f"{self.path}?page_size=100")).data["chunks"]

    async def remove_document(self) -> Answer:
        return await self.api.call("DELETE", self.documents, {"ids": [self.document]})

    async def start(self) -> Answer:
        return await self.api.call("POST", f"{self.documents}/parse", {"document_ids": [self.document]})

    async def stop(self) -> Answer:
        return await self.api.call("POST", f"{self.documents}/stop", {"document_ids": [self.document]})

    def beside_the_embedding(self, happens: Callable[[], Awaitable[Any]]) -> None:
        """Let it happen once, while the next chunk is being embedded."""

        async def once() -> None:
            self.api.parts.models.meanwhile = None
            await happens()

        self.api.parts.models.meanwhile = once

    async def counters(self) -> tuple[int, int, int, int]:
        """Chunks and tokens of the document, and of the dataset."""
        document = await self.api.listed(self.dataset, self.document)
        dataset = (await self.api.call("GET", f"/datasets/{self.dataset}")).data
        return document["chunk_count"], document["token_count"], dataset["chunk_count"], dataset["token_num"]


@pytest.fixture
async def place(api: Server) -> Place:
    dataset = await api.dataset()
    return Place(api, dataset, await api.parsed(dataset))


def tokens(*texts: str) -> int:
    """As the embedding model counts them."""
    return sum(map(TokenCounter(CountedWords.tokenizer_path).count, texts))


def stored(api: Server) -> int:
    return len(api.parts.store._tenants.get(api.tenant, {}))


# ---------------------------------------------------------------------------------------------------- the document goes
async def test_a_chunk_added_while_its_document_is_deleted_is_not_kept(api: Server, place: Place) -> None:
    place.beside_the_embedding(place.remove_document)
    answer = await api.call("POST", place.path, {"content": "Gold is soft."})
    assert answer.outcome == (102, 404, f"you don't own the document {place.document}")
    assert stored(api) == 0
    assert (await api.call("GET", f"/datasets/{place.dataset}")).data["chunk_count"] == 0


async def test_adding_and_deleting_at_the_same_time_leaves_nothing(api: Server) -> None:
    dataset = await api.dataset()
    for _ in range(6):
        place = Place(api, dataset, await api.document(dataset))
        adding = [api.call("POST", place.path, {"content": f"fact {number}"}) for number in range(8)]
        answers = await asyncio.gather(*adding[:4], place.remove_document(), *adding[4:])
        assert {answer.status for answer in answers} <= {200, 404}
    counts = (await api.call("GET", f"/datasets/{dataset}")).data
    assert (counts["document_count"], counts["chunk_count"], counts["token_num"], stored(api)) == (0, 0, 0, 0)


@pytest.mark.parametrize("happens", ["remove_document", "start"])
async def test_an_edit_does_not_bring_back_a_chunk_whose_document_was_deleted_or_started_again(
    api: Server, place: Place, happens: str
) -> None:
    chunk = (await place.chunks())[0]["id"]
    place.beside_the_embedding(getattr(place, happens))
    answer = await api.call("PATCH", f"{place.path}/{chunk}", {"content": "Gold is soft."})
    assert answer.outcome == (102, 404, f"Can't find this chunk {chunk}")
    assert stored(api) == 0


async def test_an_edit_does_not_bring_back_a_deleted_chunk(api: Server, place: Place) -> None:
    water, iron = [chunk["id"] for chunk in await place.chunks()]
    place.beside_the_embedding(lambda: api.call("DELETE", place.path, {"chunk_ids": [water]}))
    assert (await api.call("PATCH", f"{place.path}/{water}", {"content": "Gold is soft."})).status == 404
    assert [chunk["id"] for chunk in await place.chunks()] == [iron]
    assert (await place.counters())[::2] == (1, 1)


# ---------------------------------------------------------------------------------------------------- edits beside edits
async def test_edits_at_the_same_time_are_all_kept(api: Server, place: Place) -> None:
    chunk = (await place.chunks())[0]["id"]
    changes = {
        "content": "Gold is soft.", "important_keywords": ["metal"], "questions": ["What is soft?"], "tag_kwd": ["t"],
        "positions": [[2, 1, 2, 3, 4]], "available": 0, "tag_feas": {"t": 1},
    }  # fmt: skip
    answers = await asyncio.gather(*(api.call("PATCH", f"{place.path}/{chunk}", {key: value}) for key, value in changes.items()))
    assert [answer.body for answer in answers] == [{"code": 0}] * len(changes)
    raw = (await api.call("GET", f"{place.path}/{chunk}")).data
    assert (raw["content_with_weight"], raw["important_kwd"], raw["question_kwd"]) == ("Gold is soft.", ["metal"], ["What is soft?"])
    assert (raw["tag_kwd"], raw["position_int"], raw["available_int"], raw["tag_feas"]) == (["t"], [[2, 1, 2, 3, 4]], 0, {"t": 1})
    api.parts.store.set_available(api.tenant, ChunkSelector(document_ids=(place.document,)), True)
    question = {"dataset_ids": [place.dataset], "question": "metal gold", "vector_similarity_weight": 0, "similarity_threshold": 0}
    assert (await api.call("POST", "/retrieval", question)).data["chunks"][0]["id"] == chunk


async def test_an_edit_that_is_overtaken_is_applied_to_what_there_is_then(api: Server, place: Place) -> None:
    chunk = (await place.chunks())[0]["id"]
    place.beside_the_embedding(lambda: api.call("PATCH", f"{place.path}/{chunk}", {"tag_kwd": ["t"], "questions": ["Why?"]}))
    await api.call("PATCH", f"{place.path}/{chunk}", {"content": "Gold is soft."})
    raw = (await api.call("GET", f"{place.path}/{chunk}")).data
    assert (raw["content_with_weight"], raw["tag_kwd"], raw["question_kwd"]) == ("Gold is soft.", ["t"], ["Why?"])


async def test_a_rename_keeps_the_edits_beside_it(api: Server, place: Place) -> None:
    chunk = (await place.chunks())[0]["id"]
    rename = f"{place.documents}/{place.document}"
    place.beside_the_embedding(lambda: api.call("PATCH", rename, {"name": "iron.txt"}))
    await api.call("PATCH", f"{place.path}/{chunk}", {"content": "Gold is soft."})
    await asyncio.gather(
        api.call("PATCH", rename, {"name": "gold.txt"}),
        *(api.call("PATCH", f"{place.path}/{chunk}", {key: ["x"]}) for key in ("tag_kwd", "questions", "important_keywords")),
    )
    (first, _) = api.parts.store.list(api.tenant, place.document)[1]
    assert (first.content, first.tags, first.questions, first.keywords) == ("Gold is soft.", ("x",), ("x",), ("x",))
    assert {item.document_name for item in api.parts.store.list(api.tenant, place.document)[1]} == {"gold.txt"}


async def test_the_later_of_two_changes_of_a_document_wins_though_followed_first(api: Server, place: Place) -> None:
    change, session = document_service.update, api.parts.session
    first = await session.write(change, place.document, {"name": "1.txt", "enabled": False})
    second = await session.write(change, place.document, {"name": "2.txt", "enabled": True})
    await chunk_edits.follow(api.parts, second, named=True, switched=True)
    await chunk_edits.follow(api.parts, first, named=True, switched=True)
    chunks = api.parts.store.list(api.tenant, place.document)[1]
    assert {(chunk.document_name, chunk.available) for chunk in chunks} == {("2.txt", True)}


async def test_an_older_name_is_not_written_after_a_newer_one(api: Server, place: Place) -> None:
    """A rename reads its name, another one happens, and then the first breaks off after it went on once."""
    path, store, loop = f"{place.documents}/{place.document}", api.parts.store, asyncio.get_running_loop()
    listed: Any = store.list

    def fails(*_: Any, **__: Any) -> Any:
        raise Unavailable("the chunk store does not answer")

    def overtaken(*arguments: Any, **named: Any) -> Any:
        store.list = listed
        assert asyncio.run_coroutine_threadsafe(api.call("PATCH", path, {"name": "second.txt"}), loop).result(30).status == 200
        store.list = fails
        return listed(*arguments, **named)

    store.list = overtaken  # type: ignore[method-assign]
    assert (await api.call("PATCH", path, {"name": "first.txt"})).status == 503
    store.list = listed  # type: ignore[method-assign]
    assert (await api.listed(place.dataset, place.document))["name"] == "second.txt"
    assert {chunk.document_name for chunk in store.list(api.tenant, place.document)[1]} == {"second.txt"}


async def test_a_rename_that_broke_off_is_made_whole_by_a_worker(api: Server, place: Place) -> None:
    store: Any = api.parts.store

    def fails(*_: Any, **__: Any) -> list[bool]:
        raise Unavailable("the chunk store does not answer")

    works, store.replace = store.replace, fails
    assert (await api.call("PATCH", f"{place.documents}/{place.document}", {"name": "iron.txt"})).status == 503
    store.replace = works
    assert await api.work() == 0  # the server comes first
    await due(api)
    assert await api.work() == 1
    assert {chunk.document_name for chunk in store.list(api.tenant, place.document)[1]} == {"iron.txt"}
    question = {"dataset_ids": [place.dataset], "question": "iron", "vector_similarity_weight": 0, "similarity_threshold": 0}
    assert len((await api.call("POST", "/retrieval", question)).data["chunks"]) == 2


async def test_a_rename_reaches_the_chunks_of_all_pages(api: Server, place: Place) -> None:
    store, (chunk, _) = api.parts.store, api.parts.store.list(api.tenant, place.document)[1]
    store.put(api.tenant, [replace(chunk, id=f"{n:016x}", position=n) for n in range(2 * CHUNKS_AT_ONCE)], None, "")
    assert (await api.call("PATCH", f"{place.documents}/{place.document}", {"name": "iron.txt"})).status == 200
    total, chunks = store.list(api.tenant, place.document, limit=3 * CHUNKS_AT_ONCE)
    assert (total, {chunk.document_name for chunk in chunks}) == (2 * CHUNKS_AT_ONCE + 2, {"iron.txt"})


async def test_a_rename_that_went_well_leaves_no_task(api: Server, place: Place) -> None:
    rename = f"{place.documents}/{place.document}"
    await asyncio.gather(*(api.call("PATCH", rename, {"name": f"{number}.txt"}) for number in range(4)))
    assert await api.parts.session.read(lambda: Task.select().count()) == 0
    now = (await api.listed(place.dataset, place.document))["name"]
    assert {chunk.document_name for chunk in api.parts.store.list(api.tenant, place.document)[1]} == {now}


async def test_only_changes_of_the_text_embed_again(api: Server, place: Place) -> None:
    chunk = (await place.chunks())[0]["id"]
    embedded = []

    async def count() -> None:
        embedded.append(1)

    api.parts.models.meanwhile = count
    for body in ({"available": 0}, {"positions": [[1, 2, 3, 4, 5]]}, {"tag_kwd": ["t"]}, {"tag_feas": {"t": 1}}, {}):
        assert (await api.call("PATCH", f"{place.path}/{chunk}", body)).body == {"code": 0}
    assert embedded == []
    await api.call("PATCH", f"{place.path}/{chunk}", {"questions": ["Why?"]})
    assert embedded == [1]


# ---------------------------------------------------------------------------------------------------- counters
async def test_counters_end_right_whatever_happens_at_the_same_time(api: Server, place: Place) -> None:
    for number in range(4):
        adding = [api.call("POST", place.path, {"content": f"fact {number} {n}"}) for n in range(6)]
        removing = [api.call("DELETE", place.path, {"chunk_ids": [chunk["id"]]}) for chunk in (await place.chunks())[:3]]
        everything = [api.call("DELETE", place.path, {"delete_all": True})] if number % 2 else []
        await asyncio.gather(*adding[:3], *removing, *everything, *adding[3:])
        chunks, _, of_dataset, _ = await place.counters()
        assert chunks == of_dataset == stored(api)
    await asyncio.gather(*(api.call("DELETE", place.path, {"chunk_ids": [chunk["id"]]}) for chunk in await place.chunks()))
    assert await place.counters() == (0, 0, 0, 0)


async def test_a_chunk_added_before_delete_all_ends_is_not_left_counted(api: Server, place: Place) -> None:
    await api.call("POST", place.path, {"content": "Gold is soft."})
    place.beside_the_embedding(lambda: api.call("DELETE", place.path, {"delete_all": True}))
    await api.call("POST", place.path, {"content": "Silver shines."})
    assert (await place.counters())[::2] == (1, 1)


async def test_chunks_deleted_by_hand_during_a_run_are_not_counted_at_its_end(api: Server) -> None:
    dataset = await api.dataset()
    place = Place(api, dataset, await api.document(dataset))
    await place.start()
    task = await api.records.claim("w", 60)
    chunks = api.chunks_of(task)
    api.parts.store.put(task.tenant_id, chunks, None, "")
    await api.call("DELETE", place.path, {"chunk_ids": [chunks[0].id]})
    assert (await place.counters())[0] == 0
    await api.call("POST", place.path, {"content": "Gold is soft."})
    made, left = tokens(*(chunk.content for chunk in chunks)), tokens(chunks[1].content, "Gold is soft.")
    assert await api.records.finish(task, "w", chunk_count=2, token_count=made, message="Task done")
    assert await place.counters() == (2, left, 2, left)
    await api.call("DELETE", place.path, {"chunk_ids": [chunk["id"] for chunk in await place.chunks()]})
    assert await place.counters() == (0, 0, 0, 0)


async def test_all_chunks_deleted_during_a_run_are_not_counted_at_its_end(api: Server) -> None:
    dataset = await api.dataset()
    place = Place(api, dataset, await api.document(dataset))
    await place.start()
    task = await api.records.claim("w", 60)
    chunks = api.chunks_of(task)
    api.parts.store.put(task.tenant_id, chunks, None, "")
    await api.call("DELETE", place.path, {"delete_all": True})
    made = tokens(*(chunk.content for chunk in chunks))
    api.parts.store.put(task.tenant_id, late := [replace(chunks[0], id="f" * 16)], None, "")
    made += tokens(*(chunk.content for chunk in late))
    assert await api.records.finish(task, "w", chunk_count=3, token_count=made, message="Task done")
    assert await place.counters() == (1, tokens(late[0].content)) * 2
    await api.call("DELETE", place.path, {"delete_all": True})
    assert await place.counters() == (0, 0, 0, 0)


@pytest.mark.parametrize("deleted", [1, COUNTS])
async def test_what_is_deleted_while_the_chunks_are_counted_is_not_counted(api: Server, deleted: int) -> None:
    """Beside each count one more chunk goes, `deleted` in all: in the end the document says what there is, counted while it is held."""
    dataset = await api.dataset()
    place = Place(api, dataset, await api.document(dataset, content=b"one\ntwo\nthree\nfour\nfive\nsix\nseven"))
    await place.start()
    task = await api.records.claim("w", 60)
    chunks = api.chunks_of(task)
    api.parts.store.put(task.tenant_id, chunks, None, "")
    victims = [chunk.id for chunk in chunks[:deleted]]
    store, loop = api.parts.store, asyncio.get_running_loop()
    count = store.count

    def counts(*arguments: Any) -> int:
        before = count(*arguments)
        if victims:
            delete = api.call("DELETE", place.path, {"chunk_ids": [victims.pop()]})
            asyncio.run_coroutine_threadsafe(delete, loop).result(30)
        return before

    store.count = counts  # type: ignore[method-assign]
    made = tokens(*(chunk.content for chunk in chunks))
    assert await api.records.finish(task, "w", chunk_count=7, token_count=made, message="Task done")
    left = tokens(*(chunk["content"] for chunk in await place.chunks()))
    assert await place.counters() == (stored(api), left) * 2


async def test_a_store_that_cannot_count_holds_no_transaction(api: Server) -> None:
    dataset = await api.dataset()
    place = Place(api, dataset, await api.document(dataset))
    await place.start()
    task = await api.records.claim("w", 60)
    store, loop = api.parts.store, asyncio.get_running_loop()

    def count(*_: Any) -> int:
        writing = api.parts.session.write(document_service.hold, api.tenant, place.document)
        asyncio.run_coroutine_threadsafe(asyncio.wait_for(writing, 3), loop).result()
        raise Unavailable("the chunk store does not answer")

    store.count = count  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await api.records.finish(task, "w", chunk_count=2, token_count=4, message="Task done")
    assert (await api.listed(dataset, place.document))["run"] == "RUNNING"


# ---------------------------------------------------------------------------------------------------- after a stop
async def test_what_a_stopped_and_killed_worker_wrote_is_swept(api: Server, place: Place) -> None:
    await place.start()
    task = await api.records.claim("w", 60)
    await place.stop()
    await api.call("POST", place.path, {"content": "Gold is soft."})
    api.parts.store.put(api.tenant, api.chunks_of(task), None, "")  # and then the worker is killed
    assert await api.work() == 0  # not before its lease has ended
    await api.parts.session.write(lambda: Task.update(due_at=0).execute())
    assert await api.work() == 1
    assert [chunk["content"] for chunk in await place.chunks()] == ["Gold is soft."]
    assert (await place.counters())[::2] == (1, 1)


async def test_a_run_that_no_worker_began_leaves_nothing_to_sweep(api: Server, place: Place) -> None:
    await place.start()
    await place.stop()
    assert await api.parts.session.read(lambda: Task.select().count()) == 0


@pytest.mark.parametrize(("change", "call"), [({"enabled": 0}, "set_available"), ({"name": "air.txt"}, "replace")])
async def test_a_change_of_a_document_that_broke_off_is_made_whole_when_it_is_sent_again(api: Server, change, call) -> None:
    """The row is changed before the chunks, which are in another store."""
    dataset = await api.dataset()
    document = await api.document(dataset)
    await api.call("POST", f"/datasets/{dataset}/documents/{document}/chunks", {"content": "hello world"})
    store: Any = api.parts.store
    works = getattr(store, call)

    def breaks_off(*_: object, **__: object) -> None:
        raise Unavailable("the chunk store does not answer")

    setattr(store, call, breaks_off)
    assert (await api.call("PUT", f"/datasets/{dataset}/documents/{document}", change)).status == 503
    setattr(store, call, works)
    assert (await api.call("PUT", f"/datasets/{dataset}/documents/{document}", change)).status == 200
    (chunk,) = store.list(api.tenant, document)[1]
    assert (chunk.available, chunk.document_name) == ("enabled" not in change, change.get("name", "water.txt"))


# ---------------------------------------------------------------------------------------------------- a store that fails meanwhile
class Broken:
    """The chunk store, whose deletes fail inside of the block, as when it does not answer."""

    def __init__(self, api: Server) -> None:
        self._store: Any = api.parts.store

    def __enter__(self) -> None:
        def fails(*_: object) -> int:
            raise Unavailable("the chunk store does not answer")

        self._store.delete = fails

    def __exit__(self, *_: object) -> None:
        del self._store.delete


async def due(api: Server) -> None:
    """Let every hold run out."""
    await api.parts.session.write(lambda: Task.update(due_at=0).execute())


async def test_no_old_chunk_outlives_a_start_whose_drop_failed(api: Server, place: Place) -> None:
    await api.call("POST", place.path, {"content": "Gold is soft."})
    before = {chunk["id"] for chunk in await place.chunks()}
    with Broken(api):
        assert (await place.start()).status == 200  # accepted: it will be parsed
    assert await api.work() == 0  # and not before the old chunks are gone
    await due(api)
    assert await api.work() == 2
    after = {chunk["id"] for chunk in await place.chunks()}
    assert (len(after), after & before) == (2, set())
    assert (await place.counters())[::2] == (2, 2)
    assert (await api.listed(place.dataset, place.document))["run"] == "DONE"


@pytest.mark.parametrize("versions", ["parsed", "added"])
async def test_no_old_chunk_outlives_a_change_of_method_whose_drop_failed(api: Server, versions: str) -> None:
    dataset = await api.dataset()
    place = Place(api, dataset, await (api.parsed(dataset) if versions == "parsed" else api.document(dataset)))
    await api.call("POST", place.path, {"content": "Gold is soft."})
    with Broken(api):
        assert (await api.call("PUT", f"{place.documents}/{place.document}", {"chunk_method": "qa"})).status == 503
        assert (await place.start()).status == 200
    assert await api.work() == 0
    await due(api)
    assert await api.work() == 2
    assert sorted(chunk["content"] for chunk in await place.chunks()) == ["Iron melts.", "Water boils."]
    assert (await place.counters())[::2] == (2, 2)


async def test_the_chunks_of_a_stop_that_failed_are_dropped_by_a_worker(api: Server, place: Place) -> None:
    with Broken(api):
        await place.start()
        assert (await place.stop()).status == 503
    await due(api)
    assert await api.work() == 1
    assert (stored(api), await place.counters()) == (0, (0, 0, 0, 0))
    assert (await api.listed(place.dataset, place.document))["run"] == "CANCEL"


async def test_nothing_is_added_that_would_go_with_the_old_chunks(api: Server, place: Place) -> None:
    with Broken(api):
        await place.start()
    answer = await api.call("POST", place.path, {"content": "Gold is soft."})
    assert (answer.status, answer.body["message"]) == (503, "the document's old chunks are still being removed")
    await due(api)
    await api.work()
    await api.call("POST", place.path, {"content": "Gold is soft."})
    assert (await place.counters())[::2] == (3, 3)


@pytest.mark.parametrize("which", ["start", "stop", "stop before a start"])
async def test_a_drop_that_comes_after_all_takes_nothing_that_was_added_since(api: Server, place: Place, which: str) -> None:
    """The server that should have dropped the old chunks stood still meanwhile, and a worker or a later drop did it."""
    late: list[Any] = []

    def stands_still(*arguments: Any) -> int:
        late.append(arguments)
        raise Unavailable("the chunk store does not answer")

    store: Any = api.parts.store
    if which != "start":
        await place.start()
    store.delete = stands_still
    await (place.start() if which == "start" else place.stop())
    del store.delete
    if which == "stop before a start":
        await place.start()
    await due(api)
    await api.work()
    await api.call("POST", place.path, {"content": "Gold is soft."})
    before = await place.chunks()
    assert store.delete(*late.pop()) == 0
    assert (await place.chunks(), len(before)) == (before, 1 if which == "stop" else 3)


async def test_what_was_added_after_a_drop_goes_with_the_next(api: Server, place: Place) -> None:
    await api.call("POST", place.path, {"content": "Gold is soft."})
    for _ in range(2):
        await place.start()
        await place.stop()
        assert (stored(api), await place.counters()) == (0, (0, 0, 0, 0))
        await api.call("POST", place.path, {"content": "Gold is soft."})
    await place.start()
    await api.work()
    assert sorted(chunk["content"] for chunk in await place.chunks()) == ["Iron melts.", "Water boils."]


# ---------------------------------------------------------------------------------------------------- while the data is being moved
@pytest.mark.parametrize("method", ["one", "some", "document", "delete", "delete all", "start"])
async def test_nothing_changes_a_chunk_where_nothing_may_be_written(api: Server, place: Place, method: str) -> None:
    chunk = (await place.chunks())[0]["id"]

    def held() -> None:
        raise WritesHeld("the data is being moved", 10)

    api.parts.session._guard = held
    before = api.parts.store.list(api.tenant, place.document)
    answer = await {
        "one": lambda: api.call("PATCH", f"{place.path}/{chunk}", {"available": 0}),
        "some": lambda: api.call("PATCH", place.path, {"chunk_ids": [chunk], "available_int": 0}),
        "document": lambda: api.call("PATCH", f"{place.documents}/{place.document}", {"enabled": 0}),
        "delete": lambda: api.call("DELETE", place.path, {"chunk_ids": [chunk]}),
        "delete all": lambda: api.call("DELETE", place.path, {"delete_all": True}),
        "start": place.start,
    }[method]()
    assert (answer.status, api.parts.store.list(api.tenant, place.document)) == (503, before)
