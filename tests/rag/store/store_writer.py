"""A process that writes to a store until it is killed. It says what it has stored only after the store has acknowledged it."""

import random
import sys
from pathlib import Path

import numpy as np

from rag.store.embedded import EmbeddedStore
from rag.types import Chunk, ChunkSelector, ChunkTerms

TENANT, SPACE, DIMENSION = "c" * 32, "space", 16


def chunk(number: int) -> Chunk:
    document = f"doc{number // 40}"
    return Chunk(f"{number:016x}", f"d{number // 40 % 3}", document, document, f"text {number}", ChunkTerms(content=f"every w{number}"))


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32)


def main(folder: str, first: int) -> None:
    """Put batches of 8; now and then delete a document, replace a batch, or close and open the store."""
    store = EmbeddedStore(Path(folder))
    chance = random.Random(first)
    number = first
    while True:
        batch = list(range(number, number + 8))
        store.put(TENANT, [chunk(n) for n in batch], np.stack([vector(n) for n in batch]), SPACE, wait=chance.random() < 0.3)
        print("put", *batch, flush=True)
        number += 8
        if chance.random() < 0.1 and number - first > 120:
            document = (number - 80) // 40
            gone = [n for n in range(document * 40, document * 40 + 40) if n >= first]
            if gone[0] == document * 40:
                print("deleting", *gone, flush=True)
                store.delete(TENANT, ChunkSelector(document_ids=(f"doc{document}",)))
                print("deleted", *gone, flush=True)
        if chance.random() < 0.1:
            store.put(TENANT, [chunk(n) for n in batch], None, SPACE, wait=False)
        if chance.random() < 0.03:
            store.close()
            store = EmbeddedStore(Path(folder))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
