"""The checksum that is kept with every blob, and what happens when the bytes no longer agree with it."""

import xxhash

from rag.errors import Damaged

DIGEST_BYTES = 16


class Sum:
    """XXH128 of the bytes so far."""

    def __init__(self) -> None:
        self._digest = xxhash.xxh128()
        self.size = 0

    def add(self, data: bytes | memoryview) -> None:
        """Count the next bytes."""
        self._digest.update(data)
        self.size += len(data)

    @property
    def digest(self) -> bytes:
        """16 bytes."""
        return self._digest.digest()

    def check(self, stored: bytes) -> None:
        """Raises `Damaged` where the bytes are not those that were stored."""
        if self._digest.digest() != stored:
            raise Damaged("the stored file is damaged: its checksum does not match; restore it from a backup")
