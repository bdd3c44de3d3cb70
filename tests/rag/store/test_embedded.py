"""Damage, other versions, full and read-only disks, and the upkeep of the embedded store."""

import json
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from rag.errors import InvalidArgument, Unavailable
from rag.store import leader as leader_module
from rag.store import record_check
from rag.store.embedded import EmbeddedStore
from rag.store.tenant import Tenant
from rag.store.text import TextIndex
from rag.types import Chunk, ChunkSelector, ChunkTerms, SearchRequest, Term

TENANT = "a" * 32
COUNT = 300


def make(number: int, text: str = "", dataset: str = "d1") -> Chunk:
    return Chunk(f"{number:016x}", dataset, f"doc{number // 100}", "n", text, ChunkTerms(content=text or f"all w{number}"))


def vectors(count: int = COUNT, seed: int = 3) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fill(folder: Path) -> None:
    store = EmbeddedStore(folder)
    store.put(TENANT, [make(n) for n in range(COUNT)], vectors(), "s")
    store.close()


def ask(store: EmbeddedStore, number: int):
    return store.search(
        SearchRequest(TENANT, ("d1",), terms=(Term(f"w{number}"),), vector=vectors()[number], space="s", text_k=3, vector_k=1)
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll for what a background thread does; fails after 20 s."""
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not happen")


def assert_recovers(store: EmbeddedStore) -> None:
    """Searches answer from the arm that is left, say so, and come to full health by themselves."""
    first = ask(store, 42)
    assert first.degraded == () or first.ids.tolist() in ([42], [])
    wait_until(lambda: ask(store, 42).degraded == ())
    store.flush(TENANT)
    for number in (0, 42, 299):
        hits = ask(store, number)
        assert hits.ids.tolist() == [number]
        assert hits.text_scores[0] > 0
        assert hits.vector_scores[0] == pytest.approx(1.0, abs=2e-3)
    assert len(store.search(SearchRequest(TENANT, ("d1",), terms=(Term("all"),))).ids) == COUNT
    wait_until(lambda: store.health()["status"] == "green")


def text_folder(folder: Path) -> Path:
    return max((folder / TENANT / "text").iterdir(), key=lambda path: path.stat().st_ctime_ns)


def vector_file(folder: Path) -> Path:
    return next((folder / TENANT / "vectors").iterdir())


def overwrite(path: Path, where: float, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * where))
        file.write(data)


def segment_file(folder: Path, suffix: str) -> Path:
    index = text_folder(folder)
    segment = json.loads((index / "meta.json").read_text())["segments"][0]["segment_id"].replace("-", "")
    return index / f"{segment}.{suffix}"


TEXT_DAMAGE = {
    "folder missing": lambda folder: shutil.rmtree(folder / TENANT / "text"),
    "folder empty": lambda folder: [path.unlink() for path in text_folder(folder).iterdir()],
    "meta missing": lambda folder: (text_folder(folder) / "meta.json").unlink(),
    "meta garbage": lambda folder: (text_folder(folder) / "meta.json").write_bytes(os.urandom(500)),
    "meta empty": lambda folder: (text_folder(folder) / "meta.json").write_bytes(b""),
    "meta of another schema": lambda folder: (text_folder(folder) / "meta.json").write_text(
        (text_folder(folder) / "meta.json").read_text().replace('"keywords"', '"tags"')
    ),
    "segment missing": lambda folder: segment_file(folder, "idx").unlink(),
    "segment truncated": lambda folder: os.truncate(segment_file(folder, "idx"), 20),
    "segment emptied": lambda folder: os.truncate(segment_file(folder, "fast"), 0),
    "postings garbage": lambda folder: overwrite(segment_file(folder, "idx"), 0.2, os.urandom(64)),
    "terms garbage": lambda folder: overwrite(segment_file(folder, "term"), 0.2, os.urandom(64)),
    "lengths garbage": lambda folder: overwrite(segment_file(folder, "fieldnorm"), 0.2, os.urandom(64)),
}
VECTOR_DAMAGE = {
    "folder missing": lambda folder: shutil.rmtree(folder / TENANT / "vectors"),
    "file missing": lambda folder: vector_file(folder).unlink(),
    "file empty": lambda folder: os.truncate(vector_file(folder), 0),
    "file truncated": lambda folder: os.truncate(vector_file(folder), 1001),
    "header garbage": lambda folder: overwrite(vector_file(folder), 0, os.urandom(16)),
    "vectors garbage": lambda folder: overwrite(vector_file(folder), 0.5, os.urandom(64)),
    "vectors zeroed": lambda folder: overwrite(vector_file(folder), 0.5, bytes(64)),
}


@pytest.mark.parametrize("damage", TEXT_DAMAGE)
def test_a_damaged_text_index_is_rebuilt_from_the_record(tmp_path: Path, damage: str):
    fill(tmp_path)
    TEXT_DAMAGE[damage](tmp_path)
    with closing(EmbeddedStore(tmp_path)) as store:
        assert_recovers(store)


@pytest.mark.parametrize("damage", VECTOR_DAMAGE)
def test_a_damaged_vector_file_is_rebuilt_from_the_record(tmp_path: Path, damage: str):
    fill(tmp_path)
    VECTOR_DAMAGE[damage](tmp_path)
    with closing(EmbeddedStore(tmp_path)) as store:
        first = ask(store, 42)
        assert first.degraded == ("vector",)
        assert first.ids.tolist() == [42]
        assert_recovers(store)


@pytest.mark.parametrize("damage", ["file missing", "file truncated"])
def test_a_vector_file_damaged_while_in_use_is_rebuilt(tmp_path: Path, damage: str):
    fill(tmp_path)
    with closing(EmbeddedStore(tmp_path)) as store:
        assert ask(store, 42).degraded == ()
        VECTOR_DAMAGE[damage](tmp_path)
        assert ask(store, 42).degraded == ("vector",)
        assert_recovers(store)


def test_a_text_index_removed_while_in_use_is_rebuilt(tmp_path: Path):
    fill(tmp_path)
    with closing(EmbeddedStore(tmp_path)) as store:
        assert ask(store, 42).degraded == ()
        (tmp_path / TENANT / "text").rename(tmp_path / "gone")  # at once: tantivy may be removing files of its own
        assert ask(store, 42).degraded == ("text",)
        assert_recovers(store)


def test_an_old_copy_of_the_text_index_is_noticed(tmp_path: Path):
    fill(tmp_path)
    folder = text_folder(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    store = EmbeddedStore(tmp_path)
    store.delete(TENANT, ChunkSelector(document_ids=("doc0",)))
    store.put(TENANT, [make(n) for n in range(100)], vectors()[:100], "s")
    store.close()
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", folder)
    with closing(EmbeddedStore(tmp_path)) as store:
        assert_recovers(store)


@pytest.fixture
def opened(tmp_path: Path):
    """Opens a tenant without anything that repairs or indexes in the background."""
    tenants: list[Tenant] = []

    def open_tenant() -> Tenant:
        tenants.append(Tenant(tmp_path / TENANT, "", None))
        return tenants[-1]

    yield open_tenant
    for tenant in tenants:
        tenant.close()


@pytest.mark.parametrize("damage", TEXT_DAMAGE)
def test_a_damaged_text_index_is_never_asked_and_the_vector_arm_answers(tmp_path: Path, opened, damage: str):
    fill(tmp_path)
    TEXT_DAMAGE[damage](tmp_path)
    request = SearchRequest(TENANT, ("d1",), terms=(Term("w42"),), vector=vectors()[42], space="s", vector_k=1)
    hits = opened().search(request)
    assert hits.degraded == ("text",)
    assert hits.ids.tolist() == [42]
    assert hits.text_scores.tolist() == [0.0]


def test_a_chunk_switched_off_is_not_found_before_the_text_index_knows(tmp_path: Path, opened):
    fill(tmp_path)
    tenant = opened()
    tenant.record.set_available(ChunkSelector(chunk_ids=(f"{42:016x}",)), False)
    assert tenant.search(SearchRequest(TENANT, ("d1",), terms=(Term("w42"),))).ids.tolist() == []
    assert tenant.search(SearchRequest(TENANT, ("d1",), terms=(Term("w42"),), available=None)).ids.tolist() == [42]


def test_the_text_index_holds_each_chunk_once(tmp_path: Path, opened):
    fill(tmp_path)
    store = EmbeddedStore(tmp_path)
    store.put(TENANT, [make(n) for n in range(COUNT)], None, "s")
    store.set_available(TENANT, ChunkSelector(document_ids=("doc1",)), False)
    store.delete(TENANT, ChunkSelector(document_ids=("doc2",)))
    store.flush(TENANT)
    store.close()
    tenant = opened()
    assert tenant.record.indexable() == 200
    assert TextIndex(text_folder(tmp_path)).searcher().count == 200


def test_an_old_copy_of_the_text_index_is_noticed_when_the_log_was_pruned(tmp_path: Path, opened):
    fill(tmp_path)
    folder = text_folder(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    store = EmbeddedStore(tmp_path)
    store.delete(TENANT, ChunkSelector(document_ids=("doc0",)))
    store.put(TENANT, [make(n) for n in range(100)], vectors()[:100], "s")
    store.close()
    tenant = opened()
    tenant.record.prune(tenant.record.head(), keep=1)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "copy", folder)
    with closing(EmbeddedStore(tmp_path)) as store:
        ask(store, 42)
        wait_until(lambda: text_folder(tmp_path).name != folder.name)
        assert_recovers(store)


def test_another_analyser_version_analyses_again(tmp_path: Path):
    fill(tmp_path)

    def analyse(chunk: Chunk) -> ChunkTerms:
        return ChunkTerms(content=f"all new{int(chunk.id, 16)}")

    with closing(EmbeddedStore(tmp_path, analyser_version="2", analyse=analyse)) as store:
        request = SearchRequest(TENANT, ("d1",), terms=(Term("new42"),))
        wait_until(lambda: store.search(request).degraded == ())
        assert store.search(request).ids.tolist() == [42]
        assert store.get(TENANT, [f"{42:016x}"])[0].terms.content == "all new42"
        assert store.search(SearchRequest(TENANT, ("d1",), terms=(Term("w42"),))).ids.tolist() == []
    with closing(EmbeddedStore(tmp_path, analyser_version="2", analyse=lambda _: pytest.fail("analysed again without need"))) as store:
        assert store.search(request).ids.tolist() == [42]


def test_a_chunk_that_the_index_refuses_does_not_stop_the_others(tmp_path: Path, monkeypatch):
    whole = leader_module.TextWriter.apply

    def refuse_one(self, rows):
        if any(row.terms and "poison" in row.terms[1] for row in rows):
            raise leader_module.Corrupt("refused")
        whole(self, rows)

    monkeypatch.setattr(leader_module.TextWriter, "apply", refuse_one)
    with closing(EmbeddedStore(tmp_path)) as store:
        store.put(TENANT, [make(n, "poison" if n == 150 else "") for n in range(COUNT)], vectors(), "s")
        assert len(store.search(SearchRequest(TENANT, ("d1",), terms=(Term("all"),))).ids) == COUNT - 1
        assert store.search(SearchRequest(TENANT, ("d1",), vector=vectors()[150], space="s", vector_k=1)).ids.tolist() == [150]
        shutil.rmtree(tmp_path / TENANT / "text")
        assert ask(store, 42).degraded == ("text",)
        wait_until(lambda: ask(store, 42).degraded == ())


# ---------------------------------------------------------------------------------------------------- disks
@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_a_clear_error_and_loses_nothing(small_disk: Path):
    with closing(EmbeddedStore(small_disk)) as store:
        store.put(TENANT, [make(n) for n in range(COUNT)], vectors(), "s")
        stored = 0

        def put_for_ever() -> None:
            nonlocal stored
            while True:
                store.put(TENANT, [make(1000 + stored + n, "word " * 2000, "d2") for n in range(100)], vectors(100), "s")
                stored += 100

        with pytest.raises(Unavailable) as caught:
            put_for_ever()
        assert "full" in str(caught.value)
        assert str(small_disk) not in str(caught.value)
        count = store.count(TENANT, ChunkSelector(dataset_ids=("d2",)))
        assert count in (stored, stored + 100)  # all of the last batch or nothing
        assert ask(store, 42).ids.tolist() == [42]


def test_it_goes_on_when_the_disk_has_room_again(small_disk: Path):
    ballast = small_disk / "ballast"
    with closing(EmbeddedStore(small_disk)) as store:
        store.put(TENANT, [make(n) for n in range(COUNT)], vectors(), "s")
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(bytes(16 << 20))
        assert store.health()["status"] == "red"
        with pytest.raises(Unavailable):
            store.put(TENANT, [make(1000 + n, "word " * 2000, "d2") for n in range(1000)], vectors(1000), "s")
        ballast.unlink()
        store.put(TENANT, [make(n, f"later w{n}", "d2") for n in range(50_000, 50_010)], vectors(10), "s")
        assert ask(store, 42).ids.tolist() == [42]
        found = store.search(SearchRequest(TENANT, ("d2",), terms=(Term("later"),)))
        assert len(found.ids) == 10


def test_a_read_only_disk_is_a_clear_error(small_disk: Path):
    fill(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = EmbeddedStore(small_disk)
    try:
        with pytest.raises(Unavailable, match="read-only"):
            store.put(TENANT, [make(1)], None, "s")
        assert store.health()["status"] == "red"
    finally:
        store.close()
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_a_record_that_is_not_a_database_is_unavailable_and_left_alone(tmp_path: Path):
    (tmp_path / TENANT).mkdir()
    record = tmp_path / TENANT / "chunks.sqlite3"
    record.write_bytes(b"not a database " * 1000)
    with closing(EmbeddedStore(tmp_path)) as store:
        with pytest.raises(Unavailable):
            store.count(TENANT, ChunkSelector(dataset_ids=("d1",)))
        assert record.read_bytes() == b"not a database " * 1000


# ---------------------------------------------------------------------------------------------------- upkeep
@pytest.mark.parametrize("tenant", ["", "..", "../" + "a" * 29, "A" * 32, "a" * 31, "/" + "a" * 31])
def test_a_tenant_id_that_we_would_not_make_never_becomes_a_path(tmp_path: Path, tenant: str):
    with closing(EmbeddedStore(tmp_path / "store")) as store:
        with pytest.raises(InvalidArgument):
            store.get(tenant, ["0" * 16])
        with pytest.raises(InvalidArgument):
            store.drop_tenant(tenant)
        assert list(tmp_path.glob("*/*")) == []


def test_only_so_many_tenants_stay_open(tmp_path: Path):
    with closing(EmbeddedStore(tmp_path, max_open=2)) as store:
        tenants = [f"{n:032x}" for n in range(6)]
        for tenant in tenants:
            store.put(tenant, [make(1, "word")], None, "s")
        for tenant in tenants * 2:
            assert store.search(SearchRequest(tenant, ("d1",), terms=(Term("word"),))).ids.tolist() == [1]
        wait_until(lambda: len(store._open) <= 2)


def test_dead_slots_are_dropped_and_empty_files_removed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(leader_module, "_IDLE_SECONDS", 0.0)
    monkeypatch.setattr(leader_module, "_COMPACT_DEAD_ABOVE", 10)
    with closing(EmbeddedStore(tmp_path)) as store:
        store.put(TENANT, [make(n) for n in range(COUNT)], vectors(), "s")
        store.put(TENANT, [make(1000 + n, "x", "d2") for n in range(5)], vectors(5), "s")
        size = 64 + 100 * 16 * 2
        store.delete(TENANT, ChunkSelector(document_ids=("doc0", "doc1")))
        store.delete(TENANT, ChunkSelector(dataset_ids=("d2",)))
        folder = tmp_path / TENANT / "vectors"
        wait_until(lambda: [path.stat().st_size for path in folder.iterdir()] == [size])
        assert ask(store, 42).ids.tolist() != [42]
        assert ask(store, 250).ids.tolist() == [250]
        assert ask(store, 250).vector_scores[0] == pytest.approx(1.0, abs=2e-3)
        store.put(TENANT, [make(n) for n in range(50)], vectors()[:50], "s")
        assert ask(store, 42).ids.tolist() == [42]


def test_files_of_killed_writers_are_swept_away(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(leader_module, "_IDLE_SECONDS", 0.0)
    fill(tmp_path)
    stray = tmp_path / TENANT / "vectors" / "77-1.f16"
    stray.write_bytes(b"left over")
    with closing(EmbeddedStore(tmp_path)) as store:
        store.flush(TENANT)
        wait_until(lambda: not stray.exists())
        assert ask(store, 42).degraded == ()


def test_the_change_log_is_pruned_and_others_catch_up(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(leader_module, "_IDLE_SECONDS", 0.0)
    monkeypatch.setattr(leader_module, "_PRUNE_ABOVE", 50)
    monkeypatch.setattr(leader_module, "_KEPT_CHANGES", 10)
    other = EmbeddedStore(tmp_path)
    store = EmbeddedStore(tmp_path)
    try:
        other.put(TENANT, [make(1)], vectors()[1:2], "s")
        assert ask(other, 1).ids.tolist() == [1]
        store.put(TENANT, [make(n) for n in range(COUNT)], vectors(), "s")
        with store._tenant(TENANT) as tenant:
            wait_until(lambda: tenant.record.floor() > 100)
        assert_recovers(other)
        assert_recovers(store)
    finally:
        store.close()
        other.close()


def test_a_tenant_dropped_by_another_store_is_empty_here_too(tmp_path: Path):
    fill(tmp_path)
    store, other = EmbeddedStore(tmp_path), EmbeddedStore(tmp_path)
    try:
        assert ask(store, 42).ids.tolist() == [42]
        other.drop_tenant(TENANT)
        assert ask(store, 42).ids.tolist() == []
        store.put(TENANT, [make(7)], vectors()[7:8], "s")
        assert ask(other, 7).ids.tolist() == [7]
    finally:
        store.close()
        other.close()


def test_nothing_works_after_close_and_nothing_hangs(tmp_path: Path):
    store = EmbeddedStore(tmp_path)
    store.close()
    with pytest.raises(Unavailable):
        store.count(TENANT, ChunkSelector(dataset_ids=("d1",)))


def test_searching_for_a_tenant_that_put_nothing_makes_no_folder(tmp_path: Path):
    with closing(EmbeddedStore(tmp_path)) as store:
        assert ask(store, 1).ids.tolist() == []
        assert list(tmp_path.iterdir()) == []
        store.put(TENANT, [make(7)], vectors()[7:8], "s")
        assert ask(store, 7).ids.tolist() == [7]


def test_health_is_red_and_says_what_to_do_while_a_record_is_unusable(tmp_path: Path):
    fill(tmp_path)
    record = tmp_path / TENANT / "chunks.sqlite3"
    backup = record.read_bytes()
    record.write_bytes(b"garbage" * 1000)
    store = EmbeddedStore(tmp_path)
    health = store.health()
    assert health["status"] == "red"
    assert f"the chunk record of tenant {TENANT} cannot be used: file is not a database; restore chunks.sqlite3" in health["error"]
    record.write_bytes(backup)
    assert store.health()["status"] == "green"
    assert ask(store, 42).ids.tolist() == [42]
    store.close()


def test_health_is_yellow_while_some_tenants_record_is_unusable_and_another_is_not(tmp_path: Path):
    fill(tmp_path)
    store = EmbeddedStore(tmp_path)
    other = "e" * 32
    (tmp_path / other).mkdir()
    (tmp_path / other / "chunks.sqlite3").write_bytes(b"garbage" * 1000)
    health = store.health()
    assert health["status"] == "yellow"
    assert f"the chunk record of tenant {other} cannot be used: file is not a database" in health["error"]
    assert ask(store, 42).ids.tolist() == [42]
    store.close()


def test_a_tenant_that_has_put_nothing_gets_no_folder_by_being_asked_for(tmp_path: Path):
    store, chunk = EmbeddedStore(tmp_path), make(1)
    selector = ChunkSelector(chunk_ids=(chunk.id,))
    assert store.get(TENANT, [chunk.id]) == [None]
    assert store.list(TENANT, "f" * 32) == (0, [])
    assert store.vectors(TENANT, [chunk.id], "s").shape == (1, 0)
    assert (store.count(TENANT, selector), store.delete(TENANT, selector), store.take(TENANT, selector)) == (0, 0, [])
    assert store.set_available(TENANT, selector, False) == 0
    assert store.replace(TENANT, [chunk], [chunk], None, "s") == [False]
    store.flush(TENANT)
    assert not list(tmp_path.glob("[0-9a-f]*"))
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        store.count(TENANT, selector)


def test_health_of_an_unchanged_record_costs_no_opening_and_of_a_busy_one_is_green(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = EmbeddedStore(tmp_path)
    store.put(TENANT, [make(n) for n in range(COUNT)], vectors(), "s")
    with sqlite3.connect(tmp_path / TENANT / "chunks.sqlite3", isolation_level=None) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert store.health()["status"] == "green"
        writer.execute("ROLLBACK")
    writer.close()
    opened = []
    monkeypatch.setattr(record_check, "_damage", opened.append)
    for _ in range(5):
        assert store.health()["status"] == "green"
    assert opened == []
    store.close()


def test_health_leaves_out_what_is_no_tenant(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    store = EmbeddedStore(tmp_path)
    assert store.health()["status"] == "green"
    store.close()
