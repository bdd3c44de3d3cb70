"""OpenAI's chat wire format: its messages in, its chunks and completions out.

https://platform.openai.com/docs/api-reference/chat
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from api.chat_frames import degraded_of
from api.errors import ApiError
from api.reference import Metadata, reference_chunk
from rag.flow.chat import Answer, AnswerDelta, ChatEvent
from rag.types import ChatMessage

ReferenceMetadata = Callable[[Answer], Awaitable[Metadata | None]]


@dataclass(frozen=True, slots=True)
class Completion:
    """What every part of an answer carries. `reference` is whether the answer says what it cites."""

    id: str
    model: str
    reference: bool
    metadata: ReferenceMetadata


def read_extras(body: Mapping[str, Any]) -> dict[str, Any]:
    """`reference`, `reference_metadata` and `metadata_condition`, from `extra_body` or the top level. Raises `ApiError` (102)."""
    extra = body.get("extra_body")
    if extra is not None and not isinstance(extra, dict):
        raise ApiError(102, "extra_body must be an object.")
    values = {**body, **(extra or {})}
    metadata = values.get("reference_metadata") or {}
    if not isinstance(metadata, dict):
        raise ApiError(102, "reference_metadata must be an object.")
    if metadata.get("fields") is not None and not isinstance(metadata["fields"], list):
        raise ApiError(102, "reference_metadata.fields must be an array.")
    return {
        "reference": bool(values.get("reference")),
        "reference_metadata": metadata,
        "metadata_condition": values.get("metadata_condition") or {},
    }


def read_messages(value: Any) -> list[tuple[str, str]]:
    """Role and text of each message; the last one from the user. Raises `ApiError` (102) with the contract's texts."""
    if value is None or value == []:
        raise ApiError(102, "You have to provide messages.")
    if not isinstance(value, list):
        raise ApiError(102, "messages must be an array.")
    if not all(isinstance(item, dict) for item in value):
        raise ApiError(102, "Each message must be an object.")
    messages = [(str(item.get("role", "")), _text(item.get("content"))) for item in value]
    if messages[-1][0] != "user":
        raise ApiError(102, "The last content of this conversation is not from user.")
    return messages


def conversation(messages: Sequence[tuple[str, str]]) -> list[ChatMessage]:
    """The user's and the assistant's messages, from the user's first on."""
    first = next(place for place, (role, _) in enumerate(messages) if role == "user")
    return [ChatMessage(role, text) for role, text in messages[first:] if role in ("user", "assistant")]  # type: ignore[arg-type]


def instruction(messages: Sequence[tuple[str, str]]) -> str:
    """The system messages as one."""
    return "\n\n".join(text for role, text in messages if role in ("system", "developer"))


async def chunks(events: AsyncIterator[ChatEvent], completion: Completion) -> AsyncIterator[dict[str, Any]]:
    """A chunk for each piece, then one that ends the answer."""
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Answer):
                yield await _last_chunk(event, completion)
            elif isinstance(event, AnswerDelta):
                yield _chunk(completion, {"content": event.text})
            else:
                yield _chunk(completion, {"reasoning_content": event.text})


async def whole(answer: Answer, completion: Completion) -> dict[str, Any]:
    """The completion in one piece."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if completion.reference:
        message["reference"] = await _reference(answer, completion)
    usage = _usage(answer) | {
        "completion_tokens_details": {
            "reasoning_tokens": answer.usage.reasoning_tokens or 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        }
    }
    return {
        "id": completion.id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": completion.model,
        "usage": usage,
        "choices": [{"index": 0, "logprobs": None, "finish_reason": answer.finish_reason, "message": message}],
        **degraded_of(answer),
    }


async def _last_chunk(answer: Answer, completion: Completion) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if completion.reference:
        delta = {"reference": await _reference(answer, completion), "final_content": answer.text}
    return _chunk(completion, delta, answer.finish_reason, _usage(answer)) | degraded_of(answer)


async def _reference(answer: Answer, completion: Completion) -> list[dict[str, Any]]:
    metadata = await completion.metadata(answer)
    return [reference_chunk(ranked, metadata) for ranked in answer.chunks]


def _chunk(
    completion: Completion, delta: Mapping[str, Any], finish_reason: str | None = None, usage: Mapping[str, int] | None = None
) -> dict[str, Any]:
    empty = {"content": None, "role": "assistant", "function_call": None, "tool_calls": None, "reasoning_content": None}
    return {
        "id": completion.id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": completion.model,
        "system_fingerprint": "",
        "usage": usage,
        "choices": [{"index": 0, "logprobs": None, "finish_reason": finish_reason, "delta": empty | dict(delta)}],
    }


def _usage(answer: Answer) -> dict[str, int]:
    prompt, written = max(1, answer.usage.prompt_tokens or 0), max(1, answer.usage.completion_tokens or 0)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(102, "messages[].content must be a string or an array of content parts.")
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str))
