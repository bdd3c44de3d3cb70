"""Rerank models by name: which class, which address, which order, and what a settings file can get wrong."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from load.rerank_simulator import MODELS, WIRES, RerankVendors
from load.vendor_simulator import Behaviour, VendorSimulator
from rag.errors import SettingsError
from rag.llm.registry import ModelSpec, Registry, UnknownModel, UnknownProvider
from rag.llm.rerank_chain import RerankFailed
from rag.llm.transport import Transport
from rag.threads import Lane

TEXTS = ["nothing of that", "the sea is warm"]
Build = Callable[..., Registry]


@pytest.fixture
def build(transport: Transport, query_lane: Lane, document_lane: Lane, graph_cache: Path) -> Build:
    def make(*specs: ModelSpec, aliases: dict[str, str] | None = None) -> Registry:
        return Registry(
            specs, aliases or {}, transport, query_lane=query_lane, document_lane=document_lane, rerank_lane=query_lane,
            cache_dir=graph_cache, rerank_seconds=5.0,
        )  # fmt: skip

    return make


@pytest.fixture
def vendors(vendor: VendorSimulator) -> VendorSimulator:
    vendor.choose = RerankVendors()
    return vendor


def spec(provider: str, vendors: VendorSimulator, **more: object) -> ModelSpec:
    name, base_url = MODELS.get(provider, "bge"), vendors.base_url + WIRES[provider].base
    return ModelSpec(name=name, provider=provider, kind="rerank", base_url=base_url, api_key="sk", **more)


@pytest.mark.parametrize("provider", WIRES)
async def test_the_provider_chooses_the_wire(build: Build, vendors: VendorSimulator, provider: str) -> None:
    wanted = spec(provider, vendors)
    models = build(wanted, aliases={"best": wanted.identifier})
    for name in (wanted.identifier, wanted.id, "best"):
        scores, _ = await models.reranker(name).async_similarity("warm sea", TEXTS)
        assert scores[1] > scores[0]


async def test_unknown_models_and_providers_are_told_apart(build: Build, vendors: VendorSimulator) -> None:
    models = build(spec("Jina", vendors))
    with pytest.raises(UnknownModel):
        models.reranker("other@Jina")
    with pytest.raises(UnknownProvider):
        models.reranker("bge@Nobody")


async def test_the_wanted_one_is_asked_first_and_then_the_others_in_the_files_order(build: Build, vendors: VendorSimulator) -> None:
    names = ("Jina", "LocalAI", "GPUStack", "Xinference")
    models = build(*(spec(name, vendors, concurrency=1) for name in names))
    vendors.choose = lambda request: Behaviour(status=401)
    with pytest.raises(RerankFailed) as caught:
        await models.reranker("bge@GPUStack").async_similarity("warm sea", TEXTS)
    assert [request.path.split("/")[1] for request in vendors.requests] == ["gpustack", "jina", "localai"]
    assert [name for name in names if f"@{name} " in str(caught.value)] == ["Jina", "LocalAI", "GPUStack"]


async def test_a_failing_model_costs_neither_answer_nor_its_breaker_the_others(build: Build, vendors: VendorSimulator) -> None:
    models = build(spec("Jina", vendors), spec("LocalAI", vendors))
    answer = RerankVendors()
    vendors.choose = lambda request: Behaviour(status=500) if request.path.startswith("/jina") else answer(request)
    for _ in range(6):
        scores, tokens = await models.reranker("bge@Jina").async_similarity("warm sea", TEXTS)
        assert scores[1] > scores[0]
        assert tokens == 20
    assert {breaker.name: breaker.state for breaker in models.breakers} == {"provider Jina": "open", "provider LocalAI": "closed"}


async def test_a_hosted_vendor_needs_no_base_url_and_a_server_of_ones_own_does(build: Build) -> None:
    build(ModelSpec(name="m", provider="jina", kind="rerank", api_key="sk"))
    with pytest.raises(SettingsError, match=r"m@Xinference: a rerank model needs a base_url or a path"):
        build(ModelSpec(name="m", provider="Xinference", kind="rerank"))
    with pytest.raises(SettingsError, match="https"):
        build(ModelSpec(name="m", provider="Xinference", kind="rerank", base_url="h:9997"))


async def test_a_directory_that_is_no_model_stops_the_start(build: Build, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"tokenizer\.json"):
        build(ModelSpec(name="m", provider="Local", kind="rerank", path=tmp_path))


async def test_a_reranker_that_fails_once_is_asked_again_before_the_next_one(build: Build, vendors: VendorSimulator) -> None:
    models = build(spec("Jina", vendors), spec("LocalAI", vendors))
    vendors.script = [Behaviour(status=500)]
    await models.reranker("bge@Jina").async_similarity("warm sea", TEXTS)
    assert [request.path.split("/")[1] for request in vendors.requests] == ["jina", "jina"]


async def test_a_models_own_batch_goes_before_its_vendors(build: Build, vendors: VendorSimulator) -> None:
    models = build(spec("Jina", vendors, max_batch=3), spec("LocalAI", vendors))
    texts = [f"text {number}" for number in range(8)]
    for name, sizes in (("bge@Jina", [2, 3, 3]), ("bge@LocalAI", [8])):
        vendors.requests.clear()
        await models.reranker(name).async_similarity("warm sea", texts)
        assert sorted(len(request.body["documents"]) for request in vendors.requests) == sizes


async def test_the_models_of_a_provider_share_its_limit_of_calls(build: Build, vendors: VendorSimulator) -> None:
    vendors.choose = RerankVendors(latency_seconds=0.01)
    other = replace(spec("Jina", vendors), name="other", concurrency=9)
    models = build(spec("Jina", vendors, concurrency=3), other)
    rerankers = [models.reranker(name) for name in ("bge@Jina", "other@Jina")] * 10
    await asyncio.gather(*(reranker.async_similarity("warm sea", TEXTS) for reranker in rerankers))
    assert vendors.most_open_requests == 3
