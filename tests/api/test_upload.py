"""POST /datasets/{d}/documents: files from a multipart body into the blob store (contract, 4.1)."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import xxhash

from api.asgi import BUFFERED_BYTES
from api.upload import WRITTEN_BYTES, Uploader
from db.models import Task
from db.services import document_service
from rag.errors import OutcomeUnknown, Unavailable
from tests.api.conftest import Server, multipart


async def post(api: Server, dataset: str, *parts: tuple[str, str | None, bytes], query: str = "") -> Any:
    body, content_type = multipart(*parts)
    return await api.call("POST", f"/datasets/{dataset}/documents{query}", data=body, headers={"Content-Type": content_type})


def files_of(api: Server) -> list[Any]:
    return [path for path in (api.parts.settings.data_dir / "blobs").rglob("*") if path.is_file()]


async def tasks_of(api: Server) -> int:
    return await api.parts.session.read(lambda: Task.select().count())


async def nothing() -> None:
    pass


async def test_several_files_become_documents_in_order(api: Server) -> None:
    dataset = await api.dataset()
    answer = await api.upload(dataset, ("a.txt", b"one"), ("A.txt", b"two"), ("empty.md", b""), ("we'ird <name>&.pdf", b"%PDF-"))
    assert [item["name"] for item in answer.data] == ["a.txt", "A(1).txt", "empty.md", "we'ird <name>&.pdf"]
    assert [item["size"] for item in answer.data] == [3, 3, 0, 5]
    assert [item["type"] for item in answer.data] == ["doc", "doc", "doc", "pdf"]
    assert answer.data[0]["content_hash"] == xxhash.xxh128_hexdigest(b"one")
    assert answer.data[0]["parser_config"]["chunk_token_num"] == 512
    assert {item["run"] for item in answer.data} == {"UNSTART"}
    assert (await api.call("GET", f"/datasets/{dataset}")).data["document_count"] == 4
    assert len(files_of(api)) == 4
    assert await tasks_of(api) == 0


async def test_fields_may_come_after_the_files(api: Server) -> None:
    dataset = await api.dataset()
    config = b'{"table_column_mode":"manual","table_column_roles":{"a":"both"},"chunk_token_num":1}'
    parts = (("file", "a.csv", b"x"), ("parent_path", None, b"/in/../here/"), ("parser_config", None, config))
    data = (await post(api, dataset, *parts)).data[0]
    assert data["location"] == "in/here/a.csv"
    assert (data["parser_config"]["table_column_mode"], data["parser_config"]["table_column_roles"]) == ("manual", {"a": "both"})
    assert data["parser_config"]["chunk_token_num"] == 512


async def test_raw_answers_keep_the_tables_own_keys(api: Server) -> None:
    dataset = await api.dataset()
    data = (await post(api, dataset, ("file", "a.txt", b"x"), query="?return_raw_files=true")).data[0]
    assert (data["kb_id"], data["parser_id"], data["run"], data["chunk_num"]) == (dataset, "naive", "0", 0)


@pytest.mark.parametrize(
    ("parts", "query", "outcome"),
    [
        ([("file", "a.txt", b"x")], "?type=ftp", (101, 400, '`type` must be one of "local", "web", or "empty".')),
        ([("other", None, b"x")], "", (101, 400, "No file part!")),
        ([("upload", "a.txt", b"x")], "", (101, 400, "No file part!")),
        ([], "", (101, 400, "No file part!")),
        ([("file", "", b"x")], "", (101, 400, "No file selected!")),
        ([("file", "a.txt", b"x"), ("file", "", b"x")], "", (101, 400, "No file selected!")),
        ([("file", "ä" * 126 + ".txt", b"x")], "", (101, 400, "File name must be 255 bytes or less.")),
        ([("file", "a.exe", b"x")], "", (500, 415, "a.exe: This type of file has not been supported yet!")),
        ([("file", "noextension", b"x")], "", (500, 415, "noextension: This type of file has not been supported yet!")),
    ],
)
async def test_an_upload_that_does_not_fit_stores_nothing(
    api: Server, parts: list[tuple[str, str | None, bytes]], query: str, outcome: tuple[int, int, str]
) -> None:
    dataset = await api.dataset()
    assert (await post(api, dataset, *parts, query=query)).outcome == outcome
    assert files_of(api) == []
    assert await tasks_of(api) == 0
    assert (await api.call("GET", f"/datasets/{dataset}")).data["document_count"] == 0


async def test_good_files_are_stored_beside_refused_ones(api: Server) -> None:
    dataset = await api.dataset()
    answer = await api.upload(dataset, ("a.exe", b"x"), ("good.txt", b"y"), ("b.dll", b"z"))
    lines = [f"{name}: This type of file has not been supported yet!" for name in ("a.exe", "b.dll")]
    assert answer.outcome == (500, 415, "\n".join(lines))
    assert [item["name"] for item in answer.body["data"]] == ["good.txt"]
    assert len(files_of(api)) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"no boundary at all",
        b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\ncut off',
        b"--frontier\r\nContent-Type: text/plain\r\n\r\nx\r\n--frontier--\r\n",
        b'--frontier\r\nContent-Disposition: form-data; name="file"; filename="\xff"\r\n\r\nx\r\n--frontier--\r\n',
    ],
)
async def test_a_broken_body_is_an_error_and_leaves_nothing(api: Server, body: bytes) -> None:
    dataset = await api.dataset()
    headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
    answer = await api.call("POST", f"/datasets/{dataset}/documents", data=body, headers=headers)
    assert answer.outcome == (101, 400, "the multipart body is malformed")
    assert files_of(api) == []
    assert await tasks_of(api) == 0


async def test_endless_part_headers_are_refused(api: Server) -> None:
    dataset = await api.dataset()
    headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
    body = b"--frontier\r\nContent-Disposition: form-data; " + b"x" * (2 << 20)
    answer = await api.call("POST", f"/datasets/{dataset}/documents", data=body, headers=headers)
    assert answer.outcome == (101, 413, "the multipart body has too many or too long part headers")


async def test_a_body_that_is_not_multipart_has_no_file_part(api: Server) -> None:
    dataset = await api.dataset()
    assert (await api.call("POST", f"/datasets/{dataset}/documents", {"file": "x"})).outcome == (101, 400, "No file part!")


class TestLimit:
    @pytest.fixture
    def server_settings(self, server_settings: dict[str, Any]) -> dict[str, Any]:
        return server_settings | {"max_upload_bytes": 3 << 20}

    @pytest.mark.parametrize("size", [(3 << 20) + 1, 12 << 20])
    async def test_a_file_over_the_limit_is_refused_and_leaves_nothing(self, api: Server, size: int) -> None:
        dataset = await api.dataset()
        answer = await api.upload(dataset, ("small.txt", b"x"), ("large.txt", b"x" * size))
        assert answer.outcome == (101, 413, "the file exceeds 3145728 bytes")
        assert files_of(api) == []
        assert await tasks_of(api) == 0

    async def test_a_file_of_the_limit_is_taken(self, api: Server) -> None:
        dataset = await api.dataset()
        assert (await api.upload(dataset, ("large.txt", b"x" * (3 << 20)))).data[0]["size"] == 3 << 20


async def test_a_large_file_arrives_as_it_was_sent(api: Server) -> None:
    dataset = await api.dataset()
    content = b"".join(b"%08d\r\n--frontie\r\n" % number for number in range(800_000))
    data = (await api.upload(dataset, ("large.txt", content))).data[0]
    assert (data["size"], data["content_hash"]) == (len(content), xxhash.xxh128_hexdigest(content))
    assert (await api.call("GET", f"/datasets/{dataset}/documents/{data['id']}")).body == content


async def test_a_client_that_goes_away_leaves_nothing(api: Server) -> None:
    dataset = await api.dataset()
    body, content_type = multipart(("file", "a.txt", b"x" * (5 << 20)))
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    for start in range(0, 3 << 20, 1 << 16):
        messages.put_nowait({"type": "http.request", "body": body[start : start + (1 << 16)], "more_body": True})
    path = f"/api/v1/datasets/{dataset}/documents"
    request = asyncio.ensure_future(api.app(scope(api, "POST", path, content_type), messages.get, lambda _: nothing()))
    await until(lambda: files_of(api))  # the file is coming in
    messages.put_nowait({"type": "http.disconnect"})
    await request
    assert files_of(api) == []
    assert await tasks_of(api) == 0
    assert (await api.call("GET", f"/datasets/{dataset}")).data["document_count"] == 0


async def test_a_fast_client_waits_for_a_slow_reader(api: Server) -> None:
    """The server stops receiving while its buffer is full."""
    received = 0
    reading = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b"x" * (1 << 16), "more_body": True}

    @api.app.before_request
    async def hold() -> None:
        await reading.wait()

    request = asyncio.ensure_future(api.app(scope(api, "POST", "/api/v1/retrieval", "text/plain"), receive, lambda _: nothing()))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert received == BUFFERED_BYTES >> 16
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request


class Pieces:
    """A store that remembers how large the pieces were; full after `room` of them."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.sizes: list[int] = []
        self.aborted = False

    def writer(self, _: str) -> "Pieces":
        return self

    def write(self, data: bytes) -> None:
        if len(self.sizes) == self.room:
            raise Unavailable("the file cannot be stored: no space left on device")
        self.sizes.append(len(data))

    def commit(self) -> int:
        return sum(self.sizes)

    def abort(self) -> None:
        self.aborted = True


async def pieces(number: int) -> AsyncIterator[bytes]:
    for _ in range(number):
        yield b"x" * (1 << 16)


async def test_a_store_that_fails_in_the_middle_fails_the_upload(api: Server) -> None:
    store = Pieces(room=2)
    with pytest.raises(Unavailable, match="no space left"):
        await Uploader(store, api.parts.lanes.blob, 1 << 30).store("key", pieces(512), nothing)  # type: ignore[arg-type]
    assert store.aborted


async def test_a_large_file_is_never_whole_in_memory(api: Server) -> None:
    store = Pieces()
    stored = await Uploader(store, api.parts.lanes.blob, 1 << 30).store("key", pieces(512), nothing)  # type: ignore[arg-type]
    assert stored.size == sum(store.sizes) == 32 << 20
    assert max(store.sizes) <= WRITTEN_BYTES + (1 << 16)


async def test_slow_uploads_hold_no_thread(api: Server) -> None:
    """Twice as many clients as threads are silent in the middle of a large file: other large files go through."""
    going_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        await going_on.wait()

    uploader = Uploader(api.parts.blobs, api.parts.lanes.blob, 1 << 30)
    uploads = [asyncio.ensure_future(uploader.store(f"slow/{number}", slow(), nothing)) for number in range(8)]
    await until(lambda: len(files_of(api)) == 8)
    async with asyncio.timeout(10):
        assert (await uploader.store("large", pieces(64), nothing)).size == 4 << 20
    going_on.set()
    assert [stored.size for stored in await asyncio.gather(*uploads)] == [2 << 20] * 8


@pytest.mark.parametrize("path", ["/datasets/{}/documents", "/chat/completions"])
async def test_a_body_that_stalls_is_given_up_and_leaves_nothing(api: Server, path: str) -> None:
    dataset = await api.dataset()
    object.__setattr__(api.parts, "settings", api.parts.settings.model_copy(update={"request_timeout_seconds": 0.05}))
    body, content_type = multipart(("file", "a.txt", b"x" * 1000))
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": body[:900], "more_body": True})
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)
        if event["type"] == "http.response.body":
            messages.put_nowait({"type": "http.disconnect"})

    await api.app(scope(api, "POST", f"/api/v1{path.format(dataset)}", content_type), messages.get, send)
    assert sent[0]["status"] == 408
    assert b"the request body was silent for 0.05 seconds" in b"".join(event.get("body", b"") for event in sent)
    assert files_of(api) == []


async def test_a_pledge_is_kept_alive_while_a_slow_client_sends_little(api: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = 0

    async def keep() -> None:
        nonlocal kept
        kept += 1

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x"

    monkeypatch.setattr("api.upload.KEEP_ALIVE_SECONDS", -1.0)
    await Uploader(api.parts.blobs, api.parts.lanes.blob, 1 << 30).store("little", slow(), keep)
    assert kept == 3


async def test_a_server_that_dies_leaves_a_pledge_that_a_worker_keeps(api: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = await api.dataset()

    class Died(BaseException):
        pass

    async def die(*_: Any) -> None:
        raise Died

    monkeypatch.setattr("api.intake.Intake.keep", die)
    monkeypatch.setattr("api.intake.Intake._undo", nothing_at_all)
    body, content_type = multipart(("file", "a.txt", b"x"))
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": body, "more_body": False})
    with pytest.raises(Died):
        await api.app(scope(api, "POST", f"/api/v1/datasets/{dataset}/documents", content_type), messages.get, lambda _: nothing())
    assert len(files_of(api)) == 1
    assert await api.work() == 0  # not before its time
    await api.parts.session.write(lambda: Task.update(due_at=0).execute())
    assert await api.work() == 1
    assert files_of(api) == []


@pytest.mark.parametrize("made", [True, False])
async def test_a_commit_without_an_answer_costs_no_document_its_file(api: Server, monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
    dataset = await api.dataset()
    write = api.parts.session.write

    async def falls_silent(service: Any, *arguments: Any, **named: Any) -> Any:
        if service is not document_service.add:
            return await write(service, *arguments, **named)
        if made:
            await write(service, *arguments, **named)
        raise OutcomeUnknown("the database fell silent while committing")

    monkeypatch.setattr(api.parts.session, "write", falls_silent)
    assert (await api.upload(dataset, ("a.txt", b"kept"))).status == 503
    monkeypatch.undo()
    documents = (await api.call("GET", f"/datasets/{dataset}/documents")).data["docs"]
    assert len(documents) == made
    assert len(files_of(api)) == 1
    await api.parts.session.write(lambda: Task.update(due_at=0).execute())
    assert await api.work() == (not made)  # nobody's file goes with its pledge
    assert len(files_of(api)) == made


async def test_parallel_uploads_keep_names_and_counts(api: Server) -> None:
    dataset = await api.dataset()
    answers = await asyncio.gather(*(api.upload(dataset, ("same.txt", b"x")) for _ in range(100)))
    names = {answer.data[0]["name"] for answer in answers}
    assert len(names) == 100
    assert all(re.fullmatch(r"same(\(\d+\))?\.txt", name) for name in names)
    assert (await api.call("GET", f"/datasets/{dataset}")).data["document_count"] == 100


async def until(condition: Any) -> None:
    """Let others run until it holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for happens on another thread
            await asyncio.sleep(0)


async def nothing_at_all(_: Any) -> None:
    pass


def scope(api: Server, method: str, path: str, content_type: str) -> dict[str, Any]:
    headers = [(b"host", b"x"), (b"authorization", f"Bearer {api.key}".encode()), (b"content-type", content_type.encode())]
    return {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path, "query_string": b"",
        "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "extensions": {}, "asgi": {},
    }  # fmt: skip
