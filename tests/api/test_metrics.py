import asyncio
import threading

from api.metrics import UNMATCHED, Metrics
from rag.threads import Lane


def test_requests_are_counted_by_route_template_and_status() -> None:
    metrics = Metrics()
    metrics.request("GET", "/datasets/<dataset_id>", 200, 0.004)
    metrics.request("GET", "/datasets/<dataset_id>", 200, 0.004)
    metrics.request("GET", UNMATCHED, 404, 0.001)
    text = metrics.text().decode()
    assert 'millrace_requests_total{method="GET",route="/datasets/<dataset_id>",status="200"} 2.0' in text
    assert 'millrace_requests_total{method="GET",route="unmatched",status="404"} 1.0' in text
    assert 'millrace_request_seconds_count{route="/datasets/<dataset_id>"} 2.0' in text


def test_two_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.ingested("done", 5)
    assert "millrace_ingest_chunks_total 5.0" in one.text().decode()
    assert "millrace_ingest_chunks_total 0.0" in other.text().decode()


async def test_lanes_show_how_full_they_are_and_how_long_calls_waited() -> None:
    metrics = Metrics()
    lane = Lane("search", 1, 10, metrics.lane_wait)
    metrics.watch_lanes([lane])
    running, go = threading.Event(), threading.Event()

    def block() -> None:
        running.set()
        go.wait()

    first = asyncio.create_task(lane.run(block))
    await asyncio.to_thread(running.wait)
    second = asyncio.create_task(lane.run(int))
    await asyncio.sleep(0)
    text = metrics.text().decode()
    go.set()
    await asyncio.gather(first, second)
    lane.close()
    assert 'millrace_lane_busy{lane="search"} 1.0' in text
    assert 'millrace_lane_queued{lane="search"} 1.0' in text
    assert 'millrace_lane_threads{lane="search"} 1.0' in text
    assert 'millrace_lane_wait_seconds_count{lane="search"} 2.0' in metrics.text().decode()


def test_a_backlog_that_is_unknown_is_not_a_zero() -> None:
    metrics = Metrics()
    metrics.set_backlog(3, 1)
    assert 'millrace_ingest_backlog{state="waiting"} 3.0' in metrics.text().decode()
    metrics.set_backlog(None, None)
    assert 'millrace_ingest_backlog{state="waiting"} NaN' in metrics.text().decode()
