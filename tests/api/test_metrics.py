import asyncio
import re
import threading
import time
from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from api.metrics import LONGEST_LABEL, MOST_SERIES, UNMATCHED, Metrics, merged
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


def test_labels_stay_bounded_whatever_names_come() -> None:
    metrics = Metrics()
    for number in range(3 * MOST_SERIES):
        hostile = f'tenant {number} "}} \\ \n' + "x" * 10_000
        metrics.request(hostile, hostile, 200, 0.001)
        metrics.stages(hostile, {hostile: 0.001})
        metrics.vendor_call(hostile, hostile, "ok", 0.001)
        metrics.vendor_call(hostile, hostile, hostile, 0.001)
        metrics.vendor_retry(hostile, hostile)
        metrics.degraded([hostile])
        metrics.lane_wait(hostile, 0.001)
        metrics.ingested(hostile)
    lines = metrics.text().decode().splitlines()
    series = Counter(line.partition("{")[0] for line in lines)
    assert series["millrace_requests_total"] == MOST_SERIES + 1
    assert max(len(value) for line in lines for value in re.findall(r'="((?:[^"\\]|\\.)*)"', line)) < 2 * LONGEST_LABEL
    assert f'millrace_degraded_total{{part="other"}} {2 * MOST_SERIES}.0' in lines
    before = len(lines)
    metrics.request("yet", "another", 200, 0.001)
    assert len(metrics.text().decode().splitlines()) == before


def test_stages_are_timed_by_what_the_request_was() -> None:
    metrics = Metrics()
    metrics.stages("chat", {"db": 0.002, "first_token": 0.4})
    text = metrics.text().decode()
    assert 'millrace_stage_seconds_bucket{flow="chat",le="0.5",stage="first_token"} 1.0' in text
    assert 'millrace_stage_seconds_sum{flow="chat",stage="db"} 0.002' in text


def test_only_answered_calls_are_timed_and_all_are_counted() -> None:
    metrics = Metrics()
    metrics.vendor_call("Jina", "rerank", "ok", 0.3)
    metrics.vendor_call("Jina", "rerank", "busy", 0.01)
    metrics.vendor_retry("Jina", "rerank")
    text = metrics.text().decode()
    assert 'millrace_vendor_calls_total{kind="rerank",outcome="busy",provider="Jina"} 1.0' in text
    assert 'millrace_vendor_seconds_count{kind="rerank",provider="Jina"} 1.0' in text
    assert 'millrace_vendor_retries_total{kind="rerank",provider="Jina"} 1.0' in text


def test_the_worst_breaker_of_a_provider_and_kind_is_shown() -> None:
    metrics = Metrics()
    metrics.watch_breakers(lambda: [("Jina", "rerank", "closed"), ("Jina", "rerank", "open"), ("Jina", "chat", "half_open")])
    shown = [line for line in metrics.text().decode().splitlines() if line.startswith("millrace_breaker_state{") and line.endswith(" 1.0")]
    assert shown == [
        'millrace_breaker_state{kind="rerank",provider="Jina",state="open"} 1.0',
        'millrace_breaker_state{kind="chat",provider="Jina",state="half_open"} 1.0',
    ]


async def test_a_stall_of_20_ms_shows_in_the_loop_s_lateness() -> None:
    metrics = Metrics()
    watching = asyncio.create_task(metrics.watch_loop())
    await asyncio.sleep(0.05)
    time.sleep(0.02)  # noqa: ASYNC251 - the stall
    await asyncio.sleep(0.05)
    watching.cancel()
    await asyncio.wait([watching])
    assert watching.cancelled()
    value = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in metrics.text().decode().splitlines() if line[0] != "#"}
    below, whole = value['millrace_event_loop_lag_seconds_bucket{le="0.005"}'], value["millrace_event_loop_lag_seconds_count"]
    assert whole - below >= 1
    assert whole >= 5


def test_several_workers_figures_are_one_text_with_a_label_for_each() -> None:
    workers = [Metrics(), Metrics()]
    for number, metrics in enumerate(workers):
        metrics.request("GET", '/a b{"}', 200, 0.001 * (number + 1))
    text = merged({str(number): metrics.text() for number, metrics in enumerate(workers)}).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    requests = families["millrace_requests"].samples
    assert [(sample.labels["worker"], sample.labels["route"], sample.value) for sample in requests] == [
        ("0", '/a b{"}', 1.0), ("1", '/a b{"}', 1.0),
    ]  # fmt: skip
    assert {sample.labels["worker"] for sample in families["millrace_requests_in_flight"].samples} == {"0", "1"}
    heads = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(heads) == len(set(heads)) == len(families)
    assert len(text.splitlines()) - 2 * len(heads) == 2 * sum(not line.startswith("#") for line in workers[0].text().decode().splitlines())
