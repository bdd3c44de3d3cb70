"""The figures of this process, with what has to be asked for when they are read."""

from api.parts import Parts
from db.services import system_service
from rag.errors import MillraceError


async def figures(parts: Parts) -> bytes:
    """This process's figures in Prometheus' text format; how much work waits is NaN where the database does not say."""
    try:
        backlog = await parts.session.read(system_service.backlog)
        parts.metrics.set_backlog(backlog.waiting, backlog.leased)
    except MillraceError:
        parts.metrics.set_backlog(None, None)
    return parts.metrics.text()
