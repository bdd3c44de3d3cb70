"""How far a tenant's text index is, told between processes."""

import os
from pathlib import Path

import numpy as np


class Progress:
    """Two numbers shared by all processes through a mapped file: the sequence number indexed so far, and the one waited for.

    Only a hint: lost or stale numbers delay, they never break. The leader sets `indexed` from the index when it starts.
    """

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            if os.fstat(descriptor).st_size < 16:
                os.pwrite(descriptor, bytes(16), 0)  # not truncate: a hole in a mapped file is a bus error on a full disk
        finally:
            os.close(descriptor)
        self._numbers = np.memmap(path, np.int64, "r+", shape=(2,))

    @property
    def indexed(self) -> int:
        """Changes up to this number can be found by text."""
        return int(self._numbers[0])

    @indexed.setter
    def indexed(self, seq: int) -> None:
        self._numbers[0] = seq

    @property
    def wanted(self) -> int:
        """Somebody waits for the changes up to this number."""
        return int(self._numbers[1])

    def want(self, seq: int) -> None:
        """Ask for the changes up to `seq` without lingering."""
        if seq > self.wanted:
            self._numbers[1] = seq
