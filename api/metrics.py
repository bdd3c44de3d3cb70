"""What the server counts and times, for Prometheus. One registry a server, labels only from bounded sets of names."""

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rag.threads import LaneState

disable_created_metrics()  # a second series for each, of no use to anyone here

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
WAIT_BUCKETS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5)
# a stall of 20 ms shows as at least 10 ms, whenever it begins
LAG_SAMPLE_SECONDS = 0.01
UNMATCHED = "unmatched"
OTHER = "other"
MOST_SERIES = 1_000
LONGEST_LABEL = 100
BREAKER_STATES = ("closed", "half_open", "open")

BreakerStates = Callable[[], Iterable[tuple[str, str, str]]]
"""(provider, kind, state) of each breaker, when called. A model's kind, or what a service keeps: "store", "blobs", "cache"."""


class HasState(Protocol):
    """A lane, or what works like one."""

    @property
    def state(self) -> LaneState:
        """How full it is now."""
        ...


class Family:
    """The series of one metric by the values of its labels; there are never more than `limit`.

    Values are names of ours or of the operator's, so the limit is for the day when one of them is not: what comes after the
    limit is counted under "other".
    """

    def __init__(self, metric: Counter | Histogram | Gauge, labels: int, limit: int = MOST_SERIES) -> None:
        self._metric: Any = metric
        self._other = (OTHER,) * labels
        self._limit = limit
        self._series: dict[tuple[str, ...], Any] = {}

    def of(self, *labels: str) -> Any:
        """The series with these values."""
        series = self._series.get(labels)
        if series is None:
            known = labels if len(self._series) < self._limit else self._other
            series = self._metric.labels(*(label[:LONGEST_LABEL] for label in known))
            if known is labels:
                self._series[labels] = series
        return series


class Metrics:
    """The server's figures. Safe from any thread; every call costs microseconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lanes: list[HasState] = []
        self.registry.register(_LaneCollector(self._lanes))
        self._breakers: list[BreakerStates] = []
        self.registry.register(_BreakerCollector(self._breakers))
        self._requests = self._counter("requests", "Answered requests by route template and status.", "method", "route", "status")
        self._request_seconds = self._histogram(
            "request_seconds", "Time from a request's head to the last byte of its answer.", REQUEST_BUCKETS, "route"
        )
        self._stage_seconds = self._histogram(
            "stage_seconds", "Time of a request's stages; flow: retrieval, chat, other.", REQUEST_BUCKETS, "flow", "stage"
        )  # fmt: skip
        self.in_flight = Gauge("millrace_requests_in_flight", "Requests being answered now.", registry=self.registry)
        self.streams = Gauge("millrace_streams_open", "Streamed answers under way.", registry=self.registry)
        self._lane_wait = self._histogram("lane_wait_seconds", "How long calls waited for a thread of a lane.", WAIT_BUCKETS, "lane")
        self._vendor_seconds = self._histogram(
            "vendor_seconds", "Time until a model's endpoint answered, or sent a stream's first event.", REQUEST_BUCKETS, "provider", "kind"
        )
        self._vendor_calls = self._counter(
            "vendor_calls", "Calls to models' endpoints by outcome: ok, or what went wrong.", "provider", "kind", "outcome"
        )
        self._vendor_retries = self._counter("vendor_retries", "Calls to models' endpoints sent a second time.", "provider", "kind")
        self._degraded = self._counter("degraded", "Answers given without a part that failed, by part.", "part")
        self._active = Gauge(
            "millrace_requests_active",
            "Requests at work here; not those that wait for a vendor or a client.",
            registry=self.registry,
        )
        self._pressed = Gauge("millrace_pressed", "1 while the server is beyond its capacity and refuses.", registry=self.registry)
        self._refused = self._counter("refused", "Requests refused before any work: overload, share (of one caller), rate.", "reason")
        self._cache_asked = self._counter(
            "cache", "Questions to the cache by what they were for (vector, result) and outcome.", "cache", "outcome"
        )
        self._ingest_tasks = self._counter("ingest_tasks", "Ingestion tasks by outcome: done, failed, lost.", "outcome")
        self._ingest_chunks = Counter("millrace_ingest_chunks", "Chunks of documents ingested to the end.", registry=self.registry)
        self._backlog = Gauge(
            "millrace_ingest_backlog", "Ingestion tasks of all servers, waiting or leased.", ["state"], registry=self.registry
        )
        self._loop_lag = Histogram(
            "millrace_event_loop_lag_seconds", "How late the event loop woke a timer.", buckets=LAG_BUCKETS, registry=self.registry
        )
        self._slow_callbacks = Counter(
            "millrace_slow_callbacks",
            "Steps that held the event loop for longer than MILLRACE_SLOW_CALLBACK_SECONDS of its CPU time.",
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Family:
        return Family(Counter(f"millrace_{name}", text, labels, registry=self.registry), len(labels))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Family:
        return Family(Histogram(f"millrace_{name}", text, labels, buckets=buckets, registry=self.registry), len(labels))

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is the route's template, `UNMATCHED` for none."""
        self._requests.of(method, route, str(status)).inc()
        self._request_seconds.of(route).observe(seconds)

    def stages(self, flow: str, seconds: Mapping[str, float]) -> None:
        """Time the stages of one answered request."""
        for stage, spent in seconds.items():
            self._stage_seconds.of(flow, stage).observe(spent)

    def lane_wait(self, lane: str, seconds: float) -> None:
        """Time one call's wait for a thread; a `Lane` calls this."""
        self._lane_wait.of(lane).observe(seconds)

    def vendor_call(self, provider: str, kind: str, outcome: str, seconds: float) -> None:
        """Count one call to a model's endpoint, and time one that was answered; see `rag.ports.VendorObserver`."""
        self._vendor_calls.of(provider, kind, outcome).inc()
        if outcome == "ok":
            self._vendor_seconds.of(provider, kind).observe(seconds)

    def vendor_retry(self, provider: str, kind: str) -> None:
        """Count one call that is sent a second time."""
        self._vendor_retries.of(provider, kind).inc()

    def watch_admission(self, active: Callable[[], float], pressed: Callable[[], float]) -> None:
        """Report both whenever the figures are read."""
        self._active.set_function(active)
        self._pressed.set_function(pressed)

    def refused(self, reason: str) -> None:
        """Count a request that was refused before any work, as "overload", "share" or "rate"."""
        self._refused.of(reason).inc()

    def cache_asked(self, cache: str, hit: bool) -> None:
        """Count one question to the cache, for a "vector" or a "result"."""
        self._cache_asked.of(cache, "hit" if hit else "miss").inc()

    def degraded(self, parts: Iterable[str]) -> None:
        """Count an answer that had to do without these parts."""
        for part in parts:
            self._degraded.of(part).inc()

    def ingested(self, outcome: str, chunks: int = 0) -> None:
        """Count one ingestion task that ended as `outcome`."""
        self._ingest_tasks.of(outcome).inc()
        self._ingest_chunks.inc(chunks)

    def set_backlog(self, waiting: int | None, leased: int | None) -> None:
        """How much ingestion work there is; None where the database did not say."""
        self._backlog.labels("waiting").set(math.nan if waiting is None else waiting)
        self._backlog.labels("leased").set(math.nan if leased is None else leased)

    def slow_callback(self) -> None:
        """Count one step that held the event loop for too long."""
        self._slow_callbacks.inc()

    def watch_lanes(self, lanes: Iterable[HasState]) -> None:
        """Report how full these lanes are, too, whenever the figures are read."""
        self._lanes.extend(lanes)

    def watch_breakers(self, states: BreakerStates) -> None:
        """Report these circuit breakers, too, whenever the figures are read."""
        self._breakers.append(states)

    async def watch_loop(self) -> None:
        """Time the event loop's lateness, a hundred times a second, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + LAG_SAMPLE_SECONDS

        def wake() -> None:
            nonlocal due, timer
            now = loop.time()
            self._loop_lag.observe(max(0.0, now - due))
            due = now + LAG_SAMPLE_SECONDS
            timer = loop.call_at(due, wake)

        timer = loop.call_at(due, wake)
        try:
            await loop.create_future()
        finally:
            timer.cancel()

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)


def merged(texts: Mapping[str, bytes]) -> bytes:
    """The figures of several processes as those of one server: each series gets the label `worker`, a key of `texts`.

    Families come once each, their series by worker in the order given, as the text format wants it.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, text in texts.items():
        family = ""
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                heads.setdefault(family, [])
                samples.setdefault(family, [])
            if line.startswith("# "):
                if line not in heads[family]:
                    heads[family].append(line)
            elif line:
                samples[family].append(_labelled(line, worker))
    return "".join(f"{line}\n" for family, head in heads.items() for line in (*head, *samples[family])).encode()


def _labelled(line: str, worker: str) -> str:
    """The sample `name{...} value` or `name value` with the label `worker` in front."""
    name = line.partition(" ")[0].partition("{")[0]
    rest = line.removeprefix(name)
    return f'{name}{{worker="{worker}",{rest[1:]}' if rest.startswith("{") else f'{name}{{worker="{worker}"}}{rest}'


class _LaneCollector(Collector):
    def __init__(self, lanes: Sequence[HasState]) -> None:
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


class _BreakerCollector(Collector):
    """1 for the state that a breaker is in, 0 for the others; of several for one provider and kind, the worst one."""

    def __init__(self, breakers: Sequence[BreakerStates]) -> None:
        self._breakers = breakers

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "millrace_breaker_state",
            "Whether a model's endpoint, or a service that keeps data, is asked: 1 for the state its breaker is in.",
            labels=["provider", "kind", "state"],
        )
        worst: dict[tuple[str, str], int] = {}
        for provider, kind, state in (each for states in self._breakers for each in states()):
            key = (provider[:LONGEST_LABEL], kind)
            worst[key] = max(worst.get(key, 0), BREAKER_STATES.index(state))
        for (provider, kind), rank in worst.items():
            for place, state in enumerate(BREAKER_STATES):
                family.add_metric([provider, kind, state], float(place == rank))
        yield family
