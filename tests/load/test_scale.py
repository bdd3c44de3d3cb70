"""The runs of `load.scale` find what they are there to find. Their goals are for a machine that does nothing else."""

import pytest

from load.callers import Driven
from load.sampling import Held
from load.scale import chaos, mixed, soak
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


def test_growth_is_seen_and_noise_is_not():
    steady = [(float(at), held(threads=20 + at % 2)) for at in range(0, 3600, 30)]
    growing = [(float(at), held(threads=20 + at // 360)) for at in range(0, 3600, 30)]
    assert abs(soak._slope(steady, "threads")) < 0.5
    assert soak._slope(growing, "threads") == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize(
    ("measured", "comparison", "goal", "met"), [(8, "<=", 8, True), (9, "<=", 8, False), (float("nan"), "<=", 8, False)]
)
def test_a_goal_is_met_or_missed(capsys, measured, comparison, goal, met):
    assert verdict("threads", measured, comparison, goal) is met
    assert ("met)" in capsys.readouterr().out) is met


def test_every_part_says_what_it_is_held_against():
    assert all(goal and seconds > 0 for goal, _, seconds in PARTS.values())
