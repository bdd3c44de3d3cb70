"""api/admission.py: who is let in, by a clock of the tests."""

from collections.abc import Iterator
from contextlib import suppress

import pytest

from api.admission import CALM_AFTER_SECONDS, MOST_TENANTS, PRESENT_SECONDS, PROBE_SECONDS, STUCK_SECONDS, TURNS, Admission, Ticket
from rag.errors import Overloaded, TooManyRequests

SERVICE_SECONDS = 0.01
PATIENCE_SECONDS = 1.0
HELD = 100  # requests that fill the patience: 100 x 10 ms


class World:
    """An admission and the time it sees."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.refused: list[str] = []
        self.admission = Admission(PATIENCE_SECONDS, clock=lambda: self.now, on_refused=self.refused.append)

    def serve(self, seconds: float = SERVICE_SECONDS, route: str = "", lane: float = SERVICE_SECONDS) -> None:
        ticket = self.admission.admit("a", route)
        self.finish(ticket, seconds, lane)

    def finish(self, ticket: Ticket, seconds: float = SERVICE_SECONDS, lane: float = SERVICE_SECONDS) -> None:
        self.now += seconds
        ticket.lane_seconds["search"] = lane
        ticket.done(answered=True)

    def probe(self, late_seconds: float, times: int = 1) -> None:
        for _ in range(times):
            self.now += PROBE_SECONDS + late_seconds
            self.admission.probe(late_seconds)

    def fill(self, caller: str = "a") -> list[Ticket]:
        """Let requests in until one is refused."""
        held: list[Ticket] = []
        try:
            while True:
                held.append(self.admission.admit(caller))
        except Overloaded:
            return held

    def fill_and_release(self) -> list[Ticket]:
        held = self.fill()
        release(held)
        return held

    def under_pressure(self, seconds: float) -> None:
        """One request is served while others are refused."""
        ticket = self.admission.admit("a")
        self.fill_and_release()
        self.finish(ticket, seconds)


def release(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        ticket.done(answered=False)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    for _ in range(50):
        world.serve()
    yield world
    assert world.admission.active == 0


def test_in_calm_everyone_is_let_in_whose_expected_wait_is_within_the_patience(world: World) -> None:
    held = world.fill()
    assert HELD <= len(held) <= HELD + 2
    assert world.admission.pressed
    assert world.refused == ["overload"]
    release(held)


def test_a_chat_may_wait_longer(world: World) -> None:
    held = [world.admission.admit("a", patience=5.0) for _ in range(3 * HELD)]
    assert not world.admission.pressed
    release(held)


def test_a_refusal_says_when_the_queue_could_have_been_served(world: World) -> None:
    held = world.fill()
    seconds = []
    for _ in range(3):
        with pytest.raises(Overloaded) as refused:
            world.admission.admit("a")
        seconds.append(refused.value.retry_after_seconds)
    assert PATIENCE_SECONDS <= seconds[0] < seconds[1] < seconds[2] < 2 * PATIENCE_SECONDS
    release(held)


def test_under_pressure_only_as_many_are_let_in_as_are_active_in_calm(world: World) -> None:
    release(world.fill())
    held = world.fill()
    assert len(held) == 1
    world.finish(held.pop())
    held.append(world.admission.admit("a"))  # a place that is free is given at once
    release(held)


def test_under_pressure_only_whole_places_are_given(world: World) -> None:
    release(world.fill())
    world.admission.limit = 1.75
    assert len(world.fill_and_release()) == 1
    world.admission.limit = 2.0
    assert len(world.fill_and_release()) == 2


def test_requests_that_take_long_keep_nobody_out_for_long(world: World) -> None:
    release(world.fill())
    streaming, stuck = world.admission.admit("a"), []
    streaming.leave()
    for _ in range(4):
        stuck.extend(world.fill())
        for _ in range(2):
            world.now += 0.4 * STUCK_SECONDS
            streaming.come_back()
            streaming.leave()
            with pytest.raises(Overloaded):
                world.admission.admit("a")
        world.now += 0.4 * STUCK_SECONDS
    assert world.admission.pressed
    assert len(stuck) == 4
    release([*stuck, streaming])


def test_the_limit_falls_when_those_let_in_are_slower_than_usual_and_rises_when_they_are_not(world: World) -> None:
    release(world.fill())
    world.admission.limit = 50.0
    for _ in range(100):
        world.under_pressure(3 * SERVICE_SECONDS)
    low = world.admission.limit
    assert low == pytest.approx(1.0)
    for _ in range(200):
        world.under_pressure(SERVICE_SECONDS)
    assert world.admission.limit > low + 3


def test_it_is_calm_again_when_nobody_was_refused_for_a_moment(world: World) -> None:
    release(world.fill())
    world.now += CALM_AFTER_SECONDS + 0.01
    held = [world.admission.admit("a") for _ in range(HELD // 2)]
    assert not world.admission.pressed
    release(held)


def test_a_request_that_waits_for_a_vendor_or_its_client_takes_no_place(world: World) -> None:
    streams = []
    for _ in range(1000):
        ticket = world.admission.admit("a")
        ticket.leave()
        streams.append(ticket)
    assert (world.admission.active, world.admission.pressed) == (0, False)
    streams[0].leave()
    streams[0].come_back()
    assert world.admission.active == 0  # still away: two waits at a time
    streams[0].come_back()
    assert world.admission.active == 1
    release(streams)


def test_a_request_that_is_given_up_frees_its_place_and_teaches_nothing(world: World) -> None:
    held = world.fill()
    world.now += 10 * PATIENCE_SECONDS
    release(held)
    assert world.admission.active == 0
    assert HELD <= len(world.fill_and_release()) <= HELD + 2


def test_the_load_that_ends_the_calm_does_not_count_as_usual(world: World) -> None:
    held = [world.admission.admit("a") for _ in range(HELD - 1)]
    for ticket in held:  # a second of growing latencies, before anyone was refused
        world.finish(ticket)
    assert not world.admission.pressed
    release(world.fill())
    assert world.admission.limit <= 4


def test_under_pressure_one_tenant_is_held_to_its_share_and_the_other_is_let_in(world: World) -> None:
    world.now += 2 * PRESENT_SECONDS
    release(world.fill("hog"))
    world.admission.limit = 10.0
    held = world.fill("hog")
    assert (len(held), world.refused[-1]) == (10, "overload")
    others = [world.admission.admit("small") for _ in range(5)]
    with pytest.raises(TooManyRequests):
        world.admission.admit("hog")
    assert world.refused[-1] == "share"
    with pytest.raises(TooManyRequests):
        world.admission.admit("small")
    release(held + others)


def test_of_many_more_tenants_than_places_only_some_are_let_in(world: World) -> None:
    release(world.fill("a"))
    world.now += 2 * PRESENT_SECONDS
    release(world.fill("a"))
    world.admission.limit = 10.0
    held = []
    for number in range(1000):
        with suppress(Overloaded):
            held.append(world.admission.admit(f"tenant {number}"))
    assert len(held) == 10 * MOST_TENANTS
    assert world.refused[-1] == "overload"
    release(held)


def test_what_goes_on_after_its_request_is_over_takes_no_place(world: World) -> None:
    waiting, working = world.admission.admit("a"), world.admission.admit("a")
    waiting.leave()
    waiting.done(answered=False)
    waiting.come_back()
    assert world.admission.active == 1
    working.done(answered=False)
    working.leave()
    working.come_back()
    assert world.admission.active == 0


def test_a_tenant_that_asks_no_more_has_no_share(world: World) -> None:
    release(world.fill("gone"))
    world.now += PRESENT_SECONDS * 2
    held = world.fill("a")
    with pytest.raises(Overloaded) as refused:
        world.admission.admit("a")
    assert not isinstance(refused.value, TooManyRequests)
    release(held)


def test_slow_lanes_with_enough_threads_make_nobody_wait() -> None:
    world = World()
    for _ in range(50):
        world.serve(seconds=0.2, lane=0.2 / 100)  # 200 ms in a lane of 100 threads
    held = [world.admission.admit("a") for _ in range(100)]
    assert world.admission.expected_wait_seconds == pytest.approx(0.2)
    release(held)


def test_a_late_event_loop_counts_as_a_queue() -> None:
    world = World()
    held = [world.admission.admit("a") for _ in range(2)]
    world.probe(0.05, 10)
    assert world.admission.expected_wait_seconds == pytest.approx(TURNS * 0.05)
    world.probe(0.5, 10)
    with pytest.raises(Overloaded):
        world.admission.admit("a")
    world.probe(0.0, 10)
    assert world.admission.expected_wait_seconds == 0.0
    release(held)


def test_how_late_the_loop_was_is_forgotten_when_nobody_is_left() -> None:
    world = World()
    ticket = world.admission.admit("a")
    world.probe(0.5, 10)
    ticket.done(answered=False)
    world.probe(0.5)
    assert world.admission.expected_wait_seconds == 0.0


def test_a_machine_that_stood_still_for_two_seconds_is_no_queue(world: World) -> None:
    working = [world.admission.admit("a") for _ in range(16)]
    world.probe(2.0)
    for ticket in working[1:]:
        world.finish(ticket, 0.001, lane=2.0)
    world.probe(0.1)
    held = [world.admission.admit("a") for _ in range(HELD // 2)]  # all that came meanwhile
    assert not world.admission.pressed
    assert world.admission.expected_wait_seconds < PATIENCE_SECONDS
    release([*held, working[0]])


def test_a_costly_request_makes_no_queue_of_cheap_ones_on_other_routes(world: World) -> None:
    for _ in range(50):
        world.serve(seconds=3.0, route="upload", lane=3.0)
    uploading = world.admission.admit("a", "upload", patience=5.0)
    assert world.admission.expected_wait_seconds == pytest.approx(3.0)
    uploading.leave()  # for its client
    held = [world.admission.admit("a") for _ in range(HELD)]
    assert world.admission.expected_wait_seconds == pytest.approx(HELD * SERVICE_SECONDS)
    release([*held, uploading])
    assert world.admission.expected_wait_seconds == 0.0


def test_a_cold_first_request_is_not_what_its_route_usually_takes() -> None:
    world = World()
    world.serve(seconds=3.0, lane=3.0)
    held = [world.admission.admit("a") for _ in range(HELD)]
    assert not world.admission.pressed
    for ticket in held[:10]:
        world.finish(ticket)
    assert world.admission.expected_wait_seconds == pytest.approx((HELD - 10) * SERVICE_SECONDS)
    release(held[10:])


def test_no_single_slow_request_is_what_its_route_usually_takes_but_many_are(world: World) -> None:
    with_one = world.admission.admit("a")
    world.serve(seconds=100 * SERVICE_SECONDS, lane=100 * SERVICE_SECONDS)
    assert world.admission.expected_wait_seconds < 1.1 * SERVICE_SECONDS
    for _ in range(300):
        world.serve(seconds=100 * SERVICE_SECONDS, lane=100 * SERVICE_SECONDS)
    assert world.admission.expected_wait_seconds > 90 * SERVICE_SECONDS
    with_one.done(answered=False)


def test_a_share_is_one_of_all_processes_together(world: World) -> None:
    world.now += 2 * PRESENT_SECONDS
    release(world.fill("a"))
    world.admission.limit = 10.0
    held = world.fill("a")
    others = [world.admission.admit("b")]
    world.admission.hear(10.0, {"b": 15, "c": 1})
    with pytest.raises(TooManyRequests):  # 16 of 20 places, more than a third of them
        world.admission.admit("b")
    others.append(world.admission.admit("c"))
    with pytest.raises(TooManyRequests):
        world.admission.admit("a")
    world.admission.hear(0.0, {})
    others.append(world.admission.admit("b"))
    release(held + others)


def test_a_process_says_its_limit_to_others_only_while_it_refuses(world: World) -> None:
    assert world.admission.at_work == (0.0, {})
    held = world.fill("a")
    assert world.admission.at_work == (world.admission.limit, {"a": len(held)})
    world.now += CALM_AFTER_SECONDS + 0.01
    assert world.admission.at_work == (0.0, {"a": len(held)})
    release(held)


def test_streams_that_go_on_for_long_do_not_look_like_slow_work() -> None:
    world = World()
    streams = []
    for _ in range(200):  # 50 begin each second, none ends, and the loop is late
        ticket = world.admission.admit("a", patience=5.0)
        ticket.lane_seconds["db"] = 0.001
        ticket.leave()
        streams.append(ticket)
        world.probe(0.02)
    working = [world.admission.admit("a", patience=5.0) for _ in range(20)]
    for _ in range(20):
        world.admission.admit("a", patience=5.0).done(answered=True)
        world.probe(0.02)
    assert world.admission.expected_wait_seconds < PATIENCE_SECONDS
    assert not world.admission.pressed
    release(streams + working)
