"""Structured logs on stderr: JSON for machines, text for a terminal. Never a key, never a user's text.

An exception is logged as its class and the places it passed through. Its message is kept only where we wrote it ourselves
(`MillraceError`) or the operating system did, because any other message may quote what a user sent.
"""

import asyncio
import logging
import sys
import traceback
from typing import Any, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor

from rag.errors import MillraceError

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
MAX_FRAMES = 12


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send structlog's lines and those of every library's logger to `stream` (stderr), from `level` on.

    `style` is "json", "text" or "auto": text where the stream is a terminal.
    """
    stream = sys.stderr if stream is None else stream
    as_text = style == "text" or (style == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        hide_messages,
    ]
    renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty()) if as_text else structlog.processors.JSONRenderer(_json)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[template_only, structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(LEVELS[level], logging.WARNING))


def template_only(_: Any, __: str, event: EventDict) -> EventDict:
    """Keep of a library's line what its author wrote, without the values put into it: they may be a user's."""
    event["event"] = str(event["_record"].msg).partition("\n")[0]
    return event


def hide_messages(_: Any, __: str, event: EventDict) -> EventDict:
    """Replace `exc_info` by `error` (class and, where safe, message) and `frames` (the innermost calls, innermost last)."""
    given = event.pop("exc_info", None)
    error = given if isinstance(given, BaseException) else given[1] if isinstance(given, tuple) else sys.exc_info()[1] if given else None
    if error is None:
        return event
    event["error"] = describe(error)
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    event["frames"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return event


def describe(error: BaseException) -> str:
    """The error's class, its message if that is safe to write down, and the same of what caused it."""
    text = type(error).__name__
    if isinstance(error, MillraceError):
        text += f": {error}"
    elif isinstance(error, OSError) and error.strerror:
        text += f": {error.strerror}"
    elif isinstance(error, BaseExceptionGroup):
        text += f": {'; '.join(describe(inner) for inner in error.exceptions[:4])}"
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return text if cause is None else f"{text} <- {describe(cause)}"


def report_loop_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler that writes down no values."""
    structlog.get_logger("millrace.loop").error("unhandled in the event loop", exc_info=context.get("exception"))


def _json(event: EventDict, **_: Any) -> str:
    return orjson.dumps(event, default=repr).decode()
