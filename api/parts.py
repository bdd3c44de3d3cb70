"""Every long-lived part of a server process, opened and closed in one place."""

from dataclasses import dataclass

from db.session import Session
from rag.ports import BlobStore, ChunkStore
from rag.settings import Settings
from rag.threads import Lane


@dataclass(frozen=True, slots=True)
class Lanes:
    """The process's thread pools."""

    db: Lane
    search: Lane
    blob: Lane
    model: Lane
    ingest_model: Lane


@dataclass(frozen=True, slots=True)
class Parts:
    """What the HTTP layer calls. Tests build it with the parts they need."""

    settings: Settings
    lanes: Lanes
    session: Session
    store: ChunkStore
    blobs: BlobStore
