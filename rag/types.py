"""Values passed between packages: frozen, plain, without behaviour beyond their own shape."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

ID_PATTERN = r"[0-9a-f]{32}"


# ---------------------------------------------------------------------------------------------------- chunks
@dataclass(frozen=True, slots=True)
class ChunkTerms:
    """What the text index sees of a chunk: per field the analysed terms, joined by one blank (see rag/nlp/tokenize.py)."""

    title: str = ""
    content: str = ""
    keywords: str = ""
    questions: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document as the store keeps it.

    `id` is 16 lower-case hex digits, unique within the tenant. `version` is the parse run that made the chunk, from
    1; of a chunk added by hand it is the document's version at the time, negated. `position` orders the chunks of a document.
    `positions` holds `(page, left, right, top, bottom)`, page counted from 1, the rest in points from the page's top left corner;
    empty where the format has no pages.
    `kind` is "" for text, "table" or "image". `created_at` is seconds since the epoch. `extra` is JSON (tag_feas, image_id ...).
    """

    id: str
    dataset_id: str
    document_id: str
    document_name: str
    content: str
    terms: ChunkTerms
    version: int = 0
    position: int = 0
    headings: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    positions: tuple[tuple[int, int, int, int, int], ...] = ()
    kind: str = ""
    available: bool = True
    created_at: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk with its vector as a store keeps it: unit float16 `[dimension]` of the embedding space `space`, None without one."""

    chunk: Chunk
    space: str = ""
    vector: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class ChunkSelector:
    """Which chunks of a tenant a delete, count or switch touches: all conditions given must hold; at least one must be given.

    `versions_below` selects parsed chunks (version >= 1) of an older parse run only; chunks added by hand stay. With `with_added` those
    go as well that were added while the document's version was below, and none that came after, however late it is done.
    """

    dataset_ids: tuple[str, ...] | None = None
    document_ids: tuple[str, ...] | None = None
    chunk_ids: tuple[str, ...] | None = None
    versions_below: int | None = None
    with_added: bool = False


@dataclass(frozen=True, slots=True)
class Term:
    """An analysed query term with its weight (1.0 is neutral)."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """One question to the chunk store, both arms in one call.

    No `terms` or no `vector` switches that arm off. `field_boosts` maps the names of `ChunkTerms`' fields to factors; a
    field that is absent does not count. `vector` is float32, unit length, of the embedding space `space`; only chunks whose
    vectors were made in that space take part in the vector arm. `available` None means switched off chunks too.
    """

    tenant_id: str
    dataset_ids: tuple[str, ...]
    document_ids: tuple[str, ...] | None = None
    terms: tuple[Term, ...] = ()
    field_boosts: Mapping[str, float] = field(default_factory=lambda: {"title": 1.0, "content": 1.0, "keywords": 1.0, "questions": 1.0})
    vector: np.ndarray | None = None
    space: str = ""
    text_k: int = 1024
    vector_k: int = 1024
    available: bool | None = True


@dataclass(frozen=True, slots=True)
class Candidates:
    """The union of both arms' hits as parallel arrays of one length n, in no particular order.

    `ids` uint64, the chunk ids as numbers (`f"{id:016x}"`). `documents[document_of[i]]` is the document id of candidate i.
    `text_scores` float32: BM25 summed over the fields, 0.0 where no term matches; given for every candidate of the union,
    also those that only the vector arm brought. `vector_scores` float32: cosine in [-1, 1], NaN for a chunk without a vector
    in the request's space; likewise given for every candidate. `text_ranks`, `vector_ranks` int32: place within the arm's own
    list from 0, -1 for a candidate that arm did not bring. `degraded` names parts that could not answer ("text", "vector").
    """

    ids: np.ndarray
    documents: list[str]
    document_of: np.ndarray
    text_scores: np.ndarray
    vector_scores: np.ndarray
    text_ranks: np.ndarray
    vector_ranks: np.ndarray
    degraded: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------- retrieval
@dataclass(frozen=True, slots=True)
class RankedChunk:
    """One entry of a retrieval's ranked list. `similarity` is what the list is sorted by; the others are its parts, in [0, 1]."""

    chunk: Chunk
    similarity: float
    vector_similarity: float
    term_similarity: float
    highlight: str | None = None
    explain: Mapping[str, Any] | None = None


class DocumentCount(NamedTuple):
    """How many entries of a ranked list come from one document. A tuple: an answer may count a thousand documents."""

    document_id: str
    document_name: str
    count: int


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One page of a ranked list, with the list's length and per-document counts (descending), both independent of the page.

    `degraded` names the stages that failed and were left out, `reasons` tells of some of them why, in words for the caller;
    `timings` maps a stage to milliseconds.
    """

    total: int
    chunks: tuple[RankedChunk, ...]
    documents: tuple[DocumentCount, ...]
    degraded: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------- models
@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn as the model sees it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """Sampling options; None leaves the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call; None where the vendor does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """A piece of a model's streamed answer: exactly one of `text`, `reasoning` is non-empty, or `usage`/`finish_reason` ends it."""

    text: str = ""
    reasoning: str = ""
    usage: Usage | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A model's whole answer."""

    text: str
    reasoning: str = ""
    usage: Usage = Usage()
    finish_reason: str | None = None


# ---------------------------------------------------------------------------------------------------- ingestion
@dataclass(frozen=True, slots=True)
class Block:
    """A run of text a parser found, in reading order.

    `start`, `end` are offsets into the parsed document's text. `level` is 1-6 for a heading, 0 otherwise. `page` counts from 1,
    0 where the format has no pages. `box` is `(left, right, top, bottom)` in points from the page's top left corner, or None.
    `kind` is "", "table" or "image".
    """

    start: int
    end: int
    level: int = 0
    page: int = 0
    box: tuple[int, int, int, int] | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """A document's normalised text (NFC, line ends `\\n`) and its blocks, which cover it in order without overlap."""

    text: str
    blocks: tuple[Block, ...]
    title: str = ""
    pages: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IngestTask:
    """A leased piece of background work. `version` numbers the document's parse run, from 1.

    A sweep removes what a parse run left behind that was taken from its worker: parsed chunks of `version` and those below. A drop
    removes what a document had before it was started again, or stopped: chunks of versions below `version`, and those added by hand.
    A rename brings the chunks' document name in line with the document's.

    `available` false means that the document is switched off: its chunks are to be stored so.
    """

    id: str
    kind: Literal["parse", "purge", "sweep", "drop", "rename"]
    tenant_id: str
    dataset_id: str
    document_id: str
    document_name: str = ""
    blob_key: str = ""
    size: int = 0
    chunk_method: str = "naive"
    parser_config: Mapping[str, Any] = field(default_factory=dict)
    embedding_model: str = ""
    version: int = 1
    attempt: int = 1
    available: bool = True
