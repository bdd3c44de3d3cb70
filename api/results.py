"""Results of searches that were asked before, remembered for as long as their data stays what it was.

A result is kept under everything it depends on: the tenant, the datasets and the versions of their data, the question, every
setting. The versions come with the datasets that a request reads anyway, before it searches; whoever changes data gives it a new
version when the change can be found, before telling anyone that it was made (`dataset_service.changed`). So a result that is found
under a version is never older than that version, whatever became of the cache meanwhile.

A change that nobody was told of (its caller left, its process died) may come a moment after its version: a version's results are
only kept once it has been seen for `SETTLED_SECONDS`.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import orjson

from rag.nlp.search import RetrievalRequest
from rag.ports import Cache, Clock
from rag.types import Chunk, ChunkTerms, DocumentCount, RankedChunk, Retrieval

SETTLED_SECONDS = 2.0
MOST_VERSIONS = 10_000
FORMAT = 1  # another number for another form of what is kept
# what a result does not depend on, or what goes into the key in another form
_LEFT_OUT = {"question", "dataset_ids", "document_ids", "embed_seconds"}
_REQUEST_FIELDS = tuple(field.name for field in fields(RetrievalRequest) if field.name not in _LEFT_OUT)
_CHUNK_FIELDS = tuple(field.name for field in fields(Chunk))
_TUPLES = ("headings", "keywords", "questions", "tags")


class Results:
    """Remembers results in a cache. On the event loop."""

    def __init__(
        self, cache: Cache, kept_seconds: float, *, clock: Clock = time.monotonic, on_asked: Callable[[str, bool], None] | None = None
    ) -> None:  # fmt: skip
        """`on_asked("result", hit)` is told of every result that was looked for."""
        self._cache = cache
        self._kept_seconds = kept_seconds
        self._clock = clock
        self._on_asked = on_asked or (lambda cache, hit: None)
        self._seen_at: OrderedDict[tuple[str, int], float] = OrderedDict()

    async def remembered(
        self, request: RetrievalRequest, versions: Sequence[int], beside: Mapping[str, Any], search: Callable[[], Awaitable[Retrieval]]
    ) -> Retrieval:  # fmt: skip
        """The result kept for this request, or else that of `search`, which is kept where something was found and nothing left out.

        `versions` are those of `request.dataset_ids`, read before. `beside` is what the result depends on beside them, as JSON.
        """
        key = key_of(request, versions, beside)
        kept = await self._cache.get(key)
        found = None if kept is None else decode(kept)
        self._on_asked("result", found is not None)
        if found is not None:
            return found
        settled = self._settled(request.dataset_ids, versions)
        found = await search()
        if settled and found.total and not found.degraded:
            await self._cache.put(key, encode(found), self._kept_seconds)
        return found

    def _settled(self, dataset_ids: Sequence[str], versions: Sequence[int]) -> bool:
        now = self._clock()
        seen = [self._seen_at.setdefault(pair, now) for pair in zip(dataset_ids, versions, strict=True)]
        while len(self._seen_at) > MOST_VERSIONS:
            self._seen_at.popitem(last=False)
        return all(now - at >= SETTLED_SECONDS for at in seen)


def key_of(request: RetrievalRequest, versions: Sequence[int], beside: Mapping[str, Any]) -> str:
    """One key for requests of which the answers are the same by all that is known before searching."""
    asked = {name: getattr(request, name) for name in _REQUEST_FIELDS}
    facts = [FORMAT, request.question, request.document_ids, list(zip(request.dataset_ids, versions, strict=True)), asked, beside]
    return "result:" + hashlib.blake2b(orjson.dumps(facts, option=orjson.OPT_SORT_KEYS), digest_size=20).hexdigest()


def encode(found: Retrieval) -> bytes:
    """The result as it is kept: without timings, which tell of one search."""
    chunks = [
        [_plain(ranked.chunk), ranked.similarity, ranked.vector_similarity, ranked.term_similarity, ranked.highlight]
        for ranked in found.chunks
    ]
    documents = [[entry.document_id, entry.document_name, entry.count] for entry in found.documents]
    return orjson.dumps([found.total, chunks, documents])


def decode(kept: bytes) -> Retrieval | None:
    """The result again; None for what is none."""
    try:
        total, chunks, documents = orjson.loads(kept)
        return Retrieval(
            total,
            tuple(RankedChunk(_chunk(values), *scores) for values, *scores in chunks),
            tuple(DocumentCount(*entry) for entry in documents),
        )
    except (ValueError, TypeError):
        return None


def _plain(chunk: Chunk) -> list[Any]:
    terms = chunk.terms
    values = {name: getattr(chunk, name) for name in _CHUNK_FIELDS}
    values["terms"] = [terms.title, terms.content, terms.keywords, terms.questions]
    return list(values.values())


def _chunk(values: Sequence[Any]) -> Chunk:
    named = dict(zip(_CHUNK_FIELDS, values, strict=True))
    named["terms"] = ChunkTerms(*named["terms"])
    named["positions"] = tuple(tuple(position) for position in named["positions"])
    for name in _TUPLES:
        named[name] = tuple(named[name])
    return Chunk(**named)
