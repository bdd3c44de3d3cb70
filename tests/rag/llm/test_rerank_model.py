"""Each vendor's wire format as its documentation shows it: the request we send and the answer we read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from load.vendor_simulator import Behaviour, VendorSimulator
from rag.errors import ProviderBadReply
from rag.llm.endpoint import Endpoint
from rag.llm.rerank_model import OpenAI_APIRerank, VendorReranker, vendor_class
from rag.llm.resilience import Guard
from rag.llm.transport import Transport
from rag.nlp.search import async_rerank_by_model
from rag.threads import Lane

QUERY = "organic skincare"
TEXTS = ["eco-friendly kitchenware", "natural organic skincare range"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A vendor's request and answer, copied from its documentation (shortened), and what the answer means."""

    provider: str
    model: str
    request: Mapping[str, Any]
    reply: Any
    scores: tuple[float, float]
    tokens: int | None
    name: str = ""


def usual(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "query": QUERY, "documents": TEXTS, "top_n": 2, **more}


RECORDED = [
    Recorded(
        "OpenAI-API-Compatible",
        "BAAI/bge-reranker-base",
        usual("BAAI/bge-reranker-base"),
        {
            "id": "rerank-1",
            "model": "BAAI/bge-reranker-base",
            "usage": {"prompt_tokens": 56, "total_tokens": 56},
            "results": [
                {"index": 1, "document": {"text": "natural organic skincare range", "multi_modal": None}, "relevance_score": 0.9985},
                {"index": 0, "document": {"text": "eco-friendly kitchenware", "multi_modal": None}, "relevance_score": 0.0005},
            ],
        },
        (0.0005, 0.9985),
        56,
        "vLLM",
    ),
    Recorded(
        "OpenAI-API-Compatible",
        "bge-reranker-v2-m3",
        usual("bge-reranker-v2-m3"),
        {
            "model": "bge-reranker-v2-m3",
            "object": "list",
            "usage": {"prompt_tokens": 24, "total_tokens": 24},
            "results": [{"index": 0, "relevance_score": -11.03}, {"index": 1, "relevance_score": 3.98}],
        },
        (1.62e-5, 0.98166),
        24,
        "llama.cpp",
    ),
    Recorded(
        "jina",
        "jina-reranker-v2-base-multilingual",
        usual("jina-reranker-v2-base-multilingual"),
        {
            "model": "jina-reranker-v2-base-multilingual",
            "object": "list",
            "usage": {"total_tokens": 71},
            "results": [
                {"index": 1, "document": {"text": "natural organic skincare range"}, "relevance_score": 0.87},
                {"index": 0, "document": "a string as it is in older versions", "relevance_score": 0.02},
            ],
        },
        (0.02, 0.87),
        71,
    ),
    Recorded(
        "Xinference",
        "bge-reranker-base",
        {"model": "bge-reranker-base", "query": QUERY, "documents": TEXTS},
        {
            "id": "88177e80-cbeb-11ee-bfe5-0242ac110007",
            "results": [
                {"index": 1, "relevance_score": 0.9999247789382935, "document": None},
                {"index": 0, "relevance_score": 0.2564252018928528, "document": None},
            ],
            "meta": {"api_version": None, "billed_units": None, "tokens": {"input_tokens": 31, "output_tokens": 31}, "warnings": None},
        },
        (0.2564252, 0.9999248),
        31,
    ),
    Recorded(
        "LocalAI",
        "jina-reranker-v1-base-en",
        usual("jina-reranker-v1-base-en"),
        {
            "model": "jina-reranker-v1-base-en",
            "usage": {"total_tokens": 11, "prompt_tokens": 11},
            "results": [
                {"index": 1, "document": {"text": "natural organic skincare range"}, "relevance_score": 0.2},
                {"index": 0, "document": {"text": "eco-friendly kitchenware"}, "relevance_score": 0.1},
            ],
        },
        (0.1, 0.2),
        11,
    ),
    Recorded(
        "nvidia",
        "nvidia/llama-3.2-nv-rerankqa-1b-v2",
        {
            "model": "nvidia/llama-3.2-nv-rerankqa-1b-v2",
            "query": {"text": QUERY},
            "passages": [{"text": text} for text in TEXTS],
            "truncate": "END",
        },
        {"rankings": [{"index": 1, "logit": 0.85546875}, {"index": 0, "logit": -7.0703125}]},
        (8.49e-4, 0.70171),
        None,
    ),
    Recorded(
        "SILICONFLOW",
        "Pro/BAAI/bge-reranker-v2-m3",
        usual("Pro/BAAI/bge-reranker-v2-m3", return_documents=False, max_chunks_per_doc=1024, overlap_tokens=80),
        {
            "id": "019",
            "results": [{"index": 1, "relevance_score": 0.99}, {"index": 0, "relevance_score": 0.01}],
            "meta": {
                "billed_units": {"input_tokens": 18, "output_tokens": 0, "search_units": 0, "classifications": 0},
                "tokens": {"input_tokens": 18, "output_tokens": 0},
            },
        },
        (0.01, 0.99),
        18,
    ),
    Recorded(
        "SiliconFlow",
        "Qwen/Qwen3-Reranker-8B",
        usual("Qwen/Qwen3-Reranker-8B", return_documents=False),
        {
            "id": "019",
            "results": [{"index": 0, "relevance_score": 0.01}, {"index": 1, "relevance_score": 0.99}],
            "tokens": {"input_tokens": 20, "output_tokens": 0},
        },
        (0.01, 0.99),
        20,
        "SILICONFLOW-Qwen",
    ),
    Recorded(
        "GPUStack",
        "bge-reranker-v2-m3",
        usual("bge-reranker-v2-m3"),
        {
            "model": "bge-reranker-v2-m3",
            "object": "list",
            "results": [
                {"document": {"text": "natural organic skincare range"}, "index": 1, "relevance_score": 1.951},
                {"document": {"text": "eco-friendly kitchenware"}, "index": 0, "relevance_score": -3.7},
            ],
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        },
        (0.02413, 0.87558),
        0,
    ),
    Recorded(
        "NovitaAI",
        "baai/bge-reranker-v2-m3",
        usual("baai/bge-reranker-v2-m3"),
        {
            "id": "rerank-2",
            "model": "baai/bge-reranker-v2-m3",
            "usage": {"total_tokens": 44},
            "results": [
                {"index": 1, "document": {"text": "natural organic skincare range"}, "relevance_score": 0.78},
                {"index": 0, "document": {"text": "eco-friendly kitchenware"}, "relevance_score": 0.0},
            ],
        },
        (0.0, 0.78),
        44,
    ),
    Recorded(
        "GiteeAI",
        "bge-reranker-v2-m3",
        usual("bge-reranker-v2-m3"),
        {
            "results": [{"index": 1, "relevance_score": 0.6}, {"index": 0, "relevance_score": 0.4}],
            "usage": {"total_tokens": 9, "prompt_tokens": 9},
        },
        (0.4, 0.6),
        9,
    ),
    Recorded(
        "Jiekou.AI",
        "baai/bge-reranker-v2-m3",
        usual("baai/bge-reranker-v2-m3"),
        {"results": [{"index": 1, "relevance_score": 0.6}, {"index": 0, "relevance_score": 0.4}], "usage": {"total_tokens": 9}},
        (0.4, 0.6),
        9,
    ),
]


def open_reranker(vendor: VendorSimulator, transport: Transport, provider: str, model: str, key: str = "sk") -> VendorReranker:
    name = f"{model}@{provider}"
    which = vendor_class(provider)
    endpoint = Endpoint(name, which.url(vendor.base_url, model), f"Bearer {key}" if key else "")
    return which(model, endpoint, transport, Guard(name, 8, 5.0))


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name or recorded.provider)
async def test_the_wire_is_as_the_vendor_documents_it(vendor: VendorSimulator, transport: Transport, recorded: Recorded) -> None:
    vendor.behaviour = Behaviour(reply=lambda body: recorded.reply)
    scores, tokens = await open_reranker(vendor, transport, recorded.provider, recorded.model).async_similarity(QUERY, TEXTS)
    assert vendor.requests[0].raw == orjson.dumps(recorded.request)
    assert scores.tolist() == pytest.approx(recorded.scores, rel=1e-2)
    assert tokens == recorded.tokens


async def test_without_a_key_no_authorization_is_sent(vendor: VendorSimulator, transport: Transport) -> None:
    vendor.behaviour = Behaviour(reply=lambda body: RECORDED[3].reply)
    await open_reranker(vendor, transport, "Xinference", "bge-reranker-base", key="").async_similarity(QUERY, TEXTS)
    assert "authorization" not in vendor.requests[0].headers


async def test_an_endpoint_that_takes_only_the_other_form_is_asked_in_it_ever_after(vendor: VendorSimulator, transport: Transport) -> None:
    vendor.script = [Behaviour(status=422)]
    vendor.behaviour = Behaviour(reply=lambda body: [{"index": 1, "score": 0.9}, {"index": 0, "score": 0.1}])
    reranker = open_reranker(vendor, transport, "TEI at home", "BAAI/bge-reranker-large")
    assert isinstance(reranker, OpenAI_APIRerank)
    for _ in range(2):
        scores, tokens = await reranker.async_similarity(QUERY, TEXTS)
        assert scores.tolist() == pytest.approx([0.1, 0.9])
        assert tokens is None
    assert [sorted(request.body) for request in vendor.requests] == [
        ["documents", "model", "query", "top_n"],
        ["query", "texts", "truncate"],
        ["query", "texts", "truncate"],
    ]


async def test_an_answer_may_repeat_the_texts_but_hold_nothing_long_beside_them(vendor: VendorSimulator, transport: Transport) -> None:
    def reply(body: Mapping[str, Any]) -> Any:
        return {"results": [{"index": i, "relevance_score": 0.5, "document": text} for i, text in enumerate(body["documents"])]} | more

    more: dict[str, Any] = {}
    vendor.behaviour = Behaviour(reply=reply)
    reranker = open_reranker(vendor, transport, "Jina", "m")
    scores, _ = await reranker.async_similarity(QUERY, ["🌊" * 4000] * 60)
    assert scores.tolist() == [0.5] * 60
    more["log"] = "x" * (2 << 20)
    with pytest.raises(ProviderBadReply, match="bytes"):
        await reranker.async_similarity(QUERY, TEXTS)


def test_a_provider_is_known_in_any_case_and_an_unknown_one_is_openai_compatible() -> None:
    assert vendor_class("siliconflow") is vendor_class("SILICONFLOW")
    assert vendor_class("jiekou.ai").__name__ == "JiekouAIRerank"
    assert vendor_class("vLLM in the cellar") is OpenAI_APIRerank


def test_only_the_bge_models_of_novita_read_less() -> None:
    def most(model: str) -> int:
        endpoint = Endpoint("m@NovitaAI", "http://h")
        return vendor_class("NovitaAI")(model, endpoint, None, Guard("m", 1, 1.0)).most_tokens()

    assert (most("baai/bge-reranker-v2-m3"), most("qwen/qwen3-reranker-8b")) == (1024, 8192)


def documented_classes() -> dict[str, type]:
    """The classes of docs/adding-a-provider.md, made from the page itself."""
    page = (Path(__file__).parents[3] / "docs" / "adding-a-provider.md").read_text("utf-8")
    scope: dict[str, Any] = {"VendorReranker": VendorReranker, "np": np}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, scope)
    return scope


async def test_the_documented_vendor_works_as_it_stands(vendor: VendorSimulator, transport: Transport) -> None:
    acme = documented_classes()["AcmeRerank"]
    entries = [{"index": 1, "relevance_score": 2.0}, {"index": 0, "relevance_score": -2.0}]
    vendor.behaviour = Behaviour(reply=lambda body: {"results": entries})
    endpoint = Endpoint("m@Acme", acme.url(vendor.base_url, "m"), "Bearer sk")
    scores, tokens = await acme("m", endpoint, transport, Guard("m@Acme", 8, 5.0)).async_similarity(QUERY, TEXTS)
    assert vendor.requests[0].path == "/v1/rerank"
    assert (scores.tolist(), tokens) == (pytest.approx([0.119, 0.881], abs=1e-3), None)


async def test_the_documented_class_with_only_similarity_works_through_the_executor(query_lane: Lane) -> None:
    scores = await async_rerank_by_model(QUERY, TEXTS, documented_classes()["WordOverlap"](), query_lane)
    assert scores.tolist() == [0.0, 1.0]
