"""What OpenAI's clients call: a chat's own completions route, and /v1 at the server's root."""

import base64
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from quart import Response

from api.body import require, tolerant
from api.chat_frames import last_of
from api.chat_task import Ask, check_length, counter_of, model_for, options_of, task_of, variables_of
from api.condition import check_condition
from api.context import parts, tenant_id
from api.errors import ApiError
from api.openai_wire import Completion, ReferenceMetadata, chunks, conversation, instruction, read_extras, read_messages, whole
from api.parts import Parts
from api.reference import Metadata, chosen_metadata
from api.respond import JSON_TYPE, json_response
from api.retrieving import metadata_of
from api.routes import Routes
from api.schema.chat import EmbeddingBody, OpenAIBody
from api.sse import openai_stream
from api.turn import saving
from db.models import new_id
from db.services import dialog_service
from db.services.dialog_service import DialogRecord
from rag.errors import InvalidArgument, NotFound
from rag.flow.chat import Answer, ChatTask, async_chat

api = Routes("openai", kind="J")
root = Routes("openai_v1", base="/v1", kind="OpenAI")

OWN_MODEL = "model"
MAX_CHATS = 1_000
MAX_INPUTS = 2_048


@api.route(
    "POST",
    "/openai/<chat_id>/chat/completions",
    "/chats_openai/<chat_id>/chat/completions",
    stream=True,
    body=OpenAIBody,
    data=dict[str, Any],
)
async def complete_as_openai(chat_id: str) -> Response:
    """Ask a chat in OpenAI's format."""
    server, tenant = parts(), tenant_id()
    body = await _body()
    extras = read_extras(body)
    messages = read_messages(body["messages"])
    check_length(messages)
    try:
        chat = await server.session.read(dialog_service.get, tenant, chat_id.replace("-", ""))
    except NotFound:
        raise ApiError(102, f"You don't own the chat {chat_id}", 404) from None
    model = str(body["model"])
    if model != OWN_MODEL:
        _check_model(server, model)
    _check_condition(extras)
    return await _answer_chat(server, tenant, chat, f"chatcmpl-{chat.id}", "" if model == OWN_MODEL else model, body, extras, messages)


@root.route("POST", "/chat/completions", stream=True, body=OpenAIBody, data=dict[str, Any])
async def create_chat_completion() -> Response:
    """Ask a chat, by its id or name, or a configured model, in OpenAI's format."""
    server, tenant = parts(), tenant_id()
    body = await _body()
    extras = read_extras(body)
    messages = read_messages(body["messages"])
    check_length(messages)
    _check_condition(extras)
    _check_unsupported(body)
    model = str(body["model"])
    chat = await server.session.read(dialog_service.find, tenant, model)
    completion_id = f"chatcmpl-{new_id()}"
    if chat is not None:
        return await _answer_chat(server, tenant, chat, completion_id, "", body, extras, messages, shown_model=model)
    try:
        chosen = server.models.chat(model)
    except NotFound:
        raise _unknown_model(model) from None
    ask = Ask(messages=conversation(messages), model=chosen, options=options_of(body, {}, other_model=True), variables={})
    task = replace(task_of(server, tenant, None, ask), system=instruction(messages))
    return await _respond(server, task, Completion(completion_id, model, False, _no_metadata), body)


@root.route("GET", "/models", data=dict[str, Any])
async def list_models() -> Response:
    """The chats by name, and the configured models."""
    return json_response({"object": "list", "data": await _models(parts(), tenant_id())})


@root.route("GET", "/models/<path:model>", data=dict[str, Any])
async def get_model(model: str) -> Response:
    """One of the models."""
    for entry in await _models(parts(), tenant_id()):
        if entry["id"] == model:
            return json_response(entry)
    raise _unknown_model(model)


@root.route("POST", "/embeddings", body=EmbeddingBody, data=dict[str, Any])
async def create_embeddings() -> Response:
    """Embed texts with a configured model."""
    server = parts()
    body = await tolerant()
    require(body, "model", "input")
    model = str(body["model"])
    try:
        embedder = server.models.embedder(model)
    except NotFound:
        raise _unknown_model(model) from None
    texts = _inputs(body["input"])
    if body.get("dimensions") not in (None, embedder.dimension):
        raise InvalidArgument(f"the vectors of this model have {embedder.dimension} dimensions, no other number can be asked for")
    vectors = await embedder.embed_documents(texts)
    as_text = body.get("encoding_format") == "base64"
    # on a thread: a full call's 2,048 vectors are 50 ms of work
    encoded = await server.lanes.search.run(_embeddings, vectors, texts, model, as_text, counter_of(server))
    return Response(encoded, content_type=JSON_TYPE)


def _embeddings(vectors: np.ndarray, texts: Sequence[str], model: str, as_text: bool, count: Callable[[str], int]) -> bytes:
    rows = [base64.b64encode(row.tobytes()).decode() for row in vectors.astype("<f4")] if as_text else vectors.tolist()
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    used = sum(map(count, texts))
    return orjson.dumps({"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": used, "total_tokens": used}})


async def _body() -> dict[str, Any]:
    """The request with its options under one name each."""
    body = await tolerant()
    require(body, "model", "messages")
    if body.get("max_completion_tokens") is not None:
        body["max_tokens"] = body["max_completion_tokens"]
    return body


async def _answer_chat(
    server: Parts, tenant: str, chat: DialogRecord, completion_id: str, model: str, body: Mapping[str, Any], extras: Mapping[str, Any],
    messages: list[tuple[str, str]], shown_model: str = "",
) -> Response:  # fmt: skip
    ask = Ask(
        messages=conversation(messages),
        model=model_for(server, model or chat.llm_id),
        options=options_of(body, chat.llm_setting, other_model=bool(model)),
        variables=variables_of(chat, body),
        cite=extras["reference"],  # without the chunks, [ID:n] would point nowhere
        condition=extras["metadata_condition"] or None,
    )
    task = task_of(server, tenant, chat, ask)
    shown = shown_model or model or chat.llm_id or server.models.default_chat
    metadata = _metadata_reader(server, tenant, extras["reference_metadata"])
    return await _respond(server, task, Completion(completion_id, shown, extras["reference"], metadata), body)


async def _respond(server: Parts, task: ChatTask, completion: Completion, body: Mapping[str, Any]) -> Response:
    streamed = body.get("stream") is True
    events = saving(None, async_chat(task), server.metrics, streamed=streamed)
    if streamed:
        return openai_stream(chunks(events, completion), server.drain)
    return json_response(await whole(await last_of(events), completion))


def _metadata_reader(server: Parts, tenant: str, wanted: Mapping[str, Any]) -> ReferenceMetadata:
    if not wanted.get("include"):
        return _no_metadata

    async def read(answer: Answer) -> Metadata:
        return chosen_metadata(await metadata_of(server, tenant, answer.chunks), wanted.get("fields"))

    return read


async def _no_metadata(answer: Answer) -> None:
    return None


async def _models(server: Parts, tenant: str) -> list[dict[str, Any]]:
    _, chats = await server.session.read(dialog_service.listing, tenant, page_size=MAX_CHATS)
    named = [_model(chat.name, chat.create_time // 1000, "chat") for chat in chats]
    started = int(time.time())
    configured = [_model(spec.identifier, started, spec.provider) for kind in ("chat", "embedding") for spec in server.models.list(kind)]
    return named + configured


def _model(name: str, created: int, owner: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def _check_model(server: Parts, model: str) -> None:
    try:
        server.models.resolve(model, "chat")
    except NotFound:
        raise ApiError(101, f"`llm_id` {model} doesn't exist", 404) from None


def _check_condition(extras: Mapping[str, Any]) -> None:
    if not isinstance(extras["metadata_condition"], dict):
        raise ApiError(102, "metadata_condition must be an object.")
    check_condition(extras["metadata_condition"])


def _check_unsupported(body: Mapping[str, Any]) -> None:
    """Raises `InvalidArgument` for what would change the answer and cannot be done: better than to leave it out in silence."""
    if body.get("n") not in (None, 1):
        raise InvalidArgument("`n` must be 1")
    for key in ("tools", "functions"):
        if body.get(key):
            raise InvalidArgument(f"`{key}` is not supported")


def _inputs(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise InvalidArgument("`input` must be a string or a list of strings, none of them empty")
    if len(texts) > MAX_INPUTS:
        raise InvalidArgument(f"`input` must have at most {MAX_INPUTS} strings")
    return texts


def _unknown_model(model: str) -> ApiError:
    return ApiError(404, f"the model `{model}` does not exist")
