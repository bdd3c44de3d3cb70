"""Where the time of a request goes: the seconds of each of its stages, for the figures, and a span of each for a trace.

The record of a request travels with it through tasks and lanes. Names are constants of ours, so that they may be labels.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rag import tracing


class Stages:
    """A request's record. `seconds` by stage, added up over its runs; `flow` is what the request turned out to be."""

    __slots__ = ("flow", "seconds", "started")

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.flow = "other"
        self.seconds: dict[str, float] = {}


_of_request: ContextVar[Stages | None] = ContextVar("stages", default=None)


@contextmanager
def recording() -> Iterator[Stages]:
    """Record the stages of the request that is answered inside the block."""
    record = Stages()
    before = _of_request.get()
    _of_request.set(record)
    try:
        yield record
    finally:
        _of_request.set(before)


def stage(name: str) -> Any:
    """A context manager: the block is a stage of the request under way, if there is one. Not around a `yield` of a generator."""
    record = _of_request.get()
    return tracing.span(name) if record is None else _Stage(name, record)


def passed(seconds: Mapping[str, float]) -> None:
    """The request under way has been through these stages elsewhere, one after the other, until now."""
    tracing.past_spans(seconds)
    record = _of_request.get()
    if record is not None:
        for name, taken in seconds.items():
            record.seconds[name] = record.seconds.get(name, 0.0) + taken


def flow(name: str) -> None:
    """The request under way is of this kind ("chat", "retrieval"); the first one to say so is right."""
    record = _of_request.get()
    if record is not None and record.flow == "other":
        record.flow = name


def reached(name: str) -> None:
    """The request under way has got so far ("first_token"): the seconds since it began count, the first time."""
    record = _of_request.get()
    if record is not None and name not in record.seconds:
        record.seconds[name] = time.perf_counter() - record.started


class _Stage:
    __slots__ = ("_name", "_record", "_span", "_started")

    def __init__(self, name: str, record: Stages) -> None:
        self._name = name
        self._record = record

    def __enter__(self) -> None:
        self._span = tracing.span(self._name)
        self._span.__enter__()
        self._started = time.perf_counter()

    def __exit__(self, *failure: Any) -> None:
        seconds = self._record.seconds
        seconds[self._name] = seconds.get(self._name, 0.0) + time.perf_counter() - self._started
        self._span.__exit__(*failure)
