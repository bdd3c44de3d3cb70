"""Every long-lived part of a server process, opened and closed in one place."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from api.drain import Drain
from api.metrics import Metrics
from db.session import Session
from rag.ports import BlobStore, ChunkStore
from rag.settings import Settings
from rag.threads import Lane

if TYPE_CHECKING:
    from rag.ingest.worker import Worker
    from rag.llm.registry import Registry


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
    """What the HTTP layer calls. Tests build it with the parts they need.

    `worker` is None where documents are ingested by `millrace worker` alone.
    """

    settings: Settings
    lanes: Lanes
    session: Session
    store: ChunkStore
    blobs: BlobStore
    models: "Registry"
    worker: "Worker | None" = None
    metrics: Metrics = field(default_factory=Metrics)
    drain: Drain = field(default_factory=Drain)
