"""What must be true before a move writes anything."""

from collections.abc import Iterable

from api.migrate.side import Side
from db.services import move_service
from rag.errors import Conflict, MillraceError, SettingsError
from rag.llm.model_directory import read_model_directory
from rag.llm.registry import BUNDLED_EMBEDDING
from rag.ports import PROBES
from rag.settings import ModelSettings, Settings


def check_models(source: Side, target: Side) -> None:
    """Raises `SettingsError` where the target embeds questions into another space than the datasets' chunks are in."""
    theirs, ours = _models(target.settings), _models(source.settings)
    for name in source.read(move_service.embedding_models):
        if name == BUNDLED_EMBEDDING and name not in ours and name not in theirs:
            continue
        if name not in theirs:
            raise SettingsError(f"the target's settings lack the embedding model {name}, with which datasets are embedded")
        if name in ours and _space(ours[name]) != _space(theirs[name]):
            raise SettingsError(f"the target's embedding model {name} makes other vectors than those that would be moved")


def check_empty(source: Side, target: Side, parts: tuple[str, ...]) -> None:
    """Raises `Conflict` where one of the target's parts holds something."""
    if "database" in parts and not target.read(move_service.is_empty):
        raise _not_empty("database", "rows")
    if "chunks" in parts:
        for tenant_id in source.tenants():
            if next(iter(target.store.scan(tenant_id, size=1)), None):
                raise _not_empty("chunk store", "chunks")
    if "files" in parts and any(not key.startswith(PROBES) for key in target.blobs.list()):
        raise _not_empty("file store", "files")


def wipe(side: Side, parts: tuple[str, ...], tenants: Iterable[str]) -> None:
    """Remove what the tenants have from the parts; the tables last, which name what the others hold. May be begun again."""
    owners = set(tenants)
    if "chunks" in parts:
        for tenant_id in sorted(owners):
            side.store.drop_tenant(tenant_id)
    if "files" in parts:
        for key in side.blobs.list():
            if key.partition("/")[0] in owners:
                side.blobs.delete(key)
    if "database" in parts:
        side.tables.clear()


def _not_empty(part: str, things: str) -> MillraceError:
    return Conflict(f"the target's {part} is not empty: it holds {things}; nothing was moved")  # never overwritten, whoever's they are


def _models(settings: Settings) -> dict[str, ModelSettings]:
    return {f"{model.name}@{model.provider}": model for model in settings.models if model.kind == "embedding"}


def _space(model: ModelSettings) -> tuple[object, ...]:
    """What two models share whose vectors may be mixed."""
    if model.base_url is not None or model.path is None:
        return (model.dimension, model.document_prompt or "")
    directory = read_model_directory(
        model.path, pooling=model.pooling, query_prompt=model.query_prompt, document_prompt=model.document_prompt
    )  # fmt: skip
    return (directory.digest,)
