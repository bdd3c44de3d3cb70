"""A process that leads a tenant's upkeep and may then write no file beyond its present size, as on a disk of its own that is full."""

import resource
import sys
from pathlib import Path

from rag.store import leader
from rag.store.embedded import EmbeddedStore
from rag.types import Chunk, ChunkTerms


def main(folder: str, tenant_id: str) -> None:
    """Store a chunk, say that it leads, and go on leading until nobody listens."""
    leader._IDLE_SECONDS = 3600.0
    store = EmbeddedStore(Path(folder))
    store.put(tenant_id, [Chunk("f" * 16, "d1", "doc", "n", "first", ChunkTerms(content="first"))], None, "s")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
    print("leads", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
