"""Uploaded files by key, in a local folder.

A file's checksum is kept beside its bytes, as the extended attribute `user.millrace.xxh128`. Where the file system has none, or a
copy lost it, the file is read unchecked.
"""

import io
import os
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rag.errors import InvalidArgument, NotFound, Unavailable
from rag.store.blob_sum import DIGEST_BYTES, Sum
from rag.store.record_file import reason

_KEY = re.compile(r"[a-z0-9_-]+(/[a-z0-9_-]+)*")
_SUM_NAME = "user.millrace.xxh128"
_UNFINISHED = re.compile(r"\.([a-z0-9_-]+)\.[0-9a-f]{32}")
_PIECE_BYTES = 1 << 20


class LocalBlobStore:
    """Blobs as files in one folder. `put` is durable: the bytes and the names on the way are synced before it returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, source: BinaryIO) -> int:
        """As `rag.ports.BlobStore.put`."""
        writer = self.writer(key)
        try:
            while piece := source.read(_PIECE_BYTES):
                writer.write(piece)
            return writer.commit()
        finally:
            writer.abort()

    def writer(self, key: str) -> "LocalBlobWriter":
        """As `rag.ports.BlobStore.writer`."""
        return LocalBlobWriter(self._path(key))

    def open(self, key: str) -> BinaryIO:
        """As `rag.ports.BlobStore.open`."""
        try:
            return io.BufferedReader(_CheckedFile(self._path(key)), _PIECE_BYTES)
        except FileNotFoundError as exc:
            raise NotFound("the stored file is gone") from exc
        except OSError as exc:
            raise Unavailable(f"the stored file cannot be read: {reason(exc)}") from exc

    @contextmanager
    def local_path(self, key: str) -> Iterator[Path]:
        """As `rag.ports.BlobStore.local_path`: the file itself, not a copy."""
        with self.open(key) as file:
            while file.read(_PIECE_BYTES):
                pass
        yield self._path(key)

    def delete(self, key: str) -> None:
        """As `rag.ports.BlobStore.delete`; takes along what a killed process left of a `put` of this key."""
        path = self._path(key)
        try:
            for unfinished in path.parent.glob(f".{path.name}.*"):
                unfinished.unlink(missing_ok=True)
            path.unlink()
            _sync_folder(path.parent)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise Unavailable(f"the stored file cannot be removed: {reason(exc)}") from exc

    def list(self) -> Iterator[str]:
        """As `rag.ports.BlobStore.list`."""
        for folder, _, names in os.walk(self._folder):
            place = Path(folder).relative_to(self._folder)
            for name in names:
                unfinished = _UNFINISHED.fullmatch(name)
                yield (place / (unfinished[1] if unfinished else name)).as_posix()

    def health(self) -> dict[str, str]:
        """As `rag.ports.BlobStore.health`."""
        try:
            _make_folders(self._folder)
            writable = os.access(self._folder, os.W_OK)
        except OSError:
            writable = False
        return {"type": "local", "status": "green" if writable else "red"}

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _path(self, key: str) -> Path:
        return self._folder / checked_key(key)


def checked_key(key: str) -> str:
    """The key. Raises `InvalidArgument` for one that we would not make."""
    if not _KEY.fullmatch(key):
        raise InvalidArgument("a blob key is made of a-z, 0-9, _, - and /")
    return key


class LocalBlobWriter:
    """Writes beside the blob's place and moves there when it is complete. As `rag.ports.BlobWriter`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        self._file: BinaryIO | None = None
        self._sum = Sum()
        self._ended = False
        self._one_call = threading.Lock()

    def write(self, data: bytes) -> None:
        """As `rag.ports.BlobWriter.write`."""
        with self._one_call, _storing():
            self._opened().write(data)
            self._sum.add(data)

    def commit(self) -> int:
        """As `rag.ports.BlobWriter.commit`."""
        with self._one_call, _storing():
            with self._opened() as file:
                file.flush()
                with suppress(OSError):  # not every file system has attributes
                    os.setxattr(file.fileno(), _SUM_NAME, self._sum.digest)
                os.fsync(file.fileno())
                size = file.tell()
            self._temporary.replace(self._path)
            self._ended = True
            _sync_folder(self._path.parent)
        return size

    def abort(self) -> None:
        """As `rag.ports.BlobWriter.abort`."""
        with self._one_call:
            if self._file is None or self._ended:
                self._ended = True
                return
            self._ended = True
            with suppress(OSError):  # what cannot be written cannot be flushed, either
                self._file.close()
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def _opened(self) -> BinaryIO:
        if self._ended:
            raise Unavailable("the file was given up")
        if self._file is None:
            _make_folders(self._path.parent)
            self._file = self._temporary.open("xb")
        return self._file


class _CheckedFile(io.RawIOBase):
    """A file whose last bytes come out only when all of them agree with the checksum; read from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._size = os.fstat(self._file.fileno()).st_size
        self._sum = Sum()
        try:
            self._stored: bytes | None = os.getxattr(self._file.fileno(), _SUM_NAME)
        except OSError:
            self._stored = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer)
        if self._stored is not None and len(self._stored) == DIGEST_BYTES and self._sum.size < self._size:
            self._sum.add(memoryview(buffer)[:count])
            if count == 0 or self._sum.size >= self._size:
                self._sum.check(self._stored)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise Unavailable(f"the file cannot be stored: {reason(exc)}") from exc


def _make_folders(folder: Path) -> None:
    """Create a folder and sync each new name, so that a power cut cannot take the folder from under a stored file."""
    if folder.is_dir():
        return
    if folder != folder.parent:
        _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
