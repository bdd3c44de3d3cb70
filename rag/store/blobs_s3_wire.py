"""What reading, writing and listing objects share: what a stored object looks like, and how the service's failures are told."""

from collections.abc import Callable
from typing import TypeVar

from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import S3Store

from rag.breaker import ServiceBreaker, Unanswered
from rag.errors import NotFound, Unavailable
from rag.store.blob_sum import DIGEST_BYTES

T = TypeVar("T")

# an object is the file's bytes, this mark, and the checksum of the bytes
MARK = b"millrace xxh128:"
TRAILER_BYTES = len(MARK) + DIGEST_BYTES
LONGEST_REST_SECONDS = 10.0


class Bucket:
    """A bucket that is left alone for a while when its service keeps failing. `store` is the library's."""

    def __init__(self, store: S3Store) -> None:
        self.store = store
        self.breaker = ServiceBreaker("the blob store", longest_rest_seconds=LONGEST_REST_SECONDS)

    def ask(self, request: Callable[[], T]) -> T:
        """The request's answer. Raises `NotFound` for an unknown key, `Unavailable` in our own words for everything else."""
        with self.breaker.watch():
            try:
                return request()
            except FileNotFoundError as exc:
                if "NoSuchBucket" in str(exc):
                    raise Unavailable("the blob store has no such bucket") from exc
                raise NotFound("the stored file is gone") from exc
            except (PermissionDeniedError, UnauthenticatedError, PermissionError) as exc:
                raise Unavailable("the blob store refuses our credentials") from exc
            except PreconditionError as exc:
                raise Unavailable("the stored file was replaced while it was read") from exc
            except (BaseError, OSError, TimeoutError) as exc:
                raise Unanswered("the blob store does not answer") from exc
