"""Reading one object: range after range, checked."""

import io
from collections.abc import Mapping
from typing import Any

import obstore

from rag.errors import Damaged
from rag.store.blob_sum import Sum
from rag.store.blobs_s3_wire import MARK, TRAILER_BYTES, Bucket

READ_BYTES = 4 << 20


class CheckedObject(io.RawIOBase):
    """An object's content without its trailer, one range after the other; the last one comes out when the checksum is right."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket = bucket
        self._key = key
        self._tag: str | None = None
        self._size = TRAILER_BYTES  # until the first range tells
        self._position = 0
        self._sum = Sum()
        self._unread = memoryview(b"")
        self._fetch()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if not self._unread and self._sum.size < self._size - TRAILER_BYTES:
            self._fetch()
        count = min(len(buffer), len(self._unread))
        buffer[:count] = self._unread[:count]
        self._unread = self._unread[count:]
        return count

    def _fetch(self) -> None:
        options: dict[str, Any] = {"range": (self._position, self._position + READ_BYTES)}
        if self._tag:
            options["if_match"] = self._tag
        data = self._bucket.ask(lambda: self._answer(options))
        self._position += len(data)
        content = data[: max(0, len(data) - max(0, self._position - (self._size - TRAILER_BYTES)))]
        self._sum.add(content)
        if self._sum.size >= self._size - TRAILER_BYTES:
            self._check(data[len(content) :])
        self._unread = content

    def _answer(self, options: Mapping[str, Any]) -> memoryview:
        answer = obstore.get(self._bucket.store, self._key, options=options)  # type: ignore[arg-type]
        self._size, self._tag = answer.meta["size"], answer.meta["e_tag"]
        return memoryview(answer.bytes())

    def _check(self, trailer: memoryview) -> None:
        kept = bytes(trailer)
        while self._position < self._size:
            rest = self._bucket.ask(lambda: self._answer({"range": (self._position, self._size)}))
            self._position += len(rest)
            kept += bytes(rest)
        if len(kept) != TRAILER_BYTES or not kept.startswith(MARK):
            raise Damaged("the stored file is damaged: it has no checksum; restore it from a backup")
        self._sum.check(kept[len(MARK) :])
