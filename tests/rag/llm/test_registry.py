"""Finding models by the names callers use."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rag.errors import NotFound, SettingsError
from rag.llm.registry import BUNDLED_EMBEDDING, EXTRACTIVE_CHAT, ModelSpec, Registry, UnknownModel, UnknownProvider, split_identifier
from rag.llm.transport import Transport
from rag.settings import ModelSettings
from rag.threads import Lane

CHAT = ModelSpec("gpt", "Acme", "chat", base_url="http://127.0.0.1:1/v1", api_key="sk-secret", context_tokens=4096)
EMBEDDING = ModelSpec("@cf/bge", "Acme", "embedding", base_url="http://127.0.0.1:1/v1", dimension=8)

Build = Callable[..., Registry]


@pytest.fixture
def build(transport: Transport, query_lane: Lane, document_lane: Lane, graph_cache: Path) -> Build:
    def make(*specs: ModelSpec, aliases: dict[str, str] | None = None) -> Registry:
        lanes: dict[str, Any] = {"query_lane": query_lane, "document_lane": document_lane, "rerank_lane": query_lane}
        return Registry(specs, aliases or {}, transport, cache_dir=graph_cache, **lanes)

    return make


async def test_without_configuration_the_built_in_models_answer(build: Build) -> None:
    registry = build()
    assert (registry.default_embedding, registry.default_chat) == (BUNDLED_EMBEDDING, EXTRACTIVE_CHAT)
    assert registry.chat() is None
    assert [spec.identifier for spec in registry.list("chat")] == [EXTRACTIVE_CHAT]
    assert registry.list("rerank") == []
    await registry.warm()
    assert (await registry.embedder().embed_query("water")).shape == (384,)
    assert registry.embedder() is registry.embedder(BUNDLED_EMBEDDING)
    assert registry.embedder().trust("水") == 0.0


@pytest.mark.parametrize("name", ["gpt@Acme", "gpt@east@Acme", CHAT.id, "gpt-4o", "fast@OpenAI", "by-id"])
async def test_identifier_instance_id_and_alias_name_the_same_model(build: Build, name: str) -> None:
    registry = build(CHAT, aliases={"gpt-4o": "gpt@Acme", "fast@OpenAI": "gpt@east@Acme", "by-id": CHAT.id})
    assert registry.resolve(name, "chat") is registry.list("chat")[0]
    assert registry.chat(name).name == "gpt"
    assert registry.chat(name).context_tokens == 4096


async def test_a_models_name_may_hold_the_separator(build: Build) -> None:
    registry = build(EMBEDDING)
    assert registry.resolve("@cf/bge@Acme", "embedding") == EMBEDDING
    assert registry.resolve("@cf/bge@east@Acme", "embedding") == EMBEDDING


UNKNOWN = [
    ("gpt@Nobody", UnknownProvider),
    ("gpt@east@Nobody", UnknownProvider),
    ("other@Acme", UnknownModel),
    ("gpt", UnknownModel),
    ("", UnknownModel),
    ("0" * 32, UnknownModel),
    (EMBEDDING.id, UnknownModel),
    ("@cf/bge@Acme", UnknownModel),
]


@pytest.mark.parametrize(("name", "error"), UNKNOWN)
async def test_an_unknown_model_and_an_unknown_provider_are_told_apart(build: Build, name: str, error: type[NotFound]) -> None:
    with pytest.raises(error) as caught:
        build(CHAT, EMBEDDING).resolve(name, "chat")
    assert caught.type is error
    if error is UnknownProvider:
        assert (caught.value.model, caught.value.provider) == ("gpt", "Nobody")


async def test_a_configured_model_is_the_default_for_chat_and_a_marked_one_for_embedding(build: Build) -> None:
    assert build(CHAT, EMBEDDING).default_chat == "gpt@Acme"
    assert build(CHAT, EMBEDDING).default_embedding == BUNDLED_EMBEDDING
    assert build(CHAT, replace(EMBEDDING, default=True)).default_embedding == "@cf/bge@Acme"
    assert build(replace(CHAT, name="first"), replace(CHAT, default=True)).default_chat == "gpt@Acme"


CONTRADICTIONS = {
    "twice": ((CHAT, CHAT), {}, "twice"),
    "two defaults": ((replace(CHAT, default=True), replace(CHAT, name="b", default=True)), {}, "both the default"),
    "alias to nothing": ((CHAT,), {"a": "gpt@Nobody"}, "alias a"),
    "no address": ((replace(CHAT, base_url=None),), {}, "base_url"),
    "no http": ((replace(CHAT, base_url="h:1"),), {}, "http://"),
    "no valid address": ((replace(CHAT, base_url="http://u:sk-secret@h:port"),), {}, "valid address"),
    "a key that cannot be sent": ((replace(CHAT, api_key="sk-secret\n"),), {}, "API key"),
    "neither address nor path": ((replace(EMBEDDING, base_url=None),), {}, "base_url or a path"),
    "path that is not there": ((replace(EMBEDDING, base_url=None, path=Path("/nonexistent")),), {}, "tokenizer.json"),
    "language": ((replace(EMBEDDING, languages=("xx",)),), {}, "'xx'"),
}


@pytest.mark.parametrize(("specs", "aliases", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
async def test_specs_that_contradict_each_other_stop_the_start(
    build: Build, specs: tuple[ModelSpec, ...], aliases: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        build(*specs, aliases=aliases)
    assert "sk-secret" not in str(caught.value)


def test_an_id_is_the_same_everywhere() -> None:
    assert CHAT.id == "26b7aa9910e7585f83fb5ad95284162f"
    assert replace(CHAT, api_key="other").id == CHAT.id


def test_a_spec_takes_every_setting_and_shows_no_secret() -> None:
    settings = ModelSettings(
        name="gpt", provider="Acme", kind="chat", base_url="http://u:p@h", timeout_seconds=5, languages=["en"], context_tokens=99
    )
    spec = ModelSpec.from_settings(settings, "sk-secret", stream_seconds=77.0)
    assert (spec.timeout_seconds, spec.languages, spec.context_tokens, spec.stream_seconds) == (5.0, ("en",), 99, 77.0)
    assert spec.api_key == "sk-secret"
    assert "sk-secret" not in repr(spec)
    assert "u:p" not in repr(spec)


@pytest.mark.parametrize(
    ("identifier", "parts"), [("m@P", ("m", "P")), ("m@i@P", ("m", "P")), ("m", ("m", "")), ("@P", ("@P", "")), ("a/b:c@P", ("a/b:c", "P"))]
)
def test_an_identifier_has_a_model_and_a_provider(identifier: str, parts: tuple[str, str]) -> None:
    assert split_identifier(identifier) == parts
