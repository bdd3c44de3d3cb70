"""Work on threads that is told of in order."""

import threading
from collections.abc import Iterator

import pytest

from api.migrate.pipeline import ITEMS_PER_THREAD, in_order
from rag.errors import NotFound


def test_work_that_ends_out_of_order_is_told_of_in_order() -> None:
    later_ones = threading.Event()
    done: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            assert later_ones.wait(10)
        elif item == 2:
            later_ones.set()

    in_order(range(5), work, done.append, threads=2)
    assert done == [0, 1, 2, 3, 4]


def test_what_is_behind_a_failure_is_not_told_of() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 3:
            raise NotFound("item 3")

    with pytest.raises(NotFound, match="item 3"):
        in_order(range(100), work, done.append, threads=2)
    assert done == [0, 1, 2]


def test_no_more_items_are_held_than_the_threads_need() -> None:
    taken, done = 0, 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(50):
            taken += 1
            assert taken - done <= ITEMS_PER_THREAD * 3
            yield item

    def settled(_: int) -> None:
        nonlocal done
        done += 1

    in_order(items(), lambda item: item, settled, threads=3)
    assert done == 50
