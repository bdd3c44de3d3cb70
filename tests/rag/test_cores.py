"""rag/cores.py: what the process may use counts, not what the machine has."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rag.cores import cores


@pytest.fixture
def quota(tmp_path: Path) -> Path:
    """A file for a quota; none is written yet."""
    return tmp_path / "cpu.max"


@pytest.fixture
def bound() -> Iterator[set[int]]:
    """The cores that this thread is bound to; bound to them again when the test ends."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to cores")
    before = os.sched_getaffinity(0)
    yield before
    os.sched_setaffinity(0, before)


def test_without_a_quota_all_cores_that_the_process_is_bound_to_count(quota: Path, bound: set[int]) -> None:
    assert cores(quota) == len(bound)
    os.sched_setaffinity(0, {min(bound)})
    assert cores(quota) == 1


@pytest.mark.parametrize(
    ("text", "most"), [("100000 100000\n", 1), ("50000 100000\n", 1), ("1000 100000\n", 1), ("100001 100000\n", 2), ("40000 20000\n", 2)]
)
def test_a_quota_is_rounded_up_and_never_more_than_there_is(quota: Path, bound: set[int], text: str, most: int) -> None:
    quota.write_text(text)
    assert cores(quota) == min(most, len(bound))


@pytest.mark.parametrize("text", ["max 100000\n", "", "50000\n", "a b\n"])
def test_what_names_no_quota_changes_nothing(quota: Path, bound: set[int], text: str) -> None:
    quota.write_text(text)
    assert cores(quota) == len(bound)
