"""What the server counts and times, for Prometheus. One registry a server, labels only from bounded sets of our own names."""

import asyncio
import math
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rag.threads import Lane

disable_created_metrics()  # a second series for each, of no use to anyone here

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
WAIT_BUCKETS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
LAG_SAMPLE_SECONDS = 1.0
UNMATCHED = "unmatched"


class Metrics:
    """The server's figures. Safe from any thread; every call costs microseconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "millrace_requests", "Answered requests by route template and status.", ["method", "route", "status"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "millrace_request_seconds",
            "Time from a request's head to the last byte of its answer.",
            ["route"],
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge("millrace_requests_in_flight", "Requests being answered now.", registry=self.registry)
        self._lane_wait = Histogram(
            "millrace_lane_wait_seconds",
            "How long calls waited for a thread of a lane.",
            ["lane"],
            buckets=WAIT_BUCKETS,
            registry=self.registry,
        )
        self._degraded = Counter(
            "millrace_degraded", "Answers given without a part that failed, by part.", ["part"], registry=self.registry
        )
        self._ingest_tasks = Counter(
            "millrace_ingest_tasks", "Ingestion tasks by outcome: done, failed, lost.", ["outcome"], registry=self.registry
        )
        self._ingest_chunks = Counter("millrace_ingest_chunks", "Chunks of documents ingested to the end.", registry=self.registry)
        self._backlog = Gauge(
            "millrace_ingest_backlog", "Ingestion tasks of all servers, waiting or leased.", ["state"], registry=self.registry
        )
        self._loop_lag = Histogram(
            "millrace_event_loop_lag_seconds",
            "How late the event loop woke a timer.",
            buckets=WAIT_BUCKETS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is the route's template, `UNMATCHED` for none."""
        self._requests.labels(method, route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def lane_wait(self, lane: str, seconds: float) -> None:
        """Time one call's wait for a thread; a `Lane` calls this."""
        self._lane_wait.labels(lane).observe(seconds)

    def degraded(self, parts: Iterable[str]) -> None:
        """Count an answer that had to do without these parts."""
        for part in parts:
            self._degraded.labels(part).inc()

    def ingested(self, outcome: str, chunks: int = 0) -> None:
        """Count one ingestion task that ended as `outcome`."""
        self._ingest_tasks.labels(outcome).inc()
        self._ingest_chunks.inc(chunks)

    def set_backlog(self, waiting: int | None, leased: int | None) -> None:
        """How much ingestion work there is; None where the database did not say."""
        self._backlog.labels("waiting").set(math.nan if waiting is None else waiting)
        self._backlog.labels("leased").set(math.nan if leased is None else leased)

    def watch_lanes(self, lanes: Iterable[Lane]) -> None:
        """Report how full the lanes are whenever the figures are read."""
        self.registry.register(_LaneCollector(tuple(lanes)))

    async def watch_loop(self) -> None:
        """Time the event loop's lateness, once a second, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_SAMPLE_SECONDS
            await asyncio.sleep(LAG_SAMPLE_SECONDS)
            self._loop_lag.observe(max(0.0, loop.time() - due))

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _LaneCollector(Collector):
    def __init__(self, lanes: tuple[Lane, ...]) -> None:
        self._lanes = lanes

    def collect(self) -> Iterator[GaugeMetricFamily]:
        busy = GaugeMetricFamily("millrace_lane_busy", "Threads of a lane at work now.", labels=["lane"])
        queued = GaugeMetricFamily("millrace_lane_queued", "Calls waiting for a thread of a lane.", labels=["lane"])
        threads = GaugeMetricFamily("millrace_lane_threads", "Threads of a lane.", labels=["lane"])
        for state in (lane.state for lane in self._lanes):
            busy.add_metric([state.name], state.busy)
            queued.add_metric([state.name], state.queued)
            threads.add_metric([state.name], state.threads)
        yield from (busy, queued, threads)
