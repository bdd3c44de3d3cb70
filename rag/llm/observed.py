"""Counts, times and traces each attempt to reach a model's endpoint."""

import asyncio
import time

from rag import tracing
from rag.errors import (
    DeadlineExceeded,
    ProviderBadReply,
    ProviderBusy,
    ProviderError,
    ProviderRefused,
    ProviderUnreachable,
)
from rag.llm.endpoint import split_identifier
from rag.ports import VendorObserver

# the first that fits
_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (ProviderRefused, "refused"),
    (ProviderBusy, "busy"),
    (ProviderUnreachable, "unreachable"),
    (ProviderBadReply, "bad_reply"),
    (ProviderError, "failed"),
    (DeadlineExceeded, "timeout"),
    (TimeoutError, "timeout"),
    (asyncio.CancelledError, "cancelled"),
    (GeneratorExit, "cancelled"),
)


class Calls:
    """The calls to one model; `kind` is what the model does. Without an observer they are only traced."""

    def __init__(self, model: str, kind: str = "", observer: VendorObserver | None = None) -> None:
        self.model, self.provider = split_identifier(model)
        self.kind = kind
        self.observer = observer

    def attempt(self) -> "Attempt":
        """Around one attempt."""
        return Attempt(self)

    def retried(self) -> None:
        """Another attempt follows."""
        if self.observer is not None:
            self.observer.vendor_retry(self.provider, self.kind)


class Attempt:
    """A context manager. Of a stream, tell it when the first event is there."""

    __slots__ = ("_answered_after", "_calls", "_span", "_started")

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._answered_after: float | None = None

    def __enter__(self) -> "Attempt":
        self._started = time.perf_counter()
        self._span = tracing.client_span("call model")
        self._span.__enter__()
        return self

    def answered(self) -> None:
        """The first event of a stream is there: what its reader does from now on is not part of the call."""
        self._answered_after = time.perf_counter() - self._started
        self._span.release()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        calls = self._calls
        outcome = self._outcome(error)
        seconds = self._answered_after if self._answered_after is not None else time.perf_counter() - self._started
        if calls.observer is not None:
            calls.observer.vendor_call(calls.provider, calls.kind, outcome, seconds)
        self._span.rename(f"{calls.kind} {calls.model}")
        self._span.set("gen_ai.provider.name", calls.provider)
        self._span.set("gen_ai.request.model", calls.model)
        self._span.set("gen_ai.operation.name", calls.kind)
        self._span.set("millrace.outcome", outcome)
        self._span.__exit__(kind, error, trace)

    def _outcome(self, error: BaseException | None) -> str:
        if error is None or (isinstance(error, GeneratorExit) and self._answered_after is not None):
            return "ok"  # a stream's reader may close it when it has what it wanted
        return next((word for failure, word in _OUTCOMES if isinstance(error, failure)), "failed")
