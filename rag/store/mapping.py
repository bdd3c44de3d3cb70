"""How a chunk lies in an Elasticsearch index: names, settings, fields, and the way there and back. Pure: no client, no network.

Each tenant has one index behind one alias. The index's name carries the version of this layout and of the analysis that made
the terms; an index of another version is copied into a new one (rag/store/elastic_index.py).

A chunk's fields are in `_source`, except its vector. That is kept twice: as the index needs it, under a field of its embedding
space (`vector_field`), and packed as unit float16 in a stored field, to be read again without decoding hundreds of numbers with
every chunk. An index field has one dimension for ever, so a space that changes its dimension is refused by the index itself.
"""

import base64
from collections.abc import Mapping
from hashlib import blake2b
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from rag.store.rows import ABSENT, body_of, check_tenant_id, chunk_of, indexed_text, stored_id
from rag.types import Chunk

VERSION = 1
TERM_FIELDS = ("title", "content", "keywords", "questions")
# The whitespace analyser cuts a longer word into pieces of this length.
WORD_CHARACTERS = 255
# Elasticsearch's own limits stop at 10,000 hits and 65,536 terms of a filter; documents and datasets hold more chunks than that.
MOST_HITS = 1_000_000
MOST_NEIGHBOURS = 10_000  # of one nearest neighbour search; not to be raised
# How an index finds vectors, by the setting: the first kind that the server knows. "flat" came with 8.13.
VECTOR_KINDS: Mapping[str, tuple[str, ...]] = {"auto": ("flat", "hnsw"), "flat": ("flat",), "hnsw": ("hnsw",), "int8_hnsw": ("int8_hnsw",)}

_TERMS = {"type": "text", "analyzer": "whitespace", "index_options": "freqs"}
_KEPT_ONLY = {"type": "keyword", "index": False, "doc_values": False}
_FIELDS: Mapping[str, Any] = {
    "id": {"type": "long"},
    "dataset": {"type": "keyword"},
    "document": {"type": "keyword"},
    "version": {"type": "long"},
    "position": {"type": "long"},
    "created_at": {"type": "double"},
    "available": {"type": "boolean"},
    **dict.fromkeys(TERM_FIELDS, _TERMS),
    "body": _KEPT_ONLY,
    "space": _KEPT_ONLY,
    "packed": {"type": "binary", "store": True},
}


def alias_of(prefix: str, tenant_id: str) -> str:
    """The name under which a tenant's index is used. Raises `InvalidArgument` for what is no tenant id."""
    check_tenant_id(tenant_id)
    return f"{prefix}{tenant_id}"


def index_of(alias: str, analyser_version: str) -> str:
    """The first name of a tenant's index in the present layout; the name of a copy goes on behind it."""
    return f"{alias}-m{VERSION}-a{analyser_version.lower()}"


def tenant_of(prefix: str, index: str) -> str:
    """Whose index has this name."""
    return index.removeprefix(prefix).partition("-")[0]


def has_present_layout(index: str, alias: str, analyser_version: str) -> bool:
    """Whether an index of this name is one of the present layout."""
    first = index_of(alias, analyser_version)
    return index == first or index.startswith(f"{first}-")


def vector_field(space: str) -> str:
    """The index field of an embedding space's vectors."""
    return f"vector_{blake2b(space.encode(), digest_size=10).hexdigest()}"


def index_body(shards: int, replicas: int | None) -> dict[str, Any]:
    """Settings and fields of a new index. `replicas` None: one where there is a second node to hold it.

    One shard by default: statistics, and so scores, are then the tenant's and not a shard's.
    """
    settings: dict[str, Any] = {
        "number_of_shards": shards,
        "refresh_interval": "30s",  # what has to be seen sooner is refreshed by name
        "max_result_window": MOST_HITS,
        "max_terms_count": MOST_HITS,
        # BM25 as the embedded engine's, whatever the cluster's defaults are
        "similarity": {"default": {"type": "BM25", "k1": 1.2, "b": 0.75}},
    }
    settings |= {"auto_expand_replicas": "0-1"} if replicas is None else {"number_of_replicas": replicas}
    return {
        "settings": {"index": settings},
        # strict: a field that is missing in the index is an error, not a vector that is never found
        "mappings": {"dynamic": "strict", "_source": {"excludes": ["vector_*", "packed"]}, "properties": _FIELDS},
    }


def vector_mapping(dimension: int, kind: str) -> dict[str, Any]:
    """The field of a space. Its similarity is the plain product, as in the embedded store: the vectors are unit vectors."""
    return {"type": "dense_vector", "dims": dimension, "index": True, "similarity": "max_inner_product", "index_options": {"type": kind}}


def cosines(scores: np.ndarray) -> np.ndarray:
    """Cosines float32 from Elasticsearch's scores of `max_inner_product`, which it keeps above 0."""
    wide = np.asarray(scores, np.float64)
    return np.minimum(np.maximum(np.where(wide >= 1.0, wide - 1.0, 1.0 - 1.0 / wide), -1.0), 1.0).astype(np.float32)


def document(chunk: Chunk, space: str = "", vector: np.ndarray | None = None) -> bytes:
    """A chunk as the index takes it, with its unit vector float16. Raises `InvalidArgument` for what cannot be stored."""
    *terms, body = body_of(chunk)
    fields: dict[str, Any] = {
        "id": stored_id(chunk.id),
        "dataset": chunk.dataset_id,
        "document": chunk.document_id,
        "version": chunk.version,
        "position": chunk.position,
        "created_at": chunk.created_at,
        "available": chunk.available,
        **{name: indexed_text(text) for name, text in zip(TERM_FIELDS, terms, strict=True)},
        "body": body.decode(),
    }
    if vector is not None:
        fields |= {"space": space, "packed": base64.b64encode(vector.tobytes()).decode(), vector_field(space): vector.astype(np.float32)}
    return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


_places = itemgetter("id", "dataset", "document", "version", "position", "created_at", "available")


def chunk_from(source: Mapping[str, Any]) -> Chunk:
    """The chunk of a stored `_source`."""
    terms = ["" if (text := source[name]) == ABSENT else text for name in TERM_FIELDS]
    return chunk_of((*_places(source), *terms, orjson.loads(source["body"])))


def unpacked(packed: str) -> np.ndarray:
    """The unit vector float16 of a stored field `packed`."""
    return np.frombuffer(base64.b64decode(packed), np.float16)


def kept(hit: Mapping[str, Any]) -> tuple[str, np.ndarray | None]:
    """The space and the unit vector float16 of a hit that was read with its field `packed`; "" and None without one."""
    packed = hit.get("fields", {}).get("packed")
    return (hit["_source"]["space"], unpacked(packed[0])) if packed else ("", None)
