"""A collector of OpenTelemetry traces on this machine: OTLP over HTTP, as the specification has it, and every way to be of no use."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """What arrived. `status` is what it answers; while `hangs` is set it answers nothing."""

    url: str = ""
    status: int = 200
    hangs: threading.Event = field(default_factory=threading.Event)
    requests: list[ExportTraceServiceRequest] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    _go: threading.Event = field(default_factory=threading.Event)

    @property
    def spans(self) -> list[Span]:
        """All spans, in the order in which they came."""
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def resource(self) -> dict[str, Any]:
        """The attributes of what sent the last request."""
        return attributes(self.requests[-1].resource_spans[0].resource)


def attributes(of: Any) -> dict[str, Any]:
    """The attributes of a span or a resource as plain values."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in of.attributes}


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector at a free port, as long as the block lasts."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.paths.append(self.path)
            found.arrived.set()
            if found.hangs.is_set():
                found._go.wait()
                return
            if found.status == 200:
                found.requests.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(found.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        found._go.set()
        server.shutdown()
        thread.join()
        server.server_close()
