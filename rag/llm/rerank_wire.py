"""The pure half of reranking: where a vendor listens and what its answer means. No I/O."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from rag.errors import ProviderBadReply, SettingsError

# A score is rounded on its way: this far outside of [0, 1] is still a probability.
_ROUNDING = 1e-3
_STEEPEST_LOGIT = 80.0
_VERSION_SEGMENT = re.compile(r"v\d+")
_TOKEN_COUNTS = (
    ("usage", "total_tokens"),
    ("usage", "prompt_tokens"),
    ("meta", "tokens", "input_tokens"),
    ("meta", "billed_units", "input_tokens"),
    ("tokens", "input_tokens"),
)


def join_url(base_url: str, path: str) -> str:
    """The URL of `path` ("v1/rerank") at `base_url`, which may be a host, end in a version, or be the whole URL already.

    A path prefix before it and a query stay; a version given replaces the path's own. User and password are left out. Raises
    `SettingsError`.
    """
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError("a base_url must begin with http:// or https:// and name a host")
    prefix = [segment for segment in parts.path.split("/") if segment]
    wanted = path.split("/")
    if len(wanted) > 2 and prefix[-2:] == wanted[-2:]:  # the whole URL, behind a gateway that leaves the beginning out
        prefix, wanted = prefix[:-2], wanted[-2:]
    present = next((size for size in range(len(wanted), 0, -1) if prefix[-size:] == wanted[:size]), 0)
    if present:
        prefix = prefix[:-present]
    elif prefix and _VERSION_SEGMENT.fullmatch(prefix[-1]) and "v1" in wanted:
        version = prefix.pop()
        wanted = [version if segment == "v1" else segment for segment in wanted]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, "/" + "/".join([*prefix, *wanted]), parts.query, ""))


def placed_scores(entries: Any, count: int, key: str, model: str) -> np.ndarray:
    """The entries' numbers under `key` at their `index`, float64 `[count]`.

    Raises `ProviderBadReply` unless every index from 0 to `count - 1` is there exactly once with a finite number.
    """
    if not isinstance(entries, list):
        raise ProviderBadReply(f"model {model} answered something that is not a reranking")
    if len(entries) != count:
        raise ProviderBadReply(f"model {model} answered {count} texts with {len(entries)} scores")
    if not set(map(type, entries)) <= {dict}:
        raise ProviderBadReply(f"model {model} answered something that is not a reranking")
    indexes = [entry.get("index") for entry in entries]
    if not set(map(type, indexes)) <= {int} or not set(indexes) <= set(range(count)):
        raise ProviderBadReply(f"model {model} answered with an index that is not one of the {count} texts")
    if len(set(indexes)) < count:
        raise ProviderBadReply(f"model {model} answered with a doubled index")
    scores = [entry.get(key) for entry in entries]
    if not set(map(type, scores)) <= {float, int} or not all(map(math.isfinite, scores)):
        raise ProviderBadReply(f"model {model} answered with a score that is not a finite number")
    placed = np.empty(count)
    placed[indexes] = scores
    return placed


def scaled(scores: np.ndarray, *, logits: bool = False) -> np.ndarray:
    """The scores in [0, 1], float32: probabilities as they are, logits by the sigmoid, each by itself.

    They are logits if told so, or if one of them lies outside of [0, 1]: a model's scores are all of one kind, and mixing kinds
    would turn 0.9 and 1.5 around.
    """
    if not logits and bool(((scores >= -_ROUNDING) & (scores <= 1.0 + _ROUNDING)).all()):
        return np.clip(scores, 0.0, 1.0).astype(np.float32)
    return (1.0 / (1.0 + np.exp(-np.clip(scores, -_STEEPEST_LOGIT, _STEEPEST_LOGIT)))).astype(np.float32)


def token_count(reply: Any) -> int | None:
    """How many tokens the vendor says it read; None when it does not say."""
    for path in _TOKEN_COUNTS:
        value = reply
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if type(value) is int and value >= 0:
            return value
    return None


def total_tokens(counts: Sequence[int | None]) -> int | None:
    """The sum; None when one of them is unknown."""
    return None if any(count is None for count in counts) else sum(count for count in counts if count is not None)
