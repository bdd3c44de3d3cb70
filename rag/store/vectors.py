"""Vector files: per dataset and embedding space one flat file of unit float16 vectors, appended by writers, mapped by readers.

They are derived from the record. Damage is noticed by size, header and the length of each vector, and raises `Corrupt`.
"""

import os
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rag.errors import Corrupt, InvalidArgument

_HEADER_BYTES = 64
_MAGIC = b"MRVEC\x00\x01\x00"
_CHECK_ROWS = 8192
_UNIT_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Part:
    """One vector file as the record knows it. `generation` grows with each rewrite; slots `0 .. slots-1` are written."""

    number: int
    dataset: int
    space: str
    dimension: int
    generation: int
    slots: int


class VectorFiles:
    """The vector files of one tenant."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[int, tuple[int, int, np.ndarray]] = {}
        self._mapping = threading.Lock()

    def path(self, part: Part) -> Path:
        """Where a part's vectors lie."""
        return self._folder / f"{part.number}-{part.generation}.f16"

    def append(self, part: Part, data: bytes) -> None:
        """Write rows behind the part's last slot. Raises `OSError`; the record's transaction decides whether they count."""
        self._folder.mkdir(exist_ok=True)
        descriptor = os.open(self.path(part), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            if os.fstat(descriptor).st_size < _HEADER_BYTES:
                _write(descriptor, _header(part), 0)
            _write(descriptor, data, _HEADER_BYTES + part.slots * part.dimension * 2)
        finally:
            os.close(descriptor)

    def write(self, part: Part, pieces: Iterable[bytes]) -> None:
        """Write a whole new file, all or nothing."""
        self._folder.mkdir(exist_ok=True)
        temporary = self.path(part).with_suffix(".new")
        try:
            with temporary.open("wb") as file:
                file.write(_header(part))
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path(part))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def remove(self, part: Part) -> None:
        """Delete the part's file; readers that have mapped it keep their view."""
        known = self._maps.get(part.number)
        if known is not None and known[0] == part.generation:
            self._maps.pop(part.number, None)
        self.path(part).unlink(missing_ok=True)

    def remove_strangers(self, parts: Iterable[Part]) -> None:
        """Delete files that belong to no part: leftovers of writers that were killed."""
        known = {self.path(part).name for part in parts}
        for path in self._folder.glob("*"):
            if path.name not in known:
                path.unlink(missing_ok=True)

    def matrix(self, part: Part, live: np.ndarray) -> np.ndarray:
        """The part's vectors float16 `[slots, dimension]`, mapped and checked. `live` bool `[slots]`: slots that must hold a vector.

        Raises `Corrupt` when the file is missing, short, not ours, or a live slot holds no unit vector.
        """
        path = self.path(part)
        try:
            status = path.stat()
        except OSError as exc:
            raise Corrupt("a vector file is missing") from exc
        needed = _HEADER_BYTES + part.slots * part.dimension * 2
        if status.st_size < needed:
            raise Corrupt("a vector file is too short")
        known = self._maps.get(part.number)
        if known is not None and known[:2] == (part.generation, status.st_ino) and len(known[2]) >= part.slots:
            return known[2][: part.slots]
        with self._mapping:
            return self._map(part, path, status.st_ino, live)

    def _map(self, part: Part, path: Path, inode: int, live: np.ndarray) -> np.ndarray:
        try:
            with path.open("rb") as file:
                if file.read(_HEADER_BYTES) != _header(part):
                    raise Corrupt("a vector file has a foreign header")
            matrix = np.memmap(path, np.float16, "r", offset=_HEADER_BYTES, shape=(part.slots, part.dimension)).view(np.ndarray)
        except (OSError, ValueError) as exc:
            raise Corrupt("a vector file cannot be mapped") from exc
        known = self._maps.get(part.number)
        checked = len(known[2]) if known is not None and known[:2] == (part.generation, inode) else 0
        for start in range(min(checked, part.slots), part.slots, _CHECK_ROWS):
            rows = matrix[start : start + _CHECK_ROWS].astype(np.float32)
            off_unit = np.abs(np.einsum("ij,ij->i", rows, rows) - 1.0)
            if not np.all((off_unit < _UNIT_TOLERANCE) | ~live[start : start + _CHECK_ROWS]):
                raise Corrupt("a vector file holds damaged vectors")
        if checked <= part.slots:
            self._maps[part.number] = (part.generation, inode, matrix)
        return matrix


def checked_units(vectors: np.ndarray, count: int) -> np.ndarray:
    """`unit_rows` of one vector for each of `count` chunks. Raises `InvalidArgument`."""
    if vectors.ndim != 2 or len(vectors) != count:
        raise InvalidArgument(f"{count} chunks came with vectors of shape {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise InvalidArgument("a vector holds values that are not finite")
    return unit_rows(vectors)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1 as float16; a row of zeros, which has no direction, becomes NaN."""
    wide = np.asarray(vectors, np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        wide = wide / np.abs(wide).max(axis=1, keepdims=True, initial=0.0)  # first, so that no square overflows
        return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)


def _header(part: Part) -> bytes:
    return (_MAGIC + struct.pack("<QQQ", part.number, part.generation, part.dimension)).ljust(_HEADER_BYTES, b"\x00")


def _write(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data`: `pwrite` may stop early on a disk that fills up."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
