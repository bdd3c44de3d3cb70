"""Moving an installation to other parts and back: what arrives is what left, and nothing else is ever touched."""

import fcntl
import io
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.keys import open_session
from api.migrate import chunks
from api.migrate.checks import wipe
from api.migrate.move import cancel, forget, move
from api.migrate.mover import Mover
from api.migrate.progress import Progress
from api.migrate.side import Side
from api.places import places_of
from db.models import Conversation, Dataset, Dialog, Document, DocumentMetadata, Message, Move, SchemaVersion, Task, Tenant
from db.services import conversation_service, metadata_rows, move_service, tenant_service
from db.transfer import TABLES, Tables
from rag.errors import Conflict, MillraceError, SettingsError, Unavailable, WritesHeld
from rag.settings import ModelSettings, Settings
from rag.store.memory import MemoryStore
from rag.threads import Lane
from rag.types import Chunk, ChunkTerms, SearchRequest, StoredChunk, Term
from tests.services import mariadb, postgres
from tests.services.missing import missing
from tests.services.s3 import BUCKET, MISSING, REGION, S3, is_installed, s3

MODEL = "all-MiniLM-L6-v2@Local"
SPACE = "model/8"
EMOJI = "\U0001f600 \U00020bb7 中文 naïve "
CHUNKS = 130


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    if not postgres.installed():
        missing(f"not installed: {postgres.INSTALL}")
    with postgres.postgres() as server:
        yield server


@pytest.fixture(scope="module")
def mariadb_server() -> Iterator[mariadb.MariaServer]:
    if not mariadb.installed():
        missing(f"not installed: {mariadb.INSTALL}")
    with mariadb.mariadb() as server:
        yield server


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    if not is_installed():
        missing(MISSING)
    with s3(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(params=["postgresql", "mysql"])
def big(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of the big parts, all of them empty."""
    server = request.getfixturevalue("postgres_server" if request.param == "postgresql" else "mariadb_server")
    return grown(server, request.getfixturevalue("elasticsearch_node"), request.getfixturevalue("bucket"), tmp_path, monkeypatch)


def grown(server: Any, node: Any, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", bucket.keys["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", bucket.keys["secret_access_key"])
    name = uuid.uuid4().hex
    return Settings(
        data_dir=tmp_path / "big", database_url=server.create_database(f"m{name[:12]}"), store="elasticsearch",
        elasticsearch_hosts=node.url, elasticsearch_index_prefix=f"m{name}-", blob_url=f"s3://{BUCKET}/{name}",
        blob_endpoint=bucket.endpoint, blob_region=REGION,
    )  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Settings:
    """Settings of an installation with embedded parts that has seen some use."""
    settings = Settings(data_dir=tmp_path / "small")
    fill(settings)
    return settings


@pytest.fixture
def other(tmp_path: Path) -> Settings:
    """Settings of embedded parts elsewhere, all of them empty."""
    return Settings(data_dir=tmp_path / "other")


class Quiet(Progress):
    def __init__(self) -> None:
        self.out = io.StringIO()
        super().__init__(self.out)


@dataclass(frozen=True, slots=True)
class Seen:
    """All that an installation holds."""

    rows: dict[str, Any]
    chunks: dict[str, list[bytes]]
    files: dict[str, bytes]


def fill(settings: Settings, tenants: int = 3) -> None:
    """Some tenants, the last of them without vectors, with chats and sessions; and one tenant that has nothing."""
    with ExitStack() as stack:
        side = Side(settings, "test", stack)
        side.prepare_database()
        for number in range(tenants):
            tenant_id, rows = side.write(make_tenant, number)
            for document_id, key in rows:
                side.blobs.put(key, io.BytesIO(f"{key} {EMOJI}".encode() * 1000))
                made = [make_chunk(document_id, position, number) for position in range(CHUNKS)]
                vectors = np.random.default_rng(number).normal(size=(CHUNKS, 8)).astype(np.float32)
                side.store.put(tenant_id, made, None if number == tenants - 1 else vectors, SPACE)
        side.write(tenant_service.ensure_tenant, "nothing")
        side.write(lambda: tenant_service.create_key(tenant_service.ensure_tenant("tenant 0").id))


def make_tenant(number: int) -> tuple[str, list[tuple[str, str]]]:
    tenant = tenant_service.ensure_tenant(f"tenant {number}")
    dataset = Dataset.create(
        tenant_id=tenant.id, created_by=tenant.id, name=f"Data {EMOJI}{number}", name_key=f"data {number}", embedding_model=MODEL,
        parser_config={"n": [1, 2.5, None, EMOJI]}, chunk_count=CHUNKS, similarity_threshold=0.1 + number / 3,
    )  # fmt: skip
    documents = []
    for place in range(2):
        document = Document.create(
            tenant_id=tenant.id, dataset_id=dataset.id, created_by=tenant.id, name=f"{EMOJI}{place}.txt", name_key=f"{place}", type="doc",
            location="", run="DONE", enabled=bool(place), meta_fields={"year": 2020 + place, "who": EMOJI},
        )  # fmt: skip
        metadata_rows.put([(document.id, dataset.id, document.meta_fields)])
        key = f"{tenant.id}/{document.id}"
        Document.update(location=key).where(Document.id == document.id).execute()
        documents.append((document.id, key))
    dialog = Dialog.create(tenant_id=tenant.id, name="Chat", name_key="chat", dataset_ids=[dataset.id], prompt_config={"system": EMOJI})
    talk = Conversation.create(tenant_id=tenant.id, dialog_id=dialog.id, name=EMOJI)
    for position in range(5):
        reference = {"chunks": [{"id": "1"}]} if position % 2 else None
        Message.create(
            conversation_id=talk.id, position=position, role="user", content=EMOJI * 50 + "\n'\"\\%s ", reference=reference, created_at=1.1
        )
    Task.create(kind="purge", tenant_id=tenant.id, dataset_id=dataset.id, document_id=uuid.uuid4().hex, due_at=1)
    return tenant.id, documents


def make_chunk(document_id: str, position: int, number: int) -> Chunk:
    text = f"word{position} of tenant{number} {EMOJI}" + "often " * (position % 7)
    return Chunk(
        uuid.uuid4().hex[:16], "d" * 32, document_id, "name", text, ChunkTerms(content=text.lower()), version=1, position=position,
        headings=("One",), tags=("t",), positions=((1, 2, 3, 4, 5),), created_at=1763687654.123456 + position,
        extra={"a": [1, {"b": EMOJI}]},
    )  # fmt: skip


def seen(settings: Settings) -> Seen:
    with ExitStack() as stack:
        side = Side(settings, "test", stack)
        rows = {model.__name__: [row for page in side.tables.pages(model) for row in page] for model in TABLES}
        stored = {
            tenant_id: [chunks.fingerprint(item) for page in side.store.scan(tenant_id) for item in page] for tenant_id in side.tenants()
        }
        files = {}
        for _, key in side.documents():
            with side.blobs.open(key) as file:
                files[key] = file.read()
        return Seen(rows, stored, files)


def search(settings: Settings) -> list[list[int]]:
    """The ten best chunks for some questions, of every tenant."""
    found = []
    with ExitStack() as stack:
        side = Side(settings, "test", stack)
        for tenant_id in side.tenants():
            for number in range(5):
                vector = np.random.default_rng(100 + number).normal(size=8).astype(np.float32)
                vector /= np.linalg.norm(vector)
                terms = (Term(f"word{number}"), Term("often"))
                hits = side.store.search(SearchRequest(tenant_id, ("d" * 32,), terms=terms, vector=vector, space=SPACE))
                score = hits.text_scores + np.nan_to_num(hits.vector_scores)
                best = sorted(zip((-score).round(3).tolist(), hits.ids.tolist(), strict=True))[:10]
                found.append([chunk_id for _, chunk_id in best])
    return found


def state_of(settings: Settings) -> move_service.MoveState:
    with ExitStack() as stack:
        return Side(settings, "test", stack).state


def test_all_of_it_arrives_at_the_big_parts_and_comes_back(small: Settings, big: Settings, other: Settings) -> None:
    (small.data_dir / "api_key").write_text("a key")
    before, answers = seen(small), search(small)
    moved = move(small, big, Quiet())
    assert (moved.chunks, moved.files, moved.lost) == (3 * 2 * CHUNKS, 6, ())
    assert moved.rows == sum(map(len, before.rows.values()))
    assert seen(big) == before
    assert search(big) == answers
    assert (big.data_dir / "api_key").read_text() == "a key"
    assert (state_of(small).state, state_of(big).state) == ("moved", "open")
    again = move(big, other, Quiet())
    assert (again.chunks, again.digest) == (moved.chunks, moved.digest)
    assert seen(other) == before == seen(small)
    assert search(other) == answers


def test_only_what_differs_is_moved(small: Settings, elasticsearch_node) -> None:
    before, answers = seen(small), search(small)
    target = small.model_copy(update={
        "store": "elasticsearch", "elasticsearch_hosts": elasticsearch_node.url, "elasticsearch_index_prefix": f"m{uuid.uuid4().hex}-",
    })  # fmt: skip
    moved = move(small, target, Quiet())
    assert (moved.parts, moved.rows, moved.chunks, moved.files) == (("chunks",), 0, 3 * 2 * CHUNKS, 0)
    assert seen(target) == before
    assert search(target) == answers
    with pytest.raises(Conflict, match="moved away from these places"):
        move(small, target, Quiet())
    with writing(small) as write, pytest.raises(WritesHeld, match="moved to elasticsearch"):
        write()
    with writing(target) as write:
        write()
    forget(small, Quiet())
    assert not any(seen(small).chunks.values())
    assert before.chunks.items() <= seen(target).chunks.items()
    move(target, small, Quiet())
    assert before.chunks.items() <= seen(small).chunks.items()
    with writing(small) as write:
        write()


class writing:
    """A write as a server with these settings makes it."""

    def __init__(self, settings: Settings) -> None:
        self.lane = Lane("db", threads=1, queue_limit=1)
        self.session = open_session(settings, self.lane)

    def __enter__(self) -> Callable[[], Any]:
        return lambda: self.session.write_now(lambda: Tenant.create(name=uuid.uuid4().hex))

    def __exit__(self, *_: object) -> None:
        self.session.close()
        self.lane.close()


class Killed(BaseException):
    """What `kill -9` is to a process, as far as one process can play it."""


def run(source: Settings, target: Settings, *, dies_after: int | None = None, clock: Callable[[], float] = lambda: 0.0) -> int:
    """One run of a move that ends after so many marks or pages of progress; how many there were."""
    ticks = 0

    class Counting(Quiet):
        def add(self, count: int) -> None:
            nonlocal ticks
            ticks += 1
            if ticks == dies_after:
                raise Killed
            super().add(count)

    with ExitStack() as stack:
        Mover(Side(source, "the source", stack), Side(target, "the target", stack), Counting(), clock=clock).run()
    return ticks


def test_a_move_that_dies_anywhere_goes_on_and_doubles_nothing(small: Settings, tmp_path: Path) -> None:
    before = seen(small)
    steps = run(small, Settings(data_dir=tmp_path / "whole"))
    move(Settings(data_dir=tmp_path / "whole"), Settings(data_dir=tmp_path / "0"), Quiet())
    rising = iter(range(0, 1_000_000, 3))  # every mark of progress is written down
    for number, dies_after in enumerate(range(1, steps + 1, max(1, steps // 5))):
        source, target = Settings(data_dir=tmp_path / str(number)), Settings(data_dir=tmp_path / str(number + 1))
        with pytest.raises(Killed):
            run(source, target, dies_after=dies_after, clock=lambda: float(next(rising)))
        assert state_of(source).state == "held"
        run(source, target)
        assert seen(target) == before
        assert (state_of(source).state, state_of(target).state) == ("moved", "open")


def test_a_move_that_broke_off_before_an_upgrade_goes_on_after_it(small: Settings, other: Settings) -> None:
    """The schema's step fills a table of both databases, each by itself, and the target's has not all documents yet."""
    before = seen(small)
    with pytest.raises(Killed):
        run(small, other, dies_after=24)

    def as_it_was() -> None:
        detail = {name: value for name, value in move_service.state().detail.items() if name != "schema"}
        Move.update(detail=detail).execute()
        SchemaVersion.delete().where(SchemaVersion.version >= 5).execute()
        DocumentMetadata.drop_table()

    with ExitStack() as stack:
        for settings in (small, other):
            Side(settings, "test", stack).write(as_it_was)
        last = max(row[0] for row in before.rows["Document"])
        Side(other, "test", stack).write(lambda: Document.delete().where(Document.id == last).execute())
    run(small, other)
    assert (state_of(small).state, state_of(other).state) == ("moved", "open")
    after = seen(other)
    assert after == seen(small)
    assert (after.chunks, after.files) == (before.chunks, before.files)
    rows = [{name: count for name, count in held.rows.items() if name != "DocumentMetadata"} for held in (before, after)]
    assert rows[0] == rows[1]
    assert len(after.rows["DocumentMetadata"]) == len(before.rows["DocumentMetadata"]) == 12


def test_a_switch_that_dies_between_its_two_marks_is_finished(small: Settings, other: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Mover, "_open_target", dies)
        with pytest.raises(Killed):
            run(small, other)
    assert (state_of(small).state, state_of(other).state) == ("moved", "filling")
    moved = move(small, other, Quiet())
    assert moved.chunks == 3 * 2 * CHUNKS
    assert state_of(other).state == "open"


def test_what_differs_after_copying_is_mended_before_the_switch(small: Settings, other: Settings) -> None:
    """A worker that had lost its task wrote once more, a copy that was killed left something: the comparison finds it."""
    before = seen(small)
    with pytest.raises(Killed):
        run(small, other, dies_after=24)
    with ExitStack() as stack:
        source, target = Side(small, "source", stack), Side(other, "target", stack)
        tenants = [tenant_id for tenant_id in source.tenants() if before.chunks[tenant_id]]
        (first, *_) = next(source.store.scan(tenants[0]))
        changed = replace(first, chunk=replace(first.chunk, content="another text"))
        target.store.load(tenants[0], [changed, StoredChunk(make_chunk("e" * 32, 0, 0))])
        source.store.load(tenants[1], [StoredChunk(make_chunk("f" * 32, 0, 0))])
    expected = {tenant_id: seen(small).chunks[tenant_id] for tenant_id in tenants}
    move(small, other, Quiet())
    arrived = seen(other).chunks
    assert {tenant_id: arrived[tenant_id] for tenant_id in tenants} == expected
    assert len(expected[tenants[1]]) == len(before.chunks[tenants[1]]) + 1


def test_stores_that_never_come_to_agree_stop_the_move() -> None:
    class Forgetful(MemoryStore):
        def load(self, tenant_id: str, stored: Any) -> None:
            super().load(tenant_id, list(stored)[1:])

    tenant_id, source = "a" * 32, MemoryStore()
    source.load(tenant_id, [StoredChunk(make_chunk("e" * 32, n, 0)) for n in range(3)])
    with pytest.raises(MillraceError, match="not the same in both stores, after 3 attempts"):
        chunks.compare(source, Forgetful(), tenant_id)


def test_while_it_moves_writes_are_held_and_reads_are_served(small: Settings, other: Settings) -> None:
    before, answers = seen(small), search(small)
    with pytest.raises(Killed):
        run(small, other, dies_after=20)
    with writing(small) as write, pytest.raises(WritesHeld, match="being moved to sqlite, embedded, folder") as held:
        write()
    assert held.value.retry_after_seconds == move_service.RETRY_SECONDS
    assert (seen(small), search(small)) == (before, answers)
    early = writing(other)
    with early, pytest.raises(Unavailable, match="still being moved to these parts"):
        early.session.read_now(move_service.check_complete, places_of(other).movable)
    with pytest.raises(Conflict, match="a move to sqlite, embedded, folder is under way"):
        move(small, Settings(data_dir=other.data_dir.parent / "third"), Quiet())
    cancel(small, Quiet())
    with writing(small) as write:
        write()
    with pytest.raises(Conflict, match="no move is under way"):
        cancel(small, Quiet())


def test_a_cancelled_move_leaves_nothing_that_the_next_one_trips_over(small: Settings, other: Settings) -> None:
    with pytest.raises(Killed):
        run(small, other, dies_after=30)
    cancel(small, Quiet())
    with ExitStack() as stack:
        side = Side(small, "test", stack)
        gone = next(iter(side.tenants()))
        side.write(lambda: [model.delete().where(model.tenant_id == gone).execute() for model in (Document, Dataset, Dialog)])
        wipe(side, ("chunks", "files"), [gone])
    before = seen(small)
    move(small, other, Quiet())
    assert seen(other) == before


def test_a_cancelled_move_of_one_part_leaves_nothing_either(small: Settings, tmp_path: Path, postgres_server) -> None:
    first = small.model_copy(update={"database_url": postgres_server.create_database(f"m{uuid.uuid4().hex[:12]}")})
    move(small, first, Quiet())
    target = first.model_copy(update={"data_dir": tmp_path / "moved"})
    before = seen(first)
    with pytest.raises(Killed):
        run(first, target, dies_after=5)
    cancel(first, Quiet())
    move(first, target, Quiet())
    assert seen(target) == before
    with writing(first) as write, pytest.raises(WritesHeld):
        write()


def test_what_is_in_the_way_is_said_before_anything_is_written(small: Settings, other: Settings, postgres_server, tmp_path: Path) -> None:
    before = seen(small)
    fill(other, tenants=1)
    filled = seen(other)
    name = f"m{uuid.uuid4().hex[:12]}"
    foreign = other.model_copy(update={"database_url": postgres_server.create_database(name)})
    with postgres_server.connect(name) as connection:
        connection.execute("CREATE TABLE accounts (id int)")
    empty = Settings(data_dir=tmp_path / "empty")
    closed = {"store": "elasticsearch", "elasticsearch_hosts": "http://127.0.0.1:9", "elasticsearch_timeout_seconds": 1.0}
    for target, error, said in (
        (small, SettingsError, "name the same places as the present ones"),
        (other, Conflict, "the target's file store is not empty|the target's database is not empty"),
        (foreign, Conflict, "holds tables of something else"),
        (empty.model_copy(update=closed), Unavailable, r"the target, chunks \(elasticsearch\): elasticsearch cannot be reached"),
        (empty.model_copy(update={"database_url": "postgresql://a:b@127.0.0.1:9/c"}), Unavailable, r"the target, database \(postgresql\)"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            move(small, target, Quiet())
        assert state_of(small).state == "open"
    assert seen(small) == before
    assert seen(other) == filled
    with postgres_server.connect(name) as connection:
        assert connection.execute("SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'").fetchone() == (1,)


def test_a_target_that_would_embed_questions_otherwise_is_refused(small: Settings, other: Settings) -> None:
    used = "embedder@vendor"
    with ExitStack() as stack:
        Side(small, "test", stack).write(lambda: Dataset.update(embedding_model=used).execute())
    model = ModelSettings(name="embedder", provider="vendor", kind="embedding", base_url="http://127.0.0.1:9", dimension=8)
    mine = small.model_copy(update={"models": [model]})
    with pytest.raises(SettingsError, match="lack the embedding model embedder@vendor"):
        move(mine, other, Quiet())
    for wrong in ({"dimension": 16}, {"document_prompt": "passage: "}):
        with pytest.raises(SettingsError, match="makes other vectors"):
            move(mine, other.model_copy(update={"models": [model.model_copy(update=wrong)]}), Quiet())
    assert state_of(small).state == "open"
    elsewhere = model.model_copy(update={"base_url": "http://127.0.0.1:10"})
    assert move(mine, other.model_copy(update={"models": [elsewhere]}), Quiet()).chunks == 3 * 2 * CHUNKS


def test_what_was_moved_away_is_removed_only_when_asked_and_only_there(small: Settings, other: Settings) -> None:
    before = seen(small)
    with pytest.raises(Conflict, match="nothing was moved away"):
        forget(small, Quiet())
    move(small, other, Quiet())
    assert seen(small) == before
    with pytest.raises(Conflict, match="nothing was moved away"):
        forget(other, Quiet())
    with pytest.raises(Conflict, match="not empty"):
        move(other, small, Quiet())
    forget(small, Quiet())
    assert seen(small).rows == {model.__name__: [] for model in TABLES}
    assert not [path for path in (small.data_dir / "blobs").rglob("*") if path.is_file()]
    with writing(small) as write, pytest.raises(WritesHeld):
        write()
    move(other, small, Quiet())
    assert seen(small) == before


def test_a_file_that_was_lost_before_stays_the_only_one_that_is_missing(small: Settings, other: Settings) -> None:
    with ExitStack() as stack:
        side = Side(small, "test", stack)
        documents = list(side.documents())
        side.blobs.delete(documents[0][1])
    moved = move(small, other, Quiet())
    assert (moved.files, moved.lost) == (5, (documents[0][0],))


def test_two_moves_of_one_directory_at_once_are_refused(small: Settings, other: Settings) -> None:
    with (small.data_dir / "migrate.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="another millrace migrate is at work"):
            move(small, other, Quiet())


def test_progress_says_part_share_speed_and_time_left() -> None:
    now = 0.0
    out = io.StringIO()
    progress = Progress(out, clock=lambda: now)
    progress.begin("chunks", "chunks", 100_000, before=10_000)
    now = 4.0
    progress.add(20_000)
    assert out.getvalue() == "chunks: 30,000 of 100,000 chunks (30 %), 5,000/s, 14 s left\n"


def test_a_session_of_a_moved_installation_reads_as_before(small: Settings, big: Settings) -> None:
    with ExitStack() as stack:
        side = Side(small, "test", stack)
        ids = side.read(lambda: [(row.tenant_id, row.id) for row in Conversation.select()])
        before = [side.read(conversation_service.get, *pair) for pair in ids]
        tokens = side.read(lambda: [key.token for tenant in tenant_service.list_tenants() for key in tenant_service.list_keys(tenant.id)])
    move(small, big, Quiet())
    with ExitStack() as stack:
        side = Side(big, "test", stack)
        assert [side.read(conversation_service.get, *pair) for pair in ids] == before
        assert all(side.read(tenant_service.find_key, token) for token in tokens)


def test_wide_rows_come_fewer_at_a_time(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "wide")
    with ExitStack() as stack:
        side = Side(settings, "test", stack)
        side.prepare_database()
        wide = "x" * 100_000
        side.write(lambda: [Message.create(conversation_id="c", position=n, role="user", content=wide) for n in range(520)])
        sizes = [len(page) for page in Tables.pages(side.tables, Message)]
    assert sizes[0] == 500
    assert max(sizes[1:]) < 50
    assert sum(sizes) == 520
