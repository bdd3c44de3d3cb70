"""Model identifiers that callers send, checked against the models there are (contract, 2.7 and 3.1)."""

from typing import Any

from api.context import parts
from api.errors import ApiError
from rag.errors import NotFound
from rag.llm.endpoint import split_identifier
from rag.llm.registry import UnknownProvider


def known_embedding(name: str) -> bool:
    """Whether the name means an embedding model of this server."""
    try:
        parts().models.resolve(name, "embedding")
    except NotFound:
        return False
    return True


EMBEDDING_CONTEXT: dict[str, Any] = {"known": known_embedding}


def check_embedding(name: str) -> None:
    """Raises `ApiError` (102/404) for a name that means no embedding model."""
    try:
        parts().models.resolve(name, "embedding")
    except UnknownProvider as error:
        raise ApiError(102, f"Provider {error.provider} not found for model {error.model}.", 404) from error
    except NotFound as error:
        raise ApiError(102, f"Model {split_identifier(name)[0]} not found for model embedding", 404) from error


def embedding_id(name: str) -> str | None:
    """The 32-hex id of the embedding model, None for one that exists no more."""
    try:
        return parts().models.resolve(name, "embedding").id
    except NotFound:
        return None
