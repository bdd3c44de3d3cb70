"""Runs the HTTP server, and on a stop signal lets what runs finish."""

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from functools import partial

import structlog
from hypercorn.config import Config
from quart import Quart

from api.app import create_app
from api.collector import spare_the_collector
from api.connections import Connections
from api.figures import figures
from api.keys import ensure_first_key
from api.listening import BACKLOG, announce, url_of
from api.logs import report_loop_error
from api.observe import observe
from api.parts import Parts
from api.siblings import Member
from api.slow_callbacks import SlowStep, watching

log = structlog.get_logger("millrace.serve")

MOST_FILES = 65_536
KEEP_ALIVE_SECONDS = 75
# between the signal and closing the socket: connections the kernel took already are served, and every answer says `close`
LAST_CALL_SECONDS = 0.2
# of the drain time, what a stream that must end keeps for its last frames
FAREWELL_SECONDS = 2.0


async def serve(parts: Parts, listener: socket.socket, member: Member | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain for at most `drain_seconds`. The caller closes the parts.

    As a `member` of several workers: also until the parent is gone, which announces the server for all of them.
    """
    stop = _stop_signal()
    settings = parts.settings
    api_key = await parts.lanes.db.run(ensure_first_key, parts.session, settings.data_dir, settings.default_tenant)
    app = create_app(parts)
    observe(app, parts.metrics, parts.drain)
    lag = asyncio.create_task(parts.metrics.watch_loop())
    _raise_file_limit()
    spare_the_collector()
    try:
        with _watching_steps(parts):
            async with _among_siblings(app, parts, member, stop):
                await _run(app, parts, listener, stop, api_key, member)
    finally:
        lag.cancel()
        with suppress(asyncio.CancelledError):
            await lag


async def work(parts: Parts) -> None:
    """Ingest documents until SIGTERM or SIGINT. The caller closes the parts, and with them the worker."""
    stop = _stop_signal()
    log.info("working")
    await stop.wait()
    log.info("stopping")


@asynccontextmanager
async def _among_siblings(app: Quart, parts: Parts, member: Member | None, stop: asyncio.Event) -> AsyncIterator[None]:
    if member is None:
        yield
        return

    async def stop_with_the_parent() -> None:
        await member.parent_gone()
        log.warning("the parent is gone")
        stop.set()

    app.extensions["member"] = member
    watching_parent = asyncio.create_task(stop_with_the_parent())
    try:
        async with member.answering(partial(figures, parts)):
            yield
    finally:
        watching_parent.cancel()


def _watching_steps(parts: Parts) -> AbstractContextManager[None]:
    """Log and count what holds the event loop, where the settings ask for it."""
    seconds = parts.settings.slow_callback_seconds
    if not seconds:
        return nullcontext()

    def report(step: SlowStep) -> None:
        parts.metrics.slow_callback()
        log.warning("event loop held", ms=round(step.seconds * 1000, 1), task=step.task, frames=step.frames)

    return watching(asyncio.get_running_loop(), seconds, report)


def _raise_file_limit() -> None:
    """As many open files, and so connections, as this process may have; shells give it 1,024 by habit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _stop_signal() -> asyncio.Event:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(report_loop_error)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _run(app: Quart, parts: Parts, listener: socket.socket, stop: asyncio.Event, api_key: str, member: Member | None) -> None:
    url = url_of(listener)
    connections = Connections(app, listener, _config())
    await connections.open()
    if member is None:
        announce(url, api_key)
    else:
        member.serves()
    log.info("serving", url=url)
    await stop.wait()
    log.info("draining", seconds=parts.settings.drain_seconds)
    await _drain(parts, connections)
    log.info("stopped")


async def _drain(parts: Parts, connections: Connections) -> None:
    seconds = parts.settings.drain_seconds
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    parts.drain.start()
    await connections.stop_accepting(min(LAST_CALL_SECONDS, seconds / 4))
    finished = asyncio.create_task(connections.finish())
    await asyncio.wait({finished}, timeout=max(0.0, deadline - min(FAREWELL_SECONDS, seconds / 4) - loop.time()))
    parts.drain.expire()
    await asyncio.wait({finished}, timeout=max(0.0, deadline - loop.time()))
    if not finished.done():
        log.warning("requests cut: the drain time is over")
        connections.cut()
    await finished


def _config() -> Config:
    config = Config()
    config.backlog = BACKLOG
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = 1_000_000
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config
