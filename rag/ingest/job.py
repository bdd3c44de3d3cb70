"""What a parser process does with one file: parse, split and analyse it, and hand the chunks over in batches.

All that costs Python time for a chunk happens here and not in the server: its event loop only passes the batches on.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from rag.ingest.chunks import Draft, chunk
from rag.nlp.tokenize import chunk_terms
from rag.nlp.tokens import TokenCounter

BATCH_CHUNKS = 64
BATCH_TOKENS = 16 * 1024  # a chunk may have thousands
PROGRESS_EVERY_SECONDS = 0.5

Emit = Callable[[Mapping[str, Any]], None]


def run(job: Mapping[str, Any], emit: Emit) -> None:
    """Emit `{"progress": line}` now and then, `{"total": n, "warnings": [...]}`, and the chunks as `{"chunks": [...]}`.

    `job` has `source` (a path), `name`, `method`, `config`, `tokenizer` (a path), and `careful` after a crash. Raises as
    `rag.ingest.chunks.chunk`.
    """
    counter = _counter(job["tokenizer"])
    source, progress = Path(job["source"]), _Reporter(emit).tell
    drafts, warnings = chunk(source, job["name"], job["method"], job["config"], counter, progress, careful=job.get("careful", False))
    emit({"total": len(drafts), "warnings": warnings})
    for batch in _batches(drafts):
        emit({"chunks": [_message(draft, job["name"]) for draft in batch]})


def _batches(drafts: Sequence[Draft]) -> Iterator[list[Draft]]:
    batch: list[Draft] = []
    tokens = 0
    for draft in drafts:
        if batch and (len(batch) == BATCH_CHUNKS or tokens + draft.size_tokens > BATCH_TOKENS):
            yield batch
            batch, tokens = [], 0
        batch.append(draft)
        tokens += draft.size_tokens
    if batch:
        yield batch


@lru_cache(maxsize=4)
def _counter(tokenizer: str) -> TokenCounter:
    return TokenCounter(Path(tokenizer))


def _message(draft: Draft, document_name: str) -> dict[str, Any]:
    terms = chunk_terms(document_name, draft.headings, draft.content)
    return {
        "content": draft.content,
        "tokens": draft.size_tokens,
        "span": (draft.start, draft.end),
        "headings": draft.headings,
        "positions": draft.positions,
        "kind": draft.kind,
        "tags": draft.tags,
        "terms": (terms.title, terms.content, terms.keywords, terms.questions),
    }


class _Reporter:
    """Turns a parser's progress into lines for people, not too many of them."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._next = 0.0

    def tell(self, what: str, done: int, of: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PROGRESS_EVERY_SECONDS
            self._emit({"progress": f"parsing {what} {done} of {of}" if of else f"parsing {what} {done}"})
