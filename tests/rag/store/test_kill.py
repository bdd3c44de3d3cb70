"""A store whose process is killed loses nothing that it acknowledged, brings nothing back that was deleted, and opens again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rag.store.embedded import EmbeddedStore
from rag.types import ChunkSelector, SearchRequest, Term

sys.path.insert(0, str(Path(__file__).parent))
from store_writer import DIMENSION, SPACE, TENANT, vector

ROUNDS = int(os.environ.get("MILLRACE_TEST_KILL_ROUNDS", "10"))
ROOT = Path(__file__).parents[3]
DATASETS = ("d0", "d1", "d2")


def start_writer(folder: Path, first: int) -> subprocess.Popen[str]:
    """A writer that has written at least one batch."""
    command = [sys.executable, str(Path(__file__).with_name("store_writer.py")), str(folder), str(first)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    process.first_line = process.stdout.readline()  # type: ignore[attr-defined]
    return process


def kill(process: subprocess.Popen[str]) -> list[list[str]]:
    """Kill it and return its lines, split; a torn last line is left out."""
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    process.stdout.close()
    process.wait()
    lines = (process.first_line + rest).split("\n")[:-1]
    return [line.split() for line in lines]


def acknowledged(lines: list[list[str]]) -> tuple[set[int], set[int]]:
    """The chunks that must be there, and those that must not. A delete that was cut off leaves its chunks in neither."""
    there: set[int] = set()
    gone: set[int] = set()
    for verb, *numbers in lines:
        chunks = set(map(int, numbers))
        if verb == "put":
            there |= chunks
        else:
            there -= chunks
            gone = gone - chunks if verb == "deleting" else gone | chunks
    return there, gone


def check(store: EmbeddedStore, there: set[int], gone: set[int], chance: random.Random) -> None:
    store.flush(TENANT)
    ids = sorted(there)
    assert all(chunk is not None for chunk in store.get(TENANT, [f"{n:016x}" for n in ids]))
    assert store.get(TENANT, [f"{n:016x}" for n in sorted(gone)]) == [None] * len(gone)
    every = store.search(SearchRequest(TENANT, DATASETS, terms=(Term("every"),), text_k=1 << 20))
    found = every.ids.tolist()
    assert len(found) == len(set(found)) == store.count(TENANT, ChunkSelector(dataset_ids=DATASETS))
    assert there <= set(found)
    assert not gone & set(found)
    held = store.vectors(TENANT, [f"{n:016x}" for n in ids], SPACE)
    expected = np.stack([vector(n) / np.linalg.norm(vector(n)) for n in ids])
    assert np.abs(held - expected).max() < 2e-3
    for number in chance.sample(ids, min(30, len(ids))):
        query = vector(number) / np.linalg.norm(vector(number))
        hits = store.search(SearchRequest(TENANT, DATASETS, terms=(Term(f"w{number}"),), vector=query, space=SPACE, text_k=5, vector_k=1))
        assert hits.degraded == ()
        assert hits.ids.tolist() == [number]
        assert hits.text_scores[0] > 0
        assert hits.vector_scores[0] == pytest.approx(1.0, abs=2e-3)


@pytest.mark.soak
def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path):
    chance = random.Random(7)
    there: set[int] = set()
    gone: set[int] = set()
    for turn in range(ROUNDS):
        writer = start_writer(tmp_path, turn * 1_000_000)
        time.sleep(chance.uniform(0.0, 1.2))  # the moment of the kill, not a wait for something
        new_there, new_gone = acknowledged(kill(writer))
        there, gone = (there | new_there), (gone | new_gone)
        store = EmbeddedStore(tmp_path)
        try:
            check(store, there, gone, chance)
        finally:
            store.close()
    assert len(there) > 50
    assert store_dimension(tmp_path) == DIMENSION


def store_dimension(folder: Path) -> int:
    store = EmbeddedStore(folder)
    try:
        return store.vectors(TENANT, [], SPACE).shape[1]
    finally:
        store.close()


def test_another_process_takes_over_from_a_killed_leader(tmp_path: Path):
    writer = start_writer(tmp_path, 0)
    store = EmbeddedStore(tmp_path)
    try:
        there, gone = acknowledged(kill(writer))
        check(store, there, gone, random.Random(1))
    finally:
        store.close()


def test_two_processes_write_one_folder_and_see_each_other(tmp_path: Path):
    writers = [start_writer(tmp_path, turn * 1_000_000) for turn in range(2)]
    time.sleep(1.0)  # both write for a while
    seen = [acknowledged(kill(writer)) for writer in writers]
    store = EmbeddedStore(tmp_path)
    try:
        check(store, seen[0][0] | seen[1][0], seen[0][1] | seen[1][1], random.Random(1))
    finally:
        store.close()
    assert all(there for there, _ in seen)
