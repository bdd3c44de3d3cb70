"""The Protocols between packages: what a part must offer to stand in Millrace. Implementations never import each other."""

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from rag.types import (
    Candidates,
    ChatDelta,
    ChatMessage,
    ChatOptions,
    ChatReply,
    Chunk,
    ChunkSelector,
    IngestTask,
    SearchRequest,
    StoredChunk,
)

# how the keys of files begin that a readiness check stores for a moment, and a server leaves that is killed in it
PROBES = "probe/"


class ChunkStore(Protocol):
    """Keeps chunks and finds them. Blocking and thread-safe: call it through the search lane, writes through the write lane.

    Every call names a tenant and sees nothing of any other. Errors: `Unavailable` when the engine cannot answer now.
    """

    def put(self, tenant_id: str, chunks: Sequence[Chunk], vectors: np.ndarray | None, space: str, *, wait: bool = True) -> None:
        """Insert the chunks, or replace those whose ids exist, in one durable transaction.

        `vectors` is float32 `[len(chunks), dimension]`, made in embedding space `space`; None keeps the stored vectors of
        chunks that exist already. With `wait` it returns when the chunks can be found by both arms; without, call `flush`.
        """

    def replace(
        self, tenant_id: str, before: Sequence[Chunk], after: Sequence[Chunk], vectors: np.ndarray | None, space: str, *, wait: bool = True
    ) -> list[bool]:  # fmt: skip
        """Put each chunk of `after` only if what is stored under its id still equals its pair in `before`; which were put.

        The ids of a pair are the same, and none comes twice. Comparing and putting are one transaction. `vectors`, `space`
        and `wait` as for `put`.
        """

    def delete(self, tenant_id: str, selector: ChunkSelector) -> int:
        """Delete the selected chunks and return how many there were. They are found no more when this returns."""

    def take(self, tenant_id: str, selector: ChunkSelector) -> list[Chunk]:
        """Delete the selected chunks and return those that this call deleted, in no particular order."""

    def set_available(self, tenant_id: str, selector: ChunkSelector, available: bool, *, wait: bool = True) -> int:
        """Switch the selected chunks on or off for searches and return how many were selected. `wait` as for `put`."""

    def flush(self, tenant_id: str) -> None:
        """Return when everything put before can be found by both arms."""

    def search(self, request: SearchRequest) -> Candidates:
        """The union of the `text_k` best by text and the `vector_k` best by vector, each scored by both arms."""

    def get(self, tenant_id: str, chunk_ids: Sequence[str]) -> list[Chunk | None]:
        """The chunks in the order asked for, None where one does not exist."""

    def vectors(self, tenant_id: str, chunk_ids: Sequence[str], space: str) -> np.ndarray:
        """Unit vectors float32 `[len(chunk_ids), dimension]`; a row of NaN where a chunk has none in this space.

        `[n, 0]` where the tenant has no vector in this space at all.
        """

    def list(
        self, tenant_id: str, document_id: str, *, chunk_ids: Sequence[str] | None = None, available: bool | None = None,
        offset: int = 0, limit: int = 30,
    ) -> tuple[int, list[Chunk]]:  # fmt: skip
        """How many chunks of the document match, and one page of them ordered by position, then `created_at` descending, then id."""

    def count(self, tenant_id: str, selector: ChunkSelector) -> int:
        """How many chunks are selected."""

    def scan(self, tenant_id: str, *, after: str = "", size: int = 500) -> Iterator[Sequence[StoredChunk]]:
        """All chunks of the tenant with ids above `after`, by rising id, `size` at a time; with their vectors, bit for bit."""

    def load(self, tenant_id: str, stored: Sequence[StoredChunk]) -> None:
        """Insert or replace what `scan` of another store gave, terms and vectors as they are; durable when this returns.

        Call `flush` at the end: only then searches find all of it for certain.
        """

    def drop_tenant(self, tenant_id: str) -> None:
        """Remove everything of the tenant."""

    def health(self) -> dict[str, str]:
        """`{"type": ..., "status": "green" | "yellow" | "red", ...}`; never raises."""

    def close(self) -> None:
        """Release files and threads. Safe to call twice."""


class BlobWriter(Protocol):
    """A blob that comes in pieces. Blocking calls; `abort` may come from another thread, also while a call runs."""

    def write(self, data: bytes) -> None:
        """Add the data. Raises `Unavailable`, also when the writer was aborted."""

    def commit(self) -> int:
        """Make what was written durable under the key and return its size in bytes. Raises as `write`."""

    def abort(self) -> None:
        """Drop what was written. After `commit` or `abort` nothing happens; never raises."""


class BlobStore(Protocol):
    """Keeps uploaded files by key. Blocking: call it through the blob lane. A key is `[a-z0-9/_-]+`, made by us."""

    def put(self, key: str, source: BinaryIO) -> int:
        """Store the stream durably under the key, in bounded memory, and return its size in bytes. All or nothing."""

    def writer(self, key: str) -> BlobWriter:
        """For a blob whose pieces come over a long time. Does not block; there is nothing under the key before `commit`."""

    def open(self, key: str) -> BinaryIO:
        """A readable stream, checked as it is read: before the last bytes come out it may raise `Damaged`. Raises `NotFound`."""

    def local_path(self, key: str) -> AbstractContextManager[Path]:
        """A file on this machine with the blob's bytes, checked, valid inside the context. Raises `NotFound`, `Damaged`."""

    def delete(self, key: str) -> None:
        """Remove the blob; nothing happens if there is none."""

    def list(self) -> Iterator[str]:
        """The keys of all blobs, and of those that a write in the middle, or one that was killed, has not finished. In no order."""

    def health(self) -> dict[str, str]:
        """`{"type": ..., "status": "green" | "red"}`; never raises."""

    def close(self) -> None:
        """Let go of threads and connections."""


class Embedder(Protocol):
    """Turns texts into unit vectors.

    `space` names model, weights and precision: vectors of different spaces never mix. `dimension` is the vectors' length.
    `tokenizer_path` is a `tokenizer.json` that counts this model's tokens, or a close stand-in for a remote model.
    """

    space: str
    dimension: int
    tokenizer_path: Path

    async def embed_query(self, text: str) -> np.ndarray:
        """float32 `[dimension]`, unit length. Raises `ProviderError`, `Overloaded`."""

    async def embed_documents(self, texts: Sequence[str]) -> np.ndarray:
        """float32 `[len(texts), dimension]`, unit length, in the order given. Yields to queries. Raises as `embed_query`."""

    def trust(self, text: str) -> float:
        """How far this model understands the text's language, 0 (not at all) to 1; scales the vector arm's weight."""


class ChatModel(Protocol):
    """A chat model behind some endpoint. `context_tokens` bounds prompt and answer together."""

    name: str
    context_tokens: int

    def stream(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncIterator[ChatDelta]:
        """The answer as it comes. Close it (`aclosing`) to end the vendor's call. Raises `ProviderError`."""

    async def complete(self, messages: Sequence[ChatMessage], options: ChatOptions) -> ChatReply:
        """The whole answer. Raises `ProviderError`."""


class VendorObserver(Protocol):
    """Is told of every call to a model's endpoint. `provider` is the operator's name for it, `kind` what the model does."""

    def vendor_call(self, provider: str, kind: str, outcome: str, seconds: float) -> None:
        """One attempt ended: "ok", or a word for what went wrong. `seconds` until the answer, or until a stream's first event."""

    def vendor_retry(self, provider: str, kind: str) -> None:
        """The call is sent a second time."""


class Reranker(Protocol):
    """Scores texts against a query. A class offers `async_similarity`, or only `similarity`, which then runs in the executor.

    It may offer `check()`, which does no work and raises the `ProviderError` with which a call would be refused now.
    """

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        """Scores in [0, 1], float32 `[len(texts)]` in the order given, and the tokens used (None: unknown). Raises `ProviderError`."""


class Cache(Protocol):
    """Remembers bytes by key for a while. It may forget at any time, and what it cannot do it leaves undone: it never raises."""

    async def get(self, key: str) -> bytes | None:
        """What was put under the key, or None."""

    async def put(self, key: str, value: bytes, seconds: float) -> None:
        """Remember the value for at most so long."""

    async def health(self) -> dict[str, str]:
        """`{"type": ..., "status": "green" | "yellow", ...}`."""

    async def close(self) -> None:
        """Release connections and memory. Safe to call twice."""


class RateLimit(Protocol):
    """How often a caller may ask: so many times a second, and some more at once after a pause. It never raises."""

    async def wait_seconds(self, caller: str) -> float:
        """0.0 when the caller may ask now, which counts; else how long it has to wait."""


class Board(Protocol):
    """Where each process writes a line and reads the others'. It never raises."""

    async def exchange(self, line: bytes) -> Sequence[bytes]:
        """Say `line` in place of what was said before, and hear what the others said within the last two seconds."""


class IngestRecords(Protocol):
    """Where the ingestion worker finds its tasks and writes what became of them. All calls but `rename` are one transaction each."""

    async def claim(self, worker: str, lease_seconds: float, busy_tenants: Collection[str] = ()) -> IngestTask | None:
        """Lease the next task that is due (queued, or leased by a worker that stopped renewing); None if there is none.

        The tasks of `busy_tenants` are left for later, or for another worker.
        """

    async def renew(self, task: IngestTask, worker: str, lease_seconds: float) -> bool:
        """Extend the lease. False: the task was stopped, superseded or taken over; drop it."""

    async def report(self, task: IngestTask, worker: str, progress: float, message: str) -> bool:
        """Show progress (0 to 1) and a line for people. False as for `renew`."""

    async def finish(self, task: IngestTask, worker: str, *, chunk_count: int, token_count: int, message: str) -> bool:
        """Mark the task done and set the document's counters. False: the task was no longer ours, nothing was written."""

    async def fail(self, task: IngestTask, worker: str, message: str, *, retry: bool, counts: bool = True) -> bool:
        """Mark the task failed with a message for people; with `retry` it is queued again until the failures that count are too many."""

    async def rename(self, task: IngestTask) -> None:
        """Write the document's name, whatever it is in the end, into its chunks. May be broken off and done again."""

    async def give_back(self, task: IngestTask, worker: str) -> bool:
        """End the lease without a result, as a worker does that must stop; the task is due at once. False as for `renew`."""


Clock = Callable[[], float]
