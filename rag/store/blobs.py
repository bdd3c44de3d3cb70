"""Uploaded files by key, in a local folder."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rag.errors import InvalidArgument, NotFound, Unavailable
from rag.store.record import reason

_KEY = re.compile(r"[a-z0-9_-]+(/[a-z0-9_-]+)*")
_PIECE_BYTES = 1 << 20


class LocalBlobStore:
    """Blobs as files in one folder. `put` is durable: the bytes and the names on the way are synced before it returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: str, source: BinaryIO) -> int:
        """As `rag.ports.BlobStore.put`."""
        path = self._path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            self._make_folders(path.parent)
            try:
                with temporary.open("xb") as file:
                    shutil.copyfileobj(source, file, _PIECE_BYTES)
                    file.flush()
                    os.fsync(file.fileno())
                    size = file.tell()
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)
        except OSError as exc:
            raise Unavailable(f"the file cannot be stored: {reason(exc)}") from exc
        return size

    def open(self, key: str) -> BinaryIO:
        """As `rag.ports.BlobStore.open`."""
        try:
            return self._path(key).open("rb")
        except FileNotFoundError as exc:
            raise NotFound("the stored file is gone") from exc
        except OSError as exc:
            raise Unavailable(f"the stored file cannot be read: {reason(exc)}") from exc

    @contextmanager
    def local_path(self, key: str) -> Iterator[Path]:
        """As `rag.ports.BlobStore.local_path`: the file itself, not a copy."""
        path = self._path(key)
        if not path.is_file():
            raise NotFound("the stored file is gone")
        yield path

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

    def health(self) -> dict[str, str]:
        """As `rag.ports.BlobStore.health`."""
        try:
            self._make_folders(self._folder)
            writable = os.access(self._folder, os.W_OK)
        except OSError:
            writable = False
        return {"type": "local", "status": "green" if writable else "red"}

    def _path(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise InvalidArgument("a blob key is made of a-z, 0-9, _, - and /")
        return self._folder / key

    def _make_folders(self, folder: Path) -> None:
        """Create a folder and sync each new name, so that a power cut cannot take the folder from under a stored file."""
        if folder.is_dir():
            return
        if folder != folder.parent:
            self._make_folders(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
