"""Chat models behind an OpenAI-compatible endpoint. Wire format: https://platform.openai.com/docs/api-reference/chat."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from rag.errors import ProviderBadReply
from rag.llm.endpoint import Endpoint
from rag.llm.resilience import Guard
from rag.llm.think import ThinkSplitter
from rag.llm.transport import Transport
from rag.types import ChatDelta, ChatMessage, ChatOptions, ChatReply, Usage


class OpenAIChatModel:
    """A `ChatModel`. `name` is the model's name as its endpoint knows it."""

    def __init__(self, name: str, endpoint: Endpoint, transport: Transport, guard: Guard, context_tokens: int) -> None:
        self.name = name
        self.context_tokens = context_tokens
        self._endpoint = endpoint
        self._transport = transport
        self._guard = guard

    async def stream(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncIterator[ChatDelta]:
        """The answer as it comes: texts and reasoning, then one delta with the finish reason and the usage.

        Close it (`aclosing`) to close the connection. Raises `ProviderError`; a stream that breaks off is an error, never a short
        answer.
        """
        body = self._body(messages, options) | {"stream": True, "stream_options": {"include_usage": True}}
        splitter = ThinkSplitter()
        usage, finish_reason = None, None
        async with aclosing(self._guard.stream(lambda: self._choices(body))) as choices:
            async for choice, counted in choices:
                usage = counted or usage
                for delta in _deltas(choice, splitter):
                    yield delta
                finish_reason = _finish_reason(choice) or finish_reason
        for delta in splitter.flush():
            yield delta
        yield ChatDelta(usage=usage, finish_reason=finish_reason or "stop")

    async def _choices(self, body: Mapping[str, Any]) -> AsyncIterator[tuple[Mapping[str, Any], Usage | None]]:
        """What the events of one attempt say. Raises `ProviderBadReply` here, where the guard learns of it."""
        finished = False
        async with aclosing(self._transport.stream_events(self._endpoint, body)) as events:
            async for event in events:
                if event is None:
                    return
                choice = self._choice(event)
                finished = finished or _finish_reason(choice) is not None
                yield choice, _usage(event)
        if not finished:
            raise ProviderBadReply(f"model {self._endpoint.model} broke off in the middle of its answer")

    async def complete(self, messages: Sequence[ChatMessage], options: ChatOptions) -> ChatReply:
        """The whole answer. Raises `ProviderError`."""
        body = self._body(messages, options)

        async def attempt() -> tuple[Any, Mapping[str, Any]]:
            reply = await self._transport.post_json(self._endpoint, body)
            choice = self._choice(reply)
            if not isinstance(choice.get("message"), dict):
                raise ProviderBadReply(f"model {self._endpoint.model} answered without a message")
            return reply, choice

        reply, choice = await self._guard.call(attempt)
        splitter = ThinkSplitter()
        deltas = [*_deltas(choice, splitter), *splitter.flush()]
        return ChatReply(
            text="".join(delta.text for delta in deltas),
            reasoning="".join(delta.reasoning for delta in deltas),
            usage=_usage(reply) or Usage(),
            finish_reason=_finish_reason(choice) or "stop",
        )

    def _body(self, messages: Sequence[ChatMessage], options: ChatOptions) -> dict[str, Any]:
        given = {name: value for name, value in asdict(options).items() if value is not None}
        return {"model": self.name, "messages": [{"role": m.role, "content": m.content} for m in messages], **given}

    def _choice(self, reply: Any) -> Mapping[str, Any]:
        """The first choice; {} for an event that has none (usage, content filter). Raises `ProviderBadReply`."""
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if choices == []:
            return {}
        if not isinstance(choices, list) or not isinstance(choices[0], dict) or not isinstance(_part(choices[0]), dict):
            raise ProviderBadReply(f"model {self._endpoint.model} answered something that is not a chat completion")
        return choices[0]


def _deltas(choice: Mapping[str, Any], splitter: ThinkSplitter) -> list[ChatDelta]:
    """The pieces in one event's choice."""
    part = _part(choice)
    reasoning = part.get("reasoning_content") or part.get("reasoning")
    content = part.get("content")
    pieces = [ChatDelta(reasoning=reasoning)] if isinstance(reasoning, str) else []
    return pieces + (splitter.feed(content) if isinstance(content, str) else [])


def _part(choice: Mapping[str, Any]) -> Any:
    """`delta` where it was streamed, `message` where the endpoint answered in one piece."""
    return choice.get("delta") or choice.get("message") or {}


def _finish_reason(choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) and reason else None


def _usage(reply: Any) -> Usage | None:
    counts = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(counts, dict):
        return None
    details = counts.get("completion_tokens_details")
    return Usage(
        prompt_tokens=_count(counts.get("prompt_tokens")),
        completion_tokens=_count(counts.get("completion_tokens")),
        reasoning_tokens=_count(details.get("reasoning_tokens")) if isinstance(details, dict) else None,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
