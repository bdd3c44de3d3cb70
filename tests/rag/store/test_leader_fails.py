"""Where the process that keeps a tenant's text index fails, nobody waits for it in vain."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from rag.errors import Unavailable
from rag.store import leader as leader_module
from rag.store.embedded import EmbeddedStore
from rag.types import Chunk, ChunkTerms, SearchRequest, Term

TENANT = "a" * 32
ROOT = Path(__file__).parents[3]
WAIT_SECONDS = 20.0  # what a test that fails takes


def chunk(number: int) -> Chunk:
    return Chunk(f"{number:016x}", "d1", "doc", "n", "text", ChunkTerms(content=f"all w{number}"))


def stores(folder: Path) -> tuple[EmbeddedStore, EmbeddedStore]:
    """Two that share a folder as two processes do: a file lock belongs to who opened the file."""
    return EmbeddedStore(folder, wait_seconds=WAIT_SECONDS), EmbeddedStore(folder, wait_seconds=WAIT_SECONDS)


def found(store: EmbeddedStore) -> list[int]:
    return sorted(store.search(SearchRequest(TENANT, ("d1",), terms=(Term("all"),))).ids.tolist())


@contextmanager
def led_elsewhere(folder: Path) -> Iterator[None]:
    """The lead is taken, once it is free, and nothing is done with it."""
    with (folder / TENANT / "leader.lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def waiting_put(store: EmbeddedStore, number: int) -> Iterator[list[str]]:
    """A put that waits for the text index when the block begins, and has ended after it; the block gets the errors."""
    head, errors = store._open[TENANT].record.head(), []

    def put() -> None:
        try:
            store.put(TENANT, [chunk(number)], None, "s")
        except Unavailable as exc:
            errors.append(str(exc))

    thread = threading.Thread(target=put)
    thread.start()
    progress = store._open[TENANT].leader.progress
    while progress.wanted <= head:
        assert thread.is_alive()
    yield errors
    thread.join()


def test_what_the_leader_cannot_write_is_told_at_once_to_those_who_wait_in_other_processes(tmp_path: Path, monkeypatch):
    leading, other = stores(tmp_path)
    with closing(leading), closing(other):
        leading.put(TENANT, [chunk(1)], None, "s")
        whole = leader_module.TextWriter.commit

        def full(self) -> None:
            raise Unavailable("the text index cannot be written: the disk is full or read-only")

        monkeypatch.setattr(leader_module.TextWriter, "commit", full)
        with pytest.raises(Unavailable, match=r"^stored, but not searchable by text yet: .* the disk is full or read-only$"):
            other.put(TENANT, [chunk(2)], None, "s")
        monkeypatch.setattr(leader_module.TextWriter, "commit", whole)
        other.flush(TENANT)
        assert found(other) == found(leading) == [1, 2]


def test_a_failure_is_over_when_another_process_has_done_the_work(tmp_path: Path, monkeypatch):
    leading, other = stores(tmp_path)
    with closing(leading), closing(other):
        other.put(TENANT, [chunk(1)], None, "s")
        whole = leader_module.TextWriter.commit

        def full(self) -> None:
            raise Unavailable("the disk is full")

        monkeypatch.setattr(leader_module.TextWriter, "commit", full)
        with pytest.raises(Unavailable, match="the disk is full"):
            leading.put(TENANT, [chunk(2)], None, "s")
        monkeypatch.setattr(leader_module.TextWriter, "commit", whole)
        other.flush(TENANT)
        until = time.monotonic() + WAIT_SECONDS
        while leading.health()["status"] != "green":
            assert time.monotonic() < until, leading.health()
            time.sleep(0.02)


def test_what_one_process_cannot_write_another_one_does(tmp_path: Path):
    command = [sys.executable, str(Path(__file__).with_name("store_leader.py")), str(tmp_path), TENANT]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout.readline() == "leads\n"
        with closing(EmbeddedStore(tmp_path, wait_seconds=WAIT_SECONDS)) as store:
            store.put(TENANT, [chunk(2)], None, "s")
            assert found(store) == [2]
        process.kill()


def test_a_lead_that_cannot_be_taken_is_told_at_once(tmp_path: Path):
    with closing(EmbeddedStore(tmp_path)) as store:
        store.put(TENANT, [chunk(1)], None, "s")
    lock = tmp_path / TENANT / "leader.lock"
    lock.unlink()
    lock.mkdir()
    with closing(EmbeddedStore(tmp_path, wait_seconds=WAIT_SECONDS)) as store:
        with pytest.raises(Unavailable, match=r"^stored, but not searchable by text yet: is a directory$"):
            store.put(TENANT, [chunk(2)], None, "s")
        assert store.health() == {"type": "embedded", "status": "yellow", "error": "is a directory"}
        lock.rmdir()
        store.flush(TENANT)
        assert found(store) == [1, 2]


@pytest.mark.parametrize("where", ["here", "in another process"])
def test_who_waits_for_a_tenant_that_is_dropped_is_let_go(tmp_path: Path, monkeypatch, where: str):
    monkeypatch.setattr(leader_module, "_IDLE_SECONDS", 0.0)
    store, other = stores(tmp_path)
    with closing(store), closing(other):
        store.put(TENANT, [chunk(1)], None, "s")
        with led_elsewhere(tmp_path), waiting_put(store, 2) as errors:
            (store if where == "here" else other).drop_tenant(TENANT)
        assert errors == ["stored, but not searchable by text yet: the tenant is closed or removed"]
        assert found(store) == []
