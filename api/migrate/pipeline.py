"""Work on threads, told of in order: so that a move that breaks off knows up to where all has arrived."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from api.migrate.patience import patiently

T = TypeVar("T")

ITEMS_PER_THREAD = 2  # one that it works on, and the next one


def in_order(items: Iterable[T], work: Callable[[T], object], done: Callable[[T], object], *, threads: int) -> None:
    """Work on each item, patiently. `done(item)` is called in the items' order: this one is done, and so are all before it.

    Items are taken while others are worked on; `ITEMS_PER_THREAD` for each thread, at most, are held. Raises the error of the first
    item whose work fails; those behind it are not begun, unless they were already.
    """
    under_way: deque[tuple[T, Future[object]]] = deque()

    def settle() -> None:
        item, future = under_way.popleft()
        future.result()
        done(item)

    with ThreadPoolExecutor(threads, "millrace-move") as pool:
        try:
            for item in items:
                under_way.append((item, pool.submit(patiently, partial(work, item))))
                if len(under_way) >= ITEMS_PER_THREAD * threads:
                    settle()
            while under_way:
                settle()
        finally:
            for _, future in under_way:
                future.cancel()
