import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from load.vendor_simulator import Behaviour, VendorSimulator
from rag import stages, tracing
from rag.errors import ProviderError, SettingsError
from rag.llm.endpoint import Endpoint
from rag.llm.observed import Calls
from rag.llm.resilience import Guard
from rag.llm.transport import Transport, open_client
from tests.services.otlp import Collector, attributes, collector

ROOT = Path(__file__).parents[2]
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{CALLER}-01"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the SDK's own variables point to; the SDK reads them where it likes."""
    with collector() as found:
        monkeypatch.setenv(ENDPOINT, found.url)
        yield found


@pytest.fixture
def traced(receiver: Collector) -> Iterator[Collector]:
    """Tracing is on; what was traced is at the collector after `flushed`."""
    with tracing.exporting({ENDPOINT: receiver.url}, service_version="1.2.3"):
        yield receiver


def flushed(receiver: Collector) -> Collector:
    assert tracing._backend is not None
    tracing._backend._provider.force_flush()
    return receiver


# ---------------------------------------------------------------------------------------------------- switched off
def test_what_is_switched_off_is_not_imported() -> None:
    unused = {"opentelemetry", "redis", "elasticsearch", "obstore"}
    code = f"import sys, api.__main__, api.serve; print(sorted({unused} & {{name.partition('.')[0] for name in sys.modules}}))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_switched_off_every_span_is_the_same_object_that_does_nothing() -> None:
    assert tracing.span("one") is tracing.client_span("two") is tracing.server_span("three", [])
    assert tracing.trace_id() is None
    headers: dict[str, str] = {}
    tracing.add_context(headers)
    assert headers == {}


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", ENDPOINT: "http://collector:4318"}, False),
        ({"OTEL_SERVICE_NAME": "mine"}, False),
    ],
)
def test_the_standard_variables_switch_it_on_and_off(environ: dict[str, str], wanted: bool) -> None:
    assert tracing.wanted(environ) is wanted


@pytest.mark.parametrize(
    "environ",
    [{"OTEL_TRACES_EXPORTER": "zipkin"}, {ENDPOINT: "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}],
)
def test_what_cannot_be_done_is_said_at_the_start(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^OTEL_"), tracing.exporting(environ, service_version="1"):
        pass


# ---------------------------------------------------------------------------------------------------- spans
def test_a_request_goes_on_with_its_caller_s_trace_and_its_stages_are_below_it(traced: Collector) -> None:
    with tracing.server_span("GET", [(b"traceparent", PARENT.encode()), (b"x-other", b"secret")]) as request, stages.recording() as record:
        with stages.stage("search"), stages.stage("fetch"):
            assert tracing.trace_id() == TRACE
        request.rename("GET /things/<id>")
        request.set("http.response.status_code", 200)
    spans = {span.name: span for span in flushed(traced).spans}
    assert traced.paths == ["/v1/traces"]
    assert {name: span.trace_id.hex() for name, span in spans.items()} == dict.fromkeys(("GET /things/<id>", "search", "fetch"), TRACE)
    assert spans["GET /things/<id>"].parent_span_id.hex() == CALLER
    assert spans["search"].parent_span_id == spans["GET /things/<id>"].span_id
    assert spans["fetch"].parent_span_id == spans["search"].span_id
    assert attributes(spans["GET /things/<id>"]) == {"http.response.status_code": 200}
    assert traced.resource["service.name"] == "millrace"
    assert traced.resource["service.version"] == "1.2.3"
    assert set(record.seconds) == {"search", "fetch"}


@pytest.mark.parametrize("header", [b"", b"nonsense", b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", b"\xff\xfe"])
def test_a_traceparent_that_is_none_begins_a_new_trace(traced: Collector, header: bytes) -> None:
    with tracing.server_span("GET", [(b"traceparent", header)]):
        assert tracing.trace_id() not in (None, TRACE)
    (span,) = flushed(traced).spans
    assert span.parent_span_id == b""


def test_a_caller_s_wish_not_to_be_sampled_is_kept(traced: Collector) -> None:
    headers: dict[str, str] = {}
    with tracing.server_span("GET", [(b"traceparent", PARENT.removesuffix("01").encode() + b"00")]):
        tracing.add_context(headers)
    assert flushed(traced).spans == []
    assert headers["traceparent"].startswith(f"00-{TRACE}-")
    assert headers["traceparent"].endswith("-00")


def test_a_failure_is_told_by_its_class_and_never_by_its_message(traced: Collector) -> None:
    with pytest.raises(ValueError, match="secret"), tracing.server_span("GET", []), tracing.span("search"):
        raise ValueError("secret question")
    request = flushed(traced).spans[-1]
    assert attributes(request) == {"error.type": "ValueError"}
    assert "secret" not in str(traced.requests)


def test_stages_outside_of_a_traced_request_are_no_traces_of_their_own(traced: Collector) -> None:
    with stages.recording(), stages.stage("db"):
        pass
    assert flushed(traced).spans == []


async def test_what_runs_in_tasks_of_a_request_belongs_to_it(traced: Collector) -> None:
    async def work() -> str | None:
        with tracing.span("work"):
            await asyncio.sleep(0)
            return tracing.trace_id()

    async def request() -> list[str | None]:
        with tracing.server_span("GET", []):
            return [tracing.trace_id(), *await asyncio.gather(work(), work())]

    one, other = await asyncio.gather(request(), request())
    assert len(set(one)) == len(set(other)) == 1
    assert one[0] != other[0]


# ---------------------------------------------------------------------------------------------------- vendor calls
class Told:
    """A `VendorObserver` that keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.retries = 0

    def vendor_call(self, provider: str, kind: str, outcome: str, seconds: float) -> None:
        self.calls.append((provider, kind, outcome))

    def vendor_retry(self, provider: str, kind: str) -> None:
        self.retries += 1


@pytest.fixture
async def vendor() -> AsyncIterator[VendorSimulator]:
    async with VendorSimulator().listen() as simulator:
        yield simulator


async def test_a_vendor_call_is_a_span_of_its_own_that_the_vendor_s_spans_are_below(traced: Collector, vendor: VendorSimulator) -> None:
    endpoint = Endpoint("small@Vendor", f"{vendor.base_url}/v1/chat/completions")
    body = {"messages": [{"role": "user", "content": "secret question"}]}
    async with open_client() as client:
        transport = Transport(client)
        guard = Guard("small@Vendor", 4, 5.0, calls=Calls("small@Vendor", "chat"))
        with tracing.server_span("POST", [(b"traceparent", PARENT.encode()), (b"baggage", b"user=secret")]):
            await guard.call(lambda: transport.post_json(endpoint, body))
            async with aclosing(guard.stream(lambda: transport.stream_events(endpoint, body | {"stream": True}))) as events:
                async for _ in events:
                    with tracing.span("reading"):
                        pass
    spans = flushed(traced).spans
    calls = [span for span in spans if span.name == "chat small"]
    (request,) = [span for span in spans if span.name == "POST"]
    assert [call.parent_span_id for call in calls] == [request.span_id] * 2
    assert [sent.headers["traceparent"] for sent in vendor.requests] == [f"00-{TRACE}-{call.span_id.hex()}-01" for call in calls]
    assert all("baggage" not in sent.headers for sent in vendor.requests)
    assert attributes(calls[0]) == {
        "gen_ai.provider.name": "Vendor", "gen_ai.request.model": "small", "gen_ai.operation.name": "chat", "millrace.outcome": "ok",
    }  # fmt: skip
    assert {span.parent_span_id for span in spans if span.name == "reading"} == {request.span_id}
    assert "secret" not in str(traced.requests)


async def test_each_attempt_is_told_of_with_what_became_of_it(vendor: VendorSimulator) -> None:
    told = Told()
    endpoint = Endpoint("small@Vendor", f"{vendor.base_url}/v1/chat/completions")
    vendor.script = [Behaviour(status=500), Behaviour(), Behaviour(status=401), Behaviour(failure="html")]
    async with open_client() as client:
        transport = Transport(client)
        guard = Guard("small@Vendor", 4, 5.0, repeats_failures=True, calls=Calls("small@Vendor", "rerank", told))
        for _ in range(3):
            try:
                await guard.call(lambda: transport.post_json(endpoint, {"messages": []}))
            except ProviderError:
                continue
    assert [outcome for _, _, outcome in told.calls] == ["failed", "ok", "refused", "bad_reply"]
    assert {(provider, kind) for provider, kind, _ in told.calls} == {("Vendor", "rerank")}
    assert told.retries == 1


async def test_a_stream_that_its_reader_closes_was_answered(vendor: VendorSimulator) -> None:
    told = Told()
    endpoint = Endpoint("small@Vendor", f"{vendor.base_url}/v1/chat/completions")
    async with open_client() as client:
        transport = Transport(client)
        guard = Guard("small@Vendor", 4, 5.0, calls=Calls("small@Vendor", "chat", told))
        async with aclosing(guard.stream(lambda: transport.stream_events(endpoint, {"messages": [], "stream": True}))) as events:
            await anext(events)
    assert told.calls == [("Vendor", "chat", "ok")]


# ---------------------------------------------------------------------------------------------------- trouble with the collector
@pytest.mark.parametrize("trouble", ["refuses", "fails", "hangs"])
def test_a_collector_in_trouble_delays_no_span_and_no_end(receiver: Collector, trouble: str) -> None:
    url = "http://127.0.0.1:9" if trouble == "refuses" else receiver.url
    receiver.status = 500
    if trouble == "hangs":
        receiver.hangs.set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENDPOINT, url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
        patch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
        patch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
        spent = 0.0
        started = time.monotonic()
        with tracing.exporting({ENDPOINT: url}, service_version="1"):
            for _ in range(500):
                before = time.thread_time()
                with tracing.server_span("GET", []), tracing.span("search"):
                    pass
                spent += time.thread_time() - before
            ended = time.monotonic()
        assert spent / 500 < 0.005
        assert ended - started < 5
        assert time.monotonic() - ended < tracing.SHUTDOWN_SECONDS + 2
    assert tracing.span("after") is tracing.span("it")
