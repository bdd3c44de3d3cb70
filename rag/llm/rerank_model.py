"""Rerank models behind an HTTP endpoint: ten vendors, each a few facts about its wire format, over one flow.

docs/adding-a-provider.md shows how an eleventh is added.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

import numpy as np

from rag.deadline import seconds_left, within
from rag.errors import DeadlineExceeded, InvalidArgument
from rag.llm.cutting import cut, estimated_tokens
from rag.llm.endpoint import Endpoint
from rag.llm.rerank_wire import join_url, placed_scores, scaled, token_count, total_tokens
from rag.llm.resilience import Guard
from rag.llm.transport import RequestRejected, Transport

T = TypeVar("T")

# An answer may repeat the texts, each character escaped as JSON allows, and has little else.
_REPLY_BYTES = 1 << 20
_REPLY_BYTES_PER_CHARACTER = 12

# What is kept of the caller's time, so that it can still do something else when this reranker has used up its own.
_SHARE_OF_TIME = 0.9
# A model reads query and text together; the query gets at most this part, special tokens come on top.
_SHARE_OF_QUERY = 0.5
_SPECIAL_TOKENS = 8


class VendorReranker:
    """A `Reranker`. A vendor states what differs from the usual: `{model, query, documents, top_n}` in, `{results: [{index,
    relevance_score}]}` out.

    `default_base_url` is used where none is configured, "" if one has to be. `path` is where the vendor listens below its base.
    `max_tokens` is the most that any of its models reads of query and text together, `max_batch` the texts it takes in one
    call. `score_key` names an entry's score; `logits` says that scores are never probabilities.
    """

    provider: ClassVar[str]
    default_base_url: ClassVar[str] = ""
    path: ClassVar[str] = "v1/rerank"
    max_tokens: ClassVar[int] = 8192
    max_batch: ClassVar[int] = 512
    score_key: ClassVar[str] = "relevance_score"
    logits: ClassVar[bool] = False

    def __init__(
        self, name: str, endpoint: Endpoint, transport: Transport, guard: Guard, context_tokens: int = 8192, batch: int | None = None
    ) -> None:
        """`name` is the model's name as its endpoint knows it, `context_tokens` what it reads of query and text together.

        `batch` texts are sent in one call, `max_batch` where it is not given.
        """
        self.name = name
        self._endpoint = endpoint
        self._transport = transport
        self._guard = guard
        self._context_tokens = min(context_tokens, self.most_tokens())
        self._batch = batch or self.max_batch

    @classmethod
    def url(cls, base_url: str, name: str) -> str:
        """Where the model `name` answers. Raises `SettingsError`."""
        return join_url(base_url, cls.path)

    def most_tokens(self) -> int:
        """What this model of the vendor reads at most."""
        return self.max_tokens

    def body(self, query: str, texts: Sequence[str]) -> dict[str, Any]:
        """The request."""
        return {"model": self.name, "query": query, "documents": list(texts), "top_n": len(texts)}

    def entries(self, reply: Any) -> Any:
        """The list of scored entries in the reply, None if there is none."""
        return reply.get("results") if isinstance(reply, Mapping) else None

    def check(self) -> None:
        """Raise `CircuitOpen` when the endpoint is not asked now."""
        self._guard.breaker.check()

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        """As `async_similarity`, for code on a thread of its own: the same call, which this thread waits for."""
        return self._transport.wait_for(self.async_similarity(query, texts))

    async def async_similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        """Scores in [0, 1], float32 `[len(texts)]` in the order given, and the tokens used (None: unknown).

        All batches together take at most the endpoint's time, or nine tenths of what the caller has left. A text that shows
        nothing is not sent and scores 0. Raises `InvalidArgument` for an empty query, `ProviderError`, `DeadlineExceeded` when no
        time was left to ask. Cancelling closes the connection.
        """
        _check(query, texts)
        shown = [index for index, text in enumerate(texts) if text and not text.isspace()]
        scores = np.zeros(len(texts), dtype=np.float32)
        if not shown:
            return scores, 0
        seconds = min(self._endpoint.timeout_seconds, _SHARE_OF_TIME * seconds_left())
        if seconds <= 0:
            raise DeadlineExceeded(f"no time was left to ask model {self._endpoint.model}")
        query = cut(query, int(self._context_tokens * _SHARE_OF_QUERY))
        room = max(1, self._context_tokens - _SPECIAL_TOKENS - round(estimated_tokens(query)))
        with within(seconds):
            scores[shown], tokens = await self._score(query, [cut(texts[index], room) for index in shown])
        return scores, tokens

    async def _score(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        starts = range(0, len(texts), self._batch)
        answers = await _together([self._ask(query, texts[start : start + self._batch]) for start in starts])
        scores = np.concatenate([placed for placed, _ in answers])
        return scaled(scores, logits=self.logits), total_tokens([tokens for _, tokens in answers])

    async def _ask(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        """One batch."""
        body = self.body(query, texts)
        longest = _REPLY_BYTES + _REPLY_BYTES_PER_CHARACTER * sum(map(len, texts))
        endpoint = replace(self._endpoint, max_reply_bytes=min(longest, self._endpoint.max_reply_bytes))

        async def attempt() -> tuple[np.ndarray, int | None]:
            reply = await self._transport.post_json(endpoint, body)
            return placed_scores(self.entries(reply), len(texts), self.score_key, endpoint.model), token_count(reply)

        return await self._guard.call(attempt)


class TextEmbeddingsInferenceRerank(VendorReranker):
    """https://huggingface.github.io/text-embeddings-inference: a bare list, and at most 32 texts a call (413 above)."""

    provider = "HuggingFace"
    path = "rerank"
    max_batch = 32
    score_key = "score"

    def body(self, query: str, texts: Sequence[str]) -> dict[str, Any]:
        return {"query": query, "texts": list(texts), "truncate": True}

    def entries(self, reply: Any) -> Any:
        return reply


class OpenAI_APIRerank(VendorReranker):  # noqa: N801 - the specification's name
    """vLLM, llama.cpp and gateways that speak as they do, and Text Embeddings Inference, found out by asking.

    An endpoint that rejects the usual request is asked in the other form; the form that is answered first is kept.
    """

    provider = "OpenAI-API-Compatible"
    path = "rerank"

    def __init__(
        self, name: str, endpoint: Endpoint, transport: Transport, guard: Guard, context_tokens: int = 8192, batch: int | None = None
    ) -> None:
        super().__init__(name, endpoint, transport, guard, context_tokens, batch)
        self._other = TextEmbeddingsInferenceRerank(name, endpoint, transport, guard, context_tokens, batch)
        self._speaks: VendorReranker | None = None

    async def _score(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        if self._speaks is self._other:
            return await self._other._score(query, texts)
        try:
            answer = await super()._score(query, texts)
        except RequestRejected:
            if self._speaks is self:
                raise
            answer = await self._other._score(query, texts)
            self._speaks = self._other
        else:
            self._speaks = self
        return answer


class JinaRerank(VendorReranker):
    """https://api.jina.ai/redoc"""

    provider = "Jina"
    default_base_url = "https://api.jina.ai/v1"


class XInferenceRerank(VendorReranker):
    """https://inference.readthedocs.io: answers all texts without being told how many."""

    provider = "Xinference"

    def body(self, query: str, texts: Sequence[str]) -> dict[str, Any]:
        return {"model": self.name, "query": query, "documents": list(texts)}


class LocalAIRerank(VendorReranker):
    """https://localai.io/features/reranker"""

    provider = "LocalAI"


class NvidiaRerank(VendorReranker):
    """https://docs.api.nvidia.com/nim/reference: a path for each model at NVIDIA, one for all in a NIM of one's own."""

    provider = "NVIDIA"
    default_base_url = "https://ai.api.nvidia.com/v1/retrieval/nvidia"
    path = "v1/ranking"
    score_key = "logit"
    logits = True
    hosted_path: ClassVar[str] = "v1/retrieval/nvidia"
    without_path_of_their_own: ClassVar[tuple[str, ...]] = ("rerank-qa-mistral-4b", "nv-rerank-qa-mistral-4b:1")

    @classmethod
    def url(cls, base_url: str, name: str) -> str:
        parts = urlsplit(base_url)
        segments = [segment for segment in parts.path.split("/") if segment]
        if segments and segments[-1] in ("ranking", "reranking"):
            return join_url(base_url, segments[-1])
        if parts.hostname != urlsplit(cls.default_base_url).hostname and "retrieval" not in segments:
            return join_url(base_url, cls.path)
        model = name.removeprefix("nvidia/")
        own = [] if model in cls.without_path_of_their_own else [model.replace(".", "_")]
        return join_url(base_url, "/".join([cls.hosted_path, *own, "reranking"]))

    def body(self, query: str, texts: Sequence[str]) -> dict[str, Any]:
        return {"model": self.name, "query": {"text": query}, "passages": [{"text": text} for text in texts], "truncate": "END"}

    def entries(self, reply: Any) -> Any:
        return reply.get("rankings") if isinstance(reply, Mapping) else None


class SILICONFLOWRerank(VendorReranker):
    """https://docs.siliconflow.cn/en/api-reference/rerank/create-rerank"""

    provider = "SILICONFLOW"
    default_base_url = "https://api.siliconflow.cn/v1"
    overlap_tokens: ClassVar[int] = 80
    max_chunks: ClassVar[int] = 1024

    def body(self, query: str, texts: Sequence[str]) -> dict[str, Any]:
        body = super().body(query, texts) | {"return_documents": False}
        if _family(self.name) in ("bge", "bce"):
            body |= {"max_chunks_per_doc": self.max_chunks, "overlap_tokens": self.overlap_tokens}
        return body


class GPUStackRerank(VendorReranker):
    """https://docs.gpustack.ai"""

    provider = "GPUStack"


class NovitaRerank(VendorReranker):
    """https://novita.ai/docs/api-reference/model-apis-llm-create-rerank"""

    provider = "NovitaAI"
    default_base_url = "https://api.novita.ai"
    path = "openai/v1/rerank"
    bge_tokens: ClassVar[int] = 1024

    def most_tokens(self) -> int:
        return self.bge_tokens if _family(self.name) == "bge" else self.max_tokens


class GiteeRerank(VendorReranker):
    """https://ai.gitee.com/docs/openapi/v1"""

    provider = "GiteeAI"
    default_base_url = "https://ai.gitee.com/v1"


class JiekouAIRerank(VendorReranker):
    """https://docs.jiekou.ai"""

    provider = "Jiekou.AI"
    default_base_url = "https://api.jiekou.ai"
    path = "openai/v1/rerank"


VENDORS: tuple[type[VendorReranker], ...] = (
    OpenAI_APIRerank, JinaRerank, XInferenceRerank, LocalAIRerank, NvidiaRerank, SILICONFLOWRerank, GPUStackRerank, NovitaRerank,
    GiteeRerank, JiekouAIRerank,
)  # fmt: skip

_BY_PROVIDER = {vendor.provider.lower(): vendor for vendor in VENDORS}


def vendor_class(provider: str) -> type[VendorReranker]:
    """The vendor of that provider name, in any case; the OpenAI-compatible one for a name that is none of them."""
    return _BY_PROVIDER.get(provider.lower(), OpenAI_APIRerank)


def _family(name: str) -> str:
    """The first word of the model's own name: "bge" of `Pro/BAAI/bge-reranker-v2-m3`."""
    return name.rpartition("/")[2].partition("-")[0].lower()


def _check(query: str, texts: Sequence[str]) -> None:
    if not isinstance(query, str) or not query.strip():
        raise InvalidArgument("a query to rerank by must be a text that is not empty")
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InvalidArgument("what is reranked must be a sequence of texts")


async def _together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; when one fails, the others are cancelled and its error is raised."""
    if len(calls) == 1:
        return [await calls[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
