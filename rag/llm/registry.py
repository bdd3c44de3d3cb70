"""The models of this server by the names callers use: `<model>@<provider>`, an id of 32 hex digits, or an alias."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rag.breaker import State
from rag.errors import NotFound, SettingsError
from rag.llm.breaker import VendorBreaker
from rag.llm.chat_model import OpenAIChatModel
from rag.llm.embedding_model import OpenAIEmbedder
from rag.llm.endpoint import Endpoint, authorization, openai_url, split_identifier
from rag.llm.local import LocalEmbedder
from rag.llm.model_directory import bundled_is_installed, bundled_model_path, read_model_directory
from rag.llm.observed import Calls
from rag.llm.remembered import RememberingEmbedder
from rag.llm.rerank_chain import FailoverReranker
from rag.llm.rerank_local import LocalReranker, read_cross_encoder
from rag.llm.rerank_model import vendor_class
from rag.llm.resilience import Guard, Turns
from rag.llm.transport import Transport
from rag.ports import Cache, ChatModel, Embedder, Reranker, VendorObserver
from rag.settings import ModelSettings
from rag.threads import Lane

Kind = Literal["chat", "embedding", "rerank"]
OpenEmbedder = LocalEmbedder | OpenAIEmbedder | RememberingEmbedder
KINDS: tuple[Kind, ...] = ("chat", "embedding", "rerank")

BUNDLED_EMBEDDING = "all-MiniLM-L6-v2@Local"
EXTRACTIVE_CHAT = "extractive@Millrace"

# Rerankers asked for one request: the wanted one and those that stand in for it.
_RERANKERS_ASKED = 3
_EMBEDDING_BATCH = 32
# Calls at once where a model names no number. A streamed answer takes long, and is waiting for most of it.
_CONCURRENCY: Mapping[Kind, int] = {"chat": 1024, "embedding": 128, "rerank": 128}
_ID_NAMESPACE = uuid.UUID("6f3b1c2e-6c0e-5c62-9f0f-0d5a4d1f7c11")


class UnknownProvider(NotFound):
    """No model of that provider is configured. `model` and `provider` are the parts of the identifier."""

    def __init__(self, model: str, provider: str) -> None:
        super().__init__("no model of that provider is configured")
        self.model = model
        self.provider = provider


class UnknownModel(NotFound):
    """The provider is known, or the identifier names none, but it has no such model of that kind."""

    def __init__(self, model: str, kind: Kind) -> None:
        super().__init__(f"no such {kind} model is configured")
        self.model = model
        self.kind = kind


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model that callers may name: at `base_url`, or in the directory `path`; the built-in answerer has neither.

    An embedding model with both is asked at `base_url`, and its tokens are counted by `path/tokenizer.json`.
    The fields mean what they mean in `rag.settings.ModelSettings`; `api_key` is the key itself.
    """

    name: str
    provider: str
    kind: Kind
    base_url: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    path: Path | None = None
    context_tokens: int = 8192
    dimension: int | None = None
    max_batch: int | None = None
    concurrency: int | None = None
    timeout_seconds: float = 60.0
    stream_seconds: float = 600.0
    languages: tuple[str, ...] = ()
    pooling: str | None = None
    query_prompt: str | None = None
    document_prompt: str | None = None
    default: bool = False

    @classmethod
    def from_settings(cls, model: ModelSettings, api_key: str | None, stream_seconds: float) -> "ModelSpec":
        """The spec of a `[[models]]` table; `api_key` is the value of the variable it names."""
        values = model.model_dump(exclude={"api_key_env", "languages"})
        return cls(**values, languages=tuple(model.languages or ()), api_key=api_key, stream_seconds=stream_seconds)

    @property
    def identifier(self) -> str:
        """`<name>@<provider>`."""
        return f"{self.name}@{self.provider}"

    @property
    def id(self) -> str:
        """32 hex digits, the same for the same identifier everywhere and always."""
        return uuid.uuid5(_ID_NAMESPACE, self.identifier).hex

    @property
    def facts(self) -> tuple[Any, ...]:
        """What the model's vectors, its trust or its scores depend on, as JSON takes it: under other facts they may be others."""
        prompts = (self.query_prompt, self.document_prompt)
        path = None if self.path is None else str(self.path)
        return (self.identifier, self.base_url, path, self.context_tokens, self.dimension, self.languages, self.pooling, *prompts)


class Registry:
    """Finds models by name and opens each once. Building it reads model directories; nothing else is touched until a call."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        aliases: Mapping[str, str],
        transport: Transport,
        *,
        query_lane: Lane,
        document_lane: Lane,
        rerank_lane: Lane,
        cache_dir: Path,
        cache: Cache | None = None,
        on_cache: Callable[[str, bool], None] | None = None,
        rerank_seconds: float = 10.0,
        observer: VendorObserver | None = None,
    ) -> None:
        """`cache_dir` takes graphs built from weights; reranking takes at most `rerank_seconds` of a request. `observer` is told of
        every call to an endpoint. With a `cache` no question is embedded twice; `on_cache` is told as `RememberingEmbedder` does.

        Raises `SettingsError` for specs or aliases that contradict each other.
        """
        self._transport = transport
        self._lanes = (query_lane, document_lane)
        self._rerank_lane = rerank_lane
        self._cache_dir = cache_dir
        self._cache = cache
        self._on_cache = on_cache
        self._rerank_seconds = rerank_seconds
        self._observer = observer
        self._turns: dict[tuple[str, Kind], Turns] = {}
        self._breakers: dict[tuple[str, str], VendorBreaker] = {}
        self._breaker_of: dict[tuple[Kind, str], VendorBreaker] = {}
        self._specs = _with_built_in(specs)
        _check_specs(self._specs)
        self._by_name = {(spec.kind, name): spec for spec in self._specs for name in (spec.identifier, spec.id)}
        self._aliases = dict(aliases)
        for alias, target in self._aliases.items():
            if not any(self._find(kind, target) for kind in KINDS):
                raise SettingsError(f"alias {alias}: no model {target} is configured")
        self._embedders = {spec.identifier: self._open_embedder(spec) for spec in self.list("embedding")}
        self._chats = {spec.identifier: self._open_chat(spec) for spec in self.list("chat")}
        self._rerankers = {spec.identifier: self._open_reranker(spec) for spec in self.list("rerank")}

    @property
    def default_embedding(self) -> str:
        """The identifier of the embedding model used where a caller names none."""
        return self._default("embedding")

    @property
    def default_chat(self) -> str:
        """The same for chat; the built-in extractive answerer when no chat model is configured."""
        return self._default("chat")

    def list(self, kind: Kind) -> list[ModelSpec]:
        """The models of a kind, the configured ones first."""
        return [spec for spec in self._specs if spec.kind == kind]

    def resolve(self, name: str, kind: Kind) -> ModelSpec:
        """The model that `name` means. Raises `UnknownProvider`, `UnknownModel`."""
        target = self._aliases.get(name, name)
        spec = self._find(kind, target)
        if spec is not None:
            return spec
        model, provider = split_identifier(target)
        if provider and all(spec.provider != provider for spec in self._specs):
            raise UnknownProvider(model, provider)
        raise UnknownModel(model, kind)

    def embedder(self, name: str | None = None) -> Embedder:
        """The embedder that `name` means, the default one without a name. Raises as `resolve`."""
        return self._embedders[self.resolve(name or self.default_embedding, "embedding").identifier]

    def chat(self, name: str | None = None) -> ChatModel | None:
        """The chat model that `name` means; None for the built-in extractive answerer. Raises as `resolve`."""
        return self._chats[self.resolve(name or self.default_chat, "chat").identifier]

    def reranker(self, name: str) -> FailoverReranker:
        """The rerank model that `name` means, with the next configured ones behind it in case it fails. Raises as `resolve`."""
        wanted = self.resolve(name, "rerank").identifier
        order = [wanted, *(identifier for identifier in self._rerankers if identifier != wanted)][:_RERANKERS_ASKED]
        asked = {identifier: self._rerankers[identifier] for identifier in order}
        return FailoverReranker(asked, self._rerank_lane, self._rerank_seconds)

    @property
    def breakers(self) -> Sequence[VendorBreaker]:
        """One for each provider and address that models of this server are asked at."""
        return tuple(self._breakers.values())

    def breaker_states(self) -> Sequence[tuple[str, Kind, State]]:
        """Provider, kind and the breaker's state of each model that is asked at an endpoint."""
        return [(split_identifier(model)[1], kind, breaker.state) for (kind, model), breaker in self._breaker_of.items()]

    def breaker_of(self, name: str, kind: Kind) -> VendorBreaker | None:
        """The breaker before the model that `name` means; None for a model that runs in this server. Raises as `resolve`."""
        return self._breaker_of.get((kind, self.resolve(name, kind).identifier))

    async def warm(self) -> None:
        """Load the default embedding model, so that the first call is fast. Raises `SettingsError`, `ProviderError`."""
        await self._embedders[self.default_embedding].warm()

    def _default(self, kind: Kind) -> str:
        candidates = self.list(kind)
        chosen = [spec for spec in candidates if spec.default]
        built_in = [spec for spec in candidates if spec.identifier == BUNDLED_EMBEDDING]
        return (chosen + built_in + candidates)[0].identifier

    def _find(self, kind: Kind, target: str) -> ModelSpec | None:
        """The model of an identifier or id. An instance named in the identifier does not matter: a provider here has one."""
        return self._by_name.get((kind, target)) or self._by_name.get((kind, "@".join(split_identifier(target))))

    def _open_embedder(self, spec: ModelSpec) -> OpenEmbedder:
        if spec.base_url:
            endpoint = _endpoint(spec, openai_url, "embeddings")
            remote = OpenAIEmbedder(
                spec.name,
                endpoint,
                self._transport,
                self._guard(spec, endpoint, repeats_failures=True),
                tokenizer_path=(spec.path or bundled_model_path()) / "tokenizer.json",
                dimension=spec.dimension,
                context_tokens=spec.context_tokens,
                max_batch=spec.max_batch or _EMBEDDING_BATCH,
                languages=spec.languages,
                query_prompt=spec.query_prompt or "",
                document_prompt=spec.document_prompt or "",
            )
            return self._remembering(remote, spec.query_prompt or "")
        if spec.path is None:
            raise SettingsError(f"model {spec.identifier}: an embedding model needs a base_url or a path")
        directory = read_model_directory(
            spec.path, pooling=spec.pooling, query_prompt=spec.query_prompt, document_prompt=spec.document_prompt
        )
        if spec.dimension not in (None, directory.dimension):
            raise SettingsError(f"model {spec.identifier}: dimension {spec.dimension} is configured, the model has {directory.dimension}")
        query_lane, document_lane = self._lanes
        embedder = LocalEmbedder(
            spec.name,
            directory,
            self._cache_dir,
            query_lane,
            document_lane,
            languages=spec.languages,
        )
        return self._remembering(embedder, directory.query_prompt)

    def _remembering(self, embedder: LocalEmbedder | OpenAIEmbedder, query_prompt: str) -> OpenEmbedder:
        return embedder if self._cache is None else RememberingEmbedder(embedder, self._cache, query_prompt, self._on_cache)

    def _open_chat(self, spec: ModelSpec) -> OpenAIChatModel | None:
        if spec.identifier == EXTRACTIVE_CHAT:
            return None
        if not spec.base_url:
            raise SettingsError(f"model {spec.identifier}: a chat model needs a base_url")
        endpoint = _endpoint(spec, openai_url, "chat/completions")
        return OpenAIChatModel(spec.name, endpoint, self._transport, self._guard(spec, endpoint), spec.context_tokens)

    def _open_reranker(self, spec: ModelSpec) -> Reranker:
        if spec.path is not None and not spec.base_url:
            return LocalReranker(spec.identifier, read_cross_encoder(spec.path), spec.context_tokens)
        vendor = vendor_class(spec.provider)
        if not (spec.base_url or vendor.default_base_url):
            raise SettingsError(f"model {spec.identifier}: a rerank model needs a base_url or a path")
        endpoint = _endpoint(replace(spec, base_url=spec.base_url or vendor.default_base_url), vendor.url, spec.name)
        guard = self._guard(spec, endpoint, repeats_failures=True)
        return vendor(spec.name, endpoint, self._transport, guard, spec.context_tokens, spec.max_batch)

    def _guard(self, spec: ModelSpec, endpoint: Endpoint, *, repeats_failures: bool = False) -> Guard:
        """The model's guard. Models of one provider and kind share their turns, those at one address a breaker."""
        breaker = self._breakers.setdefault((spec.provider, endpoint.url), VendorBreaker(f"provider {spec.provider}"))
        self._breaker_of[spec.kind, spec.identifier] = breaker
        siblings = [other for other in self._specs if (other.provider, other.kind) == (spec.provider, spec.kind)]
        concurrency = min(other.concurrency or _CONCURRENCY[spec.kind] for other in siblings)
        turns = self._turns.setdefault((spec.provider, spec.kind), Turns(concurrency))
        calls = Calls(spec.identifier, spec.kind, self._observer)
        # A reranker's attempts share its time: somebody waits, and another one may be asked.
        seconds = spec.timeout_seconds * (2 if spec.kind == "embedding" else 1)
        return Guard(spec.identifier, turns, seconds, breaker=breaker, repeats_failures=repeats_failures, calls=calls)


def _with_built_in(specs: Sequence[ModelSpec]) -> list[ModelSpec]:
    """The specs and behind them what needs no configuration: the bundled embedding model and the extractive answerer."""
    built_in = [ModelSpec(name="extractive", provider="Millrace", kind="chat")]
    if bundled_is_installed() or not any(spec.kind == "embedding" for spec in specs):
        name, provider = split_identifier(BUNDLED_EMBEDDING)
        built_in.append(ModelSpec(name=name, provider=provider, kind="embedding", path=bundled_model_path(), languages=("en",)))
    taken = {(spec.kind, spec.identifier) for spec in specs}
    return [*specs, *(spec for spec in built_in if (spec.kind, spec.identifier) not in taken)]


def _check_specs(specs: Sequence[ModelSpec]) -> None:
    seen: set[tuple[str, str]] = set()
    for spec in specs:
        if (spec.kind, spec.identifier) in seen:
            raise SettingsError(f"model {spec.identifier} is configured twice")
        seen.add((spec.kind, spec.identifier))
    for kind in KINDS:
        defaults = [spec.identifier for spec in specs if spec.kind == kind and spec.default]
        if len(defaults) > 1:
            raise SettingsError(f"models {' and '.join(defaults)} are both the default for {kind}")


def _endpoint(spec: ModelSpec, url: Callable[[str, str], str], target: str) -> Endpoint:
    """Where `target`, a path or a model's name, is found at the spec's base by `url`."""
    try:
        address = url(spec.base_url or "", target)
        credentials = authorization(spec.base_url or "", spec.api_key)
    except SettingsError as error:
        raise SettingsError(f"model {spec.identifier}: {error}") from None
    except ValueError:
        raise SettingsError(f"model {spec.identifier}: its base_url is no valid address") from None
    return Endpoint(
        model=spec.identifier,
        url=address,
        authorization=credentials,
        timeout_seconds=spec.timeout_seconds,
        stream_seconds=spec.stream_seconds,
    )
