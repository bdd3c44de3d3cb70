"""A real server's traces at a real collector: from the caller's span through the stages to the model's endpoint."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e import flows
from tests.e2e.server_process import ServerProcess
from tests.e2e.test_slow_callbacks_under_load import RERANKER, SETTINGS, vendor
from tests.services.otlp import Collector, attributes, collector

SEARCH_TRACE = "0af7651916cd43dd8448eb211c80319c"
CHAT_TRACE = "1bf7651916cd43dd8448eb211c80319d"
CALLER = "b7ad6b7169203331"
QUESTION = "When does zirconium boil?"


@dataclass
class Traced:
    """What a server sent to its collector, and wrote to its log."""

    found: Collector
    logs: str

    def of(self, trace: str) -> dict[str, Any]:
        """The spans of a trace by name; of several with one name the first."""
        spans = [span for span in self.found.spans if span.trace_id.hex() == trace]
        return {span.name: span for span in reversed(spans)}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """A search and a streamed chat, each with a trace of the caller's; the server has stopped."""
    folder = tmp_path_factory.mktemp("traced")
    with collector() as found, vendor() as url:
        config = folder / "millrace.toml"
        config.write_text(SETTINGS.format(url=url))
        environ = {
            "MILLRACE_CONFIG": str(config), "MILLRACE_LOG_FORMAT": "json", "OTEL_EXPORTER_OTLP_ENDPOINT": found.url,
            "OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }  # fmt: skip
        server = ServerProcess(folder / "data", log_file=folder / "server.log", environ=environ)
        try:
            server.wait_until_ready()
            dataset = flows.create_dataset(server, "facts")
            flows.ingest(server, dataset, {"water.txt": b"Water boils at 100 degrees. Zirconium boils at 4409 degrees."})
            chat = flows.create_chat(server, "facts", [dataset])
            search = {"question": QUESTION, "dataset_ids": [dataset], "rerank_id": RERANKER}
            call(server, "/retrieval", search, SEARCH_TRACE)
            call(server, f"/chats/{chat}/completions", {"question": QUESTION, "stream": True}, CHAT_TRACE)
            assert server.stop() == 0
        finally:
            server.kill()
        yield Traced(found, server.logs)


def call(server: ServerProcess, path: str, body: Any, trace: str) -> None:
    headers = {
        "Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json", "traceparent": f"00-{trace}-{CALLER}-01",
    }  # fmt: skip
    status, raw = server.request("POST", f"/api/v1{path}", json.dumps(body).encode(), headers)
    assert status == 200, raw


def test_a_search_is_one_tree_from_the_caller_to_its_models(traced: Traced) -> None:
    spans = traced.of(SEARCH_TRACE)
    request = spans["POST /api/v1/retrieval"]
    assert request.parent_span_id.hex() == CALLER
    assert attributes(request) == {"http.request.method": "POST", "http.route": "/api/v1/retrieval", "http.response.status_code": 200}
    for stage in ("db", "analyse", "embed", "search", "fuse", "rerank", "fetch", "build"):
        assert spans[stage].parent_span_id == request.span_id, stage
    for stage, vendor_call in (("embed", "embedding vectors"), ("rerank", "rerank order")):
        assert spans[vendor_call].parent_span_id == spans[stage].span_id
        assert spans[vendor_call].kind == spans[vendor_call].SPAN_KIND_CLIENT
        assert attributes(spans[vendor_call])["millrace.outcome"] == "ok"
    assert request.kind == request.SPAN_KIND_SERVER


def test_a_chat_s_search_and_model_are_in_its_trace(traced: Traced) -> None:
    spans = traced.of(CHAT_TRACE)
    (request,) = [span for name, span in spans.items() if name.startswith("POST ")]
    assert spans["retrieve"].parent_span_id == request.span_id
    assert spans["search"].parent_span_id == spans["retrieve"].span_id
    assert spans["chat small"].parent_span_id == request.span_id
    # the stream was read to its end inside the request
    assert request.start_time_unix_nano < spans["chat small"].start_time_unix_nano < spans["chat small"].end_time_unix_nano
    assert spans["chat small"].end_time_unix_nano <= request.end_time_unix_nano


def test_the_standard_variables_name_the_service(traced: Traced) -> None:
    assert traced.found.resource["service.name"] == "mine"
    assert traced.found.resource["deployment.environment.name"] == "test"


def test_log_lines_carry_the_trace_they_belong_to(traced: Traced) -> None:
    lines = [json.loads(line) for line in traced.logs.splitlines() if line.startswith("{")]
    searches = [line for line in lines if line["event"] == "request" and line["route"] == "/api/v1/retrieval"]
    assert [line["trace_id"] for line in searches] == [SEARCH_TRACE]
    assert all(line["trace_id"] for line in lines if line["event"] == "request")


def test_nothing_of_a_user_s_and_no_key_is_in_a_span(traced: Traced) -> None:
    text = str(traced.found.requests)
    assert "irconium" not in text
    assert "ragflow-" not in text
    names = {name for span in traced.found.spans for name in attributes(span)}
    assert names == {
        "http.request.method", "http.route", "http.response.status_code", "error.type", "gen_ai.provider.name", "gen_ai.request.model",
        "gen_ai.operation.name", "millrace.outcome",
    } - ({"error.type"} - names)  # fmt: skip
