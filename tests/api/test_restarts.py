"""When a process that has ended is started again."""

from api.restarts import FIRST_PAUSE_SECONDS, HEALTHY_SECONDS, LONGEST_PAUSE_SECONDS, Restarts


def test_pauses_double_up_to_the_longest_and_begin_anew_after_a_long_life() -> None:
    now = 0.0
    restarts = Restarts(lambda: now)
    pauses = []
    for _ in range(8):
        restarts.begin()
        pauses.append(restarts.pause_seconds())
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]
    restarts.begin()
    now = HEALTHY_SECONDS + 1
    assert restarts.pause_seconds() == FIRST_PAUSE_SECONDS
