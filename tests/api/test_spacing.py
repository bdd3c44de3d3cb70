"""Searches that come together begin one after the other."""

import asyncio

import pytest

from api.spacing import FIRST_SECONDS, LANE, LULL_SECONDS, MOST_SECONDS, MOST_WAITING, SHARE, Spacing
from rag.errors import Overloaded
from rag.threads import Load, current_load

SEARCH_SECONDS = 0.001


class Worked:
    """A CPU clock: every look at it is a search later."""

    def __init__(self, seconds: float) -> None:
        self.each, self.now = seconds, 0.0

    def __call__(self) -> float:
        self.now += self.each
        return self.now


def busy(costs: float = FIRST_SECONDS) -> Spacing:
    """One that has just seen a search end."""
    spacing = Spacing(Worked(costs))
    spacing.ended()
    return spacing


async def begun(spacing: Spacing, name: str, order: list[str]) -> float:
    await spacing.turn()
    order.append(name)
    return asyncio.get_running_loop().time()


async def test_one_that_comes_alone_begins_at_once() -> None:
    async with asyncio.timeout(0):
        await busy().turn()


async def test_those_that_come_together_after_a_lull_begin_at_once() -> None:
    now = 0.0
    spacing = Spacing(Worked(FIRST_SECONDS), lambda: now)
    spacing.ended()
    now = LULL_SECONDS + 0.1
    async with asyncio.timeout(0):
        for _ in range(50):
            await spacing.turn()


async def test_those_that_come_together_begin_apart_in_the_order_they_came() -> None:
    spacing, order = busy(), []
    times = await asyncio.gather(*(begun(spacing, name, order) for name in "abcde"))
    assert order == list("abcde")
    assert times[-1] - times[0] >= 4 * FIRST_SECONDS / SHARE - 0.004  # a timer's millisecond for each


async def test_one_that_is_given_up_while_it_waits_takes_no_turn() -> None:
    spacing, order = busy(), []
    tasks = [asyncio.create_task(begun(spacing, name, order)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["a", "c"]


async def test_one_more_than_may_wait_is_refused_and_told_when_to_come_back() -> None:
    spacing = busy()
    tasks = [asyncio.create_task(spacing.turn()) for _ in range(1 + MOST_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refusal:
        await spacing.turn()
    assert refusal.value.retry_after_seconds == pytest.approx(MOST_WAITING * spacing.seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(2 * spacing.seconds)
    await spacing.turn()


@pytest.mark.parametrize(("costs", "expected"), [(SEARCH_SECONDS, SEARCH_SECONDS), (1.0, MOST_SECONDS)])
async def test_the_distance_follows_what_a_search_costs_within_bounds(costs: float, expected: float) -> None:
    spacing = busy(costs)
    for _ in range(300):
        await spacing.turn()
    assert spacing.seconds == pytest.approx(expected / SHARE, rel=0.02)


async def test_admission_hears_what_a_search_takes_of_the_process() -> None:
    load = Load()
    token = current_load.set(load)
    try:
        await busy().turn()
    finally:
        current_load.reset(token)
    assert load.lane_seconds == {LANE: pytest.approx(FIRST_SECONDS / SHARE)}
