"""The figures of this process, with what has to be asked for when they are read."""

import asyncio

from api.parts import Parts
from db.services import system_service
from rag.errors import MillraceError

# of the second that a worker's siblings wait for its figures: see api/siblings.py
DATABASE_SECONDS = 0.5


async def figures(parts: Parts) -> bytes:
    """This process's figures in Prometheus' text format; how much work waits is NaN where the database does not say so in time."""
    try:
        async with asyncio.timeout(DATABASE_SECONDS):
            backlog = await parts.session.read(system_service.backlog)
        parts.metrics.set_backlog(backlog.waiting, backlog.leased)
    except (MillraceError, TimeoutError):
        parts.metrics.set_backlog(None, None)
    return parts.metrics.text()
