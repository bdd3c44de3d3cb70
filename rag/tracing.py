"""OpenTelemetry spans, when the standard OTEL_* variables ask for them; without them nothing is imported and nothing is made.

A span says which step ran how long, never what was asked, found or answered: attributes are names of our own, the operator's names
of models, and classes of errors. W3C trace context (https://www.w3.org/TR/trace-context/) comes in with a request and goes out with
the calls to vendors; baggage, which may hold anything, does neither.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol

from rag.errors import SettingsError

Kind = Literal["internal", "server", "client"]

SHUTDOWN_SECONDS = 3.0  # for the last spans, when the process ends; a collector that does not answer must not hold it up
_OFF_EXPORTERS = ("none", "")
_CONTEXT_HEADERS = (b"traceparent", b"tracestate")

_backend: "_Backend | None" = None
_current: ContextVar[Any] = ContextVar("span", default=None)


class Span(Protocol):
    """What the block inside `span` gets."""

    def set(self, name: str, value: str | int | float) -> None:
        """Add an attribute. Never a text of a user's."""

    def rename(self, name: str) -> None:
        """Give it a better name."""

    def fail(self, error: str) -> None:
        """Mark it as failed; `error` is a class of errors, not a message."""

    def release(self) -> None:
        """What follows in this task is no longer inside the span, though it has not ended: for the pieces of a stream."""


class _Nothing:
    """Stands for every span while tracing is off."""

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def set(self, name: str, value: str | int | float) -> None: ...
    def rename(self, name: str) -> None: ...
    def fail(self, error: str) -> None: ...
    def release(self) -> None: ...


_NOTHING = _Nothing()


def span(name: str) -> Any:
    """A context manager that gives a `Span`: a step of the request that is being traced; nothing outside of one."""
    if _backend is None or (parent := _current.get()) is None:
        return _NOTHING
    return _Traced(_backend, name, "internal", parent)


def past_spans(seconds: Mapping[str, float]) -> None:
    """As `span` for steps that were taken elsewhere, one after the other, and have ended just now: their seconds by name."""
    if _backend is None or (parent := _current.get()) is None:
        return
    at = time.time_ns() - sum(map(_nanoseconds, seconds.values()))
    for name, taken in seconds.items():
        step = _backend.start(name, "internal", parent, at)
        at += _nanoseconds(taken)
        step.end(at)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def client_span(name: str) -> Any:
    """The same for a call to another server, which is also traced where no request asked for it (ingestion)."""
    return _NOTHING if _backend is None else _Traced(_backend, name, "client", _current.get())


def server_span(name: str, headers: Iterable[tuple[bytes, bytes]]) -> Any:
    """The same for a request that came with these headers, the names in lower case; it goes on with the trace they name."""
    return _NOTHING if _backend is None else _Traced(_backend, name, "server", _backend.caller(headers))


def trace_id() -> str | None:
    """32 hex digits of the trace that is under way; None without one."""
    current = None if _backend is None else _current.get()
    return None if current is None else f"{current.get_span_context().trace_id:032x}"


def add_context(headers: dict[str, str]) -> None:
    """Add the W3C headers that make the receiver's spans part of this trace."""
    if _backend is not None and (current := _current.get()) is not None:
        _backend.inject(current, headers)


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for traces: an OTLP endpoint or `OTEL_TRACES_EXPORTER`. Raises `SettingsError`."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environ.get("OTEL_TRACES_EXPORTER")
    if exporter is None:
        return any(environ.get(name) for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"))
    if exporter.strip().lower() in _OFF_EXPORTERS:
        return False
    if exporter.strip().lower() != "otlp":
        raise SettingsError("OTEL_TRACES_EXPORTER must be otlp or none")
    return True


@contextmanager
def exporting(environ: Mapping[str, str], *, service_version: str) -> Iterator[None]:
    """Trace what happens inside the block, if the environment asks for it. Call it in the process that serves, after any fork.

    The exporter has a thread and a bounded queue of its own: a collector that is slow or gone costs spans, never a request.
    Raises `SettingsError`.
    """
    global _backend
    if not wanted(environ):
        yield
        return
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http/protobuf"
    if protocol != "http/protobuf":
        raise SettingsError("OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf")
    try:
        backend = _Backend(service_version)
    except (ValueError, OSError, ImportError) as error:
        raise SettingsError(f"OpenTelemetry cannot be set up by the OTEL_* variables: {type(error).__name__}") from None
    _backend = backend
    try:
        yield
    finally:
        _backend = None
        backend.close()


class _Backend:
    """The OpenTelemetry SDK, which reads the rest of the OTEL_* variables itself: sampler, resource, endpoint, headers, batches."""

    def __init__(self, service_version: str) -> None:
        # imported where it is switched on: 25 MB and 0.3 s that nobody should pay for who does not trace
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        own = Resource({"service.name": "millrace", "service.version": service_version})
        detected = Resource.create()
        named = not str(detected.attributes.get("service.name", "")).startswith("unknown_service")
        self._provider = TracerProvider(resource=own.merge(detected) if named else detected.merge(own), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("millrace", service_version)
        self._kinds = {"internal": trace.SpanKind.INTERNAL, "server": trace.SpanKind.SERVER, "client": trace.SpanKind.CLIENT}
        self._propagator = TraceContextTextMapPropagator()
        self._context = Context
        self._set_span = trace.set_span_in_context
        self._current_span = trace.get_current_span
        self.error = trace.Status(trace.StatusCode.ERROR)

    def start(self, name: str, kind: Kind, parent: Any, at: int | None = None) -> Any:
        """A span below `parent`, at the top without one, that started now or `at` that time in nanoseconds since the epoch."""
        context = self._context() if parent is None else self._set_span(parent, self._context())
        return self._tracer.start_span(
            name, context, self._kinds[kind], start_time=at, record_exception=False, set_status_on_exception=False
        )

    def caller(self, headers: Iterable[tuple[bytes, bytes]]) -> Any:
        """The caller's span; None where the headers name none, or none that is valid."""
        carrier = {key.decode(): value.decode("latin-1") for key, value in headers if key in _CONTEXT_HEADERS}
        if not carrier:
            return None
        span = self._current_span(self._propagator.extract(carrier, self._context()))
        return span if span.get_span_context().is_valid else None

    def inject(self, span: Any, headers: dict[str, str]) -> None:
        """Add the span's W3C headers."""
        self._propagator.inject(headers, self._set_span(span, self._context()))

    def close(self) -> None:
        """Send what is left, for a bounded time."""
        closing = threading.Thread(target=self._provider.shutdown, name="millrace-trace-end", daemon=True)
        closing.start()
        closing.join(SHUTDOWN_SECONDS)


class _Traced:
    """A span; inside the block, in this task and those it starts, it is the parent of others."""

    __slots__ = ("_backend", "_before", "_inside", "_kind", "_name", "_parent", "_span")

    def __init__(self, backend: _Backend, name: str, kind: Kind, parent: Any) -> None:
        self._backend = backend
        self._name = name
        self._kind: Kind = kind
        self._parent = parent

    def __enter__(self) -> "_Traced":
        self._span = self._backend.start(self._name, self._kind, self._parent)
        self._before = _current.get()
        self._inside = True
        _current.set(self._span)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.release()
        if kind is not None and not issubclass(kind, GeneratorExit):
            self.fail(kind.__name__)
        self._span.end()

    def set(self, name: str, value: str | int | float) -> None:
        self._span.set_attribute(name, value)

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, error: str) -> None:
        self._span.set_attribute("error.type", error)
        self._span.set_status(self._backend.error)

    def release(self) -> None:
        if self._inside:
            self._inside = False
            # not by token: a generator may be closed in another context than it was begun in
            _current.set(self._before)
