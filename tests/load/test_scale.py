"""The runs of `load.scale` find what they are there to find. Their goals are for a machine that does nothing else."""

import pytest

from load.callers import Driven
from load.sampling import Held
from load.scale import chaos, mixed, overload, soak
from load.scale.__main__ import PARTS
from load.scale.verdict import verdict
from load.streams import Streamed


def held(**values: float) -> Held:
    return Held(**{"resident": 0, "private": 0, "threads": 0, "descriptors": 0, "tasks": 0, "cpu_seconds": 0.0, **values})


def driven(*statuses: int) -> Driven:
    return Driven(1.0, (0.1,) * len(statuses), 0.0, 0, 0, (0.5,) * len(statuses), statuses)


def streamed(*failed: str, whole: int = 0) -> Streamed:
    count = len(failed) + whole
    return Streamed(1.0, 0.0, (0.0,) * count, (0.1,) * count, (0.2,) * count, (3,) * count, failed)


@pytest.mark.slow
def test_failing_vendors_cause_no_unplanned_5xx(capsys):
    assert chaos.run(6.0), capsys.readouterr().out


def test_planned_refusals_are_told_from_unplanned_failures():
    planned = mixed.Mixed(driven(200, 503), driven(503), streamed("status 503", "error in the stream", whole=1))
    assert planned.unplanned() == 0
    bad = mixed.Mixed(driven(500, -503, 0), driven(502), streamed("cut", "no end", "unplanned error in the stream", "status 500"))
    assert bad.unplanned() == 8
    assert planned.statuses()["stream: whole"] == 1


def asked(*requests: tuple[float, float, int]) -> Driven:
    """Requests by when they were asked, how long they took, and their status."""
    due, latencies, statuses = zip(*requests, strict=True)
    ended = tuple(at + latency for at, latency in zip(due, latencies, strict=True))
    return Driven(ended[-1], latencies, 0.0, 0, sum(status != 200 for status in statuses), ended, statuses)


# seconds of the flood are 5 to 9: its first one admits slowly, then all are as at normal times
FLOOD = [(2.0, 0.01, 200), (5.5, 2.0, 200), (7.0, 0.01, 200), (7.1, 0.005, 503), (12.0, 0.01, 200)]


def test_the_latencies_of_a_floods_first_second_are_told_apart(capsys):
    assert overload.judge(asked((1.0, 0.01, 200)), asked(*FLOOD), 4.0)
    assert "the flood's first second 2000 / 2000, from then on admitted 10 / 10" in capsys.readouterr().out


@pytest.mark.parametrize("at", [2.0, 5.5, 7.0, 9.5, 12.0])
def test_what_is_neither_answered_nor_refused_is_missed_at_every_time_of_a_flood(at):
    assert not overload.judge(asked((1.0, 0.01, 200)), asked(*FLOOD, (at, 0.01, 500)), 4.0)


def test_growth_is_seen_and_noise_is_not():
    steady = [(float(at), held(threads=20 + at % 2)) for at in range(0, 3600, 30)]
    growing = [(float(at), held(threads=20 + at // 360)) for at in range(0, 3600, 30)]
    assert abs(soak._slope(steady, "threads")) < 0.5
    assert soak._slope(growing, "threads") == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize("grows", ["resident", "private", "threads", "descriptors"])
def test_a_soak_is_missed_by_whatever_grows(grows):
    flat, full = held(), held(**{grows: 100 << 20})
    assert soak.judge([(0.0, flat), (1000.0, flat), (2000.0, flat), (3600.0, flat)], 0, 3600.0)
    assert not soak.judge([(0.0, flat), (1000.0, flat), (2000.0, flat), (3600.0, full)], 0, 3600.0)


def test_a_soak_is_missed_by_a_task_that_is_left():
    assert not soak.judge([], 1, 3600.0)


@pytest.mark.parametrize(
    ("measured", "comparison", "goal", "met"), [(8, "<=", 8, True), (9, "<=", 8, False), (float("nan"), "<=", 8, False)]
)
def test_a_goal_is_met_or_missed(capsys, measured, comparison, goal, met):
    assert verdict("threads", measured, comparison, goal) is met
    assert ("met)" in capsys.readouterr().out) is met


def test_every_part_says_what_it_is_held_against():
    assert all(goal and seconds > 0 for goal, _, seconds in PARTS.values())
