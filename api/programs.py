"""What the commands run, each until it is told to stop."""

from collections.abc import Mapping
from pathlib import Path

from api import worker_figures
from api.listening import listen
from api.parts import open_parts
from api.serve import serve, work
from api.siblings import Member
from rag.settings import Settings


async def serve_alone(settings: Settings, model_keys: Mapping[str, str]) -> int:
    """The one server process of its port."""
    listener = listen(settings.host, settings.port)
    async with open_parts(settings, model_keys, alone=True) as parts:
        await serve(parts, listener)
    return 0


async def serve_among_others(settings: Settings, model_keys: Mapping[str, str], number: int, control: int, folder: Path) -> int:
    """One of several that share the port; their parent has given it a number, a descriptor and a folder."""
    member = Member(number, control, folder)
    async with open_parts(settings, model_keys) as parts:
        if member.is_orphan:  # the next parent wants the port
            return 0
        # only now: connections are spread over those who listen
        await serve(parts, listen(settings.host, settings.port, shared=True), member)
    return 0


async def ingest(settings: Settings, model_keys: Mapping[str, str]) -> int:
    """Ingestion alone, and its figures where a port is named for them."""
    async with open_parts(settings, model_keys) as parts, worker_figures.answering(parts):
        await work(parts)
    return 0
