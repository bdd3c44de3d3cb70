"""Uploaded files by key, in a bucket of S3 or of what speaks its protocol.

An object is the file's bytes followed by 32 more: a mark and the XXH128 of the bytes. So the checksum appears with the object, also
with one that was streamed in parts, and is checked whenever the file is read. S3 itself checks each part as it arrives (SHA-256).

Small files are sent by one request at the end. Larger ones are streamed in parts, at most two in memory, by a loop on a thread of
the store's own: however many uploads are slow, none of them holds a thread. The library ends an upload's parts only when what it
reads from fails, so that is how `abort` works.
"""

import fcntl
import io
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from rag.errors import NotFound, SettingsError, Unavailable
from rag.ports import PROBES
from rag.store.blobs import checked_key
from rag.store.blobs_s3_read import CheckedObject
from rag.store.blobs_s3_upload import LoopThread, S3BlobWriter
from rag.store.blobs_s3_wire import Bucket

LISTED_AT_ONCE = 1000
CONNECT_SECONDS = 3.0
RETRIES = 2
# of a scratch file that nobody holds: long enough for its maker to lock it
UNLOCKED_SECONDS = 60.0


class S3BlobStore:
    """Blobs as objects below one prefix. `put` is durable as the service's own promise is: it answered that the object is complete."""

    def __init__(
        self, url: str, scratch: Path, *, endpoint: str = "", region: str = "", timeout_seconds: float = 15.0,
        keys: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """`url` is `s3://bucket/prefix`; `scratch` takes files while parsers read them; `timeout_seconds` bounds each request.

        Credentials and what else is not given come from the AWS_ variables of the environment, or from the machine's role;
        `keys` (`access_key_id`, `secret_access_key`) go before them.
        """
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise SettingsError("blob_url is not of the form s3://bucket/prefix (MILLRACE_BLOB_URL)")
        config: dict[str, Any] = {"endpoint": endpoint, "region": region, **(keys or {})}
        timeout = timedelta(seconds=timeout_seconds)
        try:
            store = S3Store(
                bucket,
                prefix=prefix.strip("/") or None,
                checksum_algorithm="SHA256",
                client_options={
                    "allow_http": endpoint.startswith("http://"),
                    "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, timeout_seconds)),
                    "timeout": timeout,
                },
                retry_config={"max_retries": RETRIES, "retry_timeout": timeout},
                **{name: value for name, value in config.items() if value},
            )
        except (BaseError, ValueError) as exc:
            raise SettingsError("the settings of the blob store are not usable: look at MILLRACE_BLOB_ENDPOINT and _REGION") from exc
        self._bucket = Bucket(store)
        self.breaker = self._bucket.breaker
        self._seconds = timeout_seconds
        self._scratch = scratch
        self._streams = LoopThread()
        _sweep(scratch)

    def put(self, key: str, source: BinaryIO) -> int:
        """As `rag.ports.BlobStore.put`."""
        writer = self.writer(key)
        try:
            while piece := source.read(1 << 20):
                writer.write(piece)
            return writer.commit()
        finally:
            writer.abort()

    def writer(self, key: str) -> "S3BlobWriter":
        """As `rag.ports.BlobStore.writer`."""
        return S3BlobWriter(self._bucket, checked_key(key), self._streams, self._seconds)

    def open(self, key: str) -> BinaryIO:
        """As `rag.ports.BlobStore.open`: read in ranges, so that a slow reader holds no connection."""
        return io.BufferedReader(CheckedObject(self._bucket, checked_key(key)), 1 << 20)

    @contextmanager
    def local_path(self, key: str) -> Iterator[Path]:
        """As `rag.ports.BlobStore.local_path`: a copy, removed in the end; one that a killed process left is removed by the next start."""
        with self.open(key) as source:
            try:
                self._scratch.mkdir(parents=True, exist_ok=True)
                copy = tempfile.NamedTemporaryFile(dir=self._scratch, prefix="blob-")  # noqa: SIM115 - closed below
            except OSError as exc:
                raise Unavailable("there is no room for a copy of the stored file") from exc
            try:
                fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
                while piece := source.read(1 << 20):
                    copy.write(piece)
                copy.flush()
            except OSError as exc:
                copy.close()
                raise Unavailable("there is no room for a copy of the stored file") from exc
            except BaseException:
                copy.close()
                raise
        with copy:
            yield Path(copy.name)

    def delete(self, key: str) -> None:
        """As `rag.ports.BlobStore.delete`. The parts of an upload that was killed are left to the bucket's own rule."""
        with suppress(NotFound):
            self._bucket.ask(lambda: obstore.delete(self._bucket.store, checked_key(key)))

    def list(self) -> Iterator[str]:
        """As `rag.ports.BlobStore.list`, but for unfinished writes: they have no object yet."""
        pages = obstore.list(self._bucket.store, chunk_size=LISTED_AT_ONCE)
        while page := self._bucket.ask(lambda: next(pages, None)):
            yield from (item["path"] for item in page)

    def health(self) -> dict[str, str]:
        """As `rag.ports.BlobStore.health`; one request, which tells a missing bucket from a missing file."""
        try:
            self._bucket.ask(lambda: obstore.get(self._bucket.store, f"{PROBES}none"))
        except NotFound:
            pass
        except Unavailable as error:
            return {"type": "s3", "status": "red", "error": str(error)}
        return {"type": "s3", "status": "green"}

    def close(self) -> None:
        """Give up the uploads under way."""
        self._streams.close()


def _sweep(scratch: Path) -> None:
    """Remove the copies that killed processes left: those that nobody has locked."""
    with suppress(OSError):
        for path in scratch.glob("blob-*"):
            with path.open("rb") as file, suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(file.fileno()).st_mtime > UNLOCKED_SECONDS:
                    path.unlink()
