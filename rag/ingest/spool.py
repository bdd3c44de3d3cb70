"""Keeps a document's parsed chunks by until the embedder gets to them: a few in memory, more in a file without a name.

Parsing ends long before embedding does. What lies here in between holds no parser process and no memory, and because the file
has no name, nothing is left behind, whatever is killed when.
"""

import asyncio
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from rag.errors import Unavailable
from rag.threads import Lane

MEMORY_BYTES = 1 << 20


class Spool:
    """A queue of batches between two tasks of one loop. Leave its context to drop what was not read."""

    def __init__(self, folder: Path, lane: Lane) -> None:
        """`folder` is where the file is put once there are more than `MEMORY_BYTES`; `lane` reads and writes it."""
        self._file = tempfile.SpooledTemporaryFile(MEMORY_BYTES, dir=folder)  # noqa: SIM115 - closed by __exit__
        self._using = threading.Lock()  # a cancelled call goes on in its thread
        self._lane = lane
        self._places: deque[tuple[int, int]] = deque()
        self._end = 0
        self._ended = False
        self._changed = asyncio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        with self._using:
            self._file.close()

    @property
    def ready(self) -> bool:
        """Whether `get` has a batch at once."""
        return bool(self._places)

    async def put(self, batch: Sequence[Any]) -> None:
        """Append a batch of what JSON can hold. Raises `Unavailable` where the disk does not take it."""
        size = await self._lane.run(self._write, self._end, batch)
        self._places.append((self._end, size))
        self._end += size
        self._changed.set()

    def end(self) -> None:
        """Nothing follows: `get` answers with an empty batch when all were read."""
        self._ended = True
        self._changed.set()

    async def get(self) -> list[Any]:
        """The next batch, waiting for it; empty at the end. Raises `Unavailable`."""
        while not self._places:
            if self._ended:
                return []
            self._changed.clear()
            await self._changed.wait()
        return await self._lane.run(self._read, *self._places.popleft())

    def _write(self, place: int, batch: Sequence[Any]) -> int:
        data = orjson.dumps(batch)
        try:
            with self._using:
                self._file.seek(place)
                self._file.write(data)
                self._file.flush()  # or a full disk showed at the next call, for another reason
        except OSError as exc:
            raise Unavailable("there is no room to put a document's chunks by") from exc
        return len(data)

    def _read(self, place: int, size: int) -> list[Any]:
        try:
            with self._using:
                self._file.seek(place)
                data = self._file.read(size)
        except OSError as exc:
            raise Unavailable("a document's chunks that were put by cannot be read") from exc
        batch: list[Any] = orjson.loads(data)
        return batch
