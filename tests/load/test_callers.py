"""The callers count what they are answered, keep to their times, and survive connections that end."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from load.callers import Driven, drive, offer, post_requests, quantile
from load.vendor_simulator import Behaviour, VendorSimulator

Ask = Callable[..., Awaitable[Driven]]


@pytest.fixture
def requests() -> Callable[[str, int], list[bytes]]:
    return lambda url, count: post_requests(url, "key", "/anything", [{"number": number} for number in range(count)])


async def test_every_request_is_sent_once_and_answered(requests):
    async with VendorSimulator(Behaviour(reply=lambda body: body)).listen() as vendor:
        driven = await asyncio.to_thread(drive, vendor.base_url, requests(vendor.base_url, 20), 4)
        assert sorted(request.body["number"] for request in vendor.requests) == list(range(20))
    assert (driven.failed, driven.statuses) == (0, (200,) * 20)
    assert vendor.connections == 4


async def test_statuses_are_counted_and_a_busy_server_must_name_a_time(requests):
    behaviours = [Behaviour(status=404), Behaviour(status=503, headers=(("Retry-After-Ms", "20"),)), Behaviour(status=503)]
    async with VendorSimulator(Behaviour(reply=lambda body: body), script=behaviours).listen() as vendor:
        driven = await asyncio.to_thread(drive, vendor.base_url, requests(vendor.base_url, 4), 1)
    assert driven.statuses == (404, 503, -503, 200)
    assert driven.failed == 3
    assert len(driven.with_status(404, 200)) == 2


@pytest.mark.parametrize(("header", "seconds"), [(("Retry-After", "1"), 1.0), (("Retry-After-Ms", "300"), 0.3)])
async def test_a_refused_caller_comes_back_when_it_may(requests, header, seconds):
    script = [Behaviour(status=429, headers=(header,))]
    async with VendorSimulator(Behaviour(reply=lambda body: body), script=script).listen() as vendor:
        driven = await asyncio.to_thread(drive, vendor.base_url, requests(vendor.base_url, 2), 1)
    assert driven.statuses == (429, 200)
    assert seconds <= driven.ended[1] - driven.latencies[1] - driven.ended[0] < seconds + 0.5


@pytest.mark.parametrize("failure", ["reset", "short_body"])
async def test_a_caller_whose_connection_ends_asks_on_with_another(requests, failure):
    async with VendorSimulator(Behaviour(reply=lambda body: body), script=[Behaviour(failure)]).listen() as vendor:
        driven = await asyncio.to_thread(drive, vendor.base_url, requests(vendor.base_url, 3), 1)
    assert driven.statuses == (0, 200, 200)


async def test_no_request_is_begun_after_the_time_is_over(requests):
    async with VendorSimulator(Behaviour(reply=lambda body: body, latency_seconds=0.1)).listen() as vendor:
        driven = await asyncio.to_thread(drive, vendor.base_url, requests(vendor.base_url, 1000), 2, 0.3)
    assert 2 <= len(driven.statuses) <= 8


async def test_arrivals_keep_to_their_rate_while_nobody_is_answered(requests):
    async with VendorSimulator(Behaviour(reply=lambda body: body, latency_seconds=0.5)).listen() as vendor:
        driven = await asyncio.to_thread(offer, vendor.base_url, requests(vendor.base_url, 60), [(100, 0.2), (200, 0.2)])
    asked = sorted(ended - latency for ended, latency in zip(driven.ended, driven.latencies, strict=True))
    assert len(asked) == 60
    assert asked[19] == pytest.approx(0.19, abs=0.001)
    assert asked[59] == pytest.approx(0.395, abs=0.001)
    assert vendor.most_open_requests > 30


def test_a_stretch_of_time_has_the_answers_that_ended_in_it():
    driven = Driven(3.0, (0.1, 0.2, 0.3), 0.0, 0, 1, (0.5, 1.5, 2.5), (200, 503, 200))
    middle = driven.between(1.0, 3.0)
    assert (middle.latencies, middle.statuses, middle.failed, middle.seconds) == ((0.2, 0.3), (503, 200), 1, 2.0)


def test_a_quantile_of_nothing_is_not_a_number():
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert quantile([], 0.5) != quantile([], 0.5)
