"""A chat model at the port that says what a test tells it to, and keeps what it was asked."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from rag.types import ChatDelta, ChatMessage, ChatOptions, ChatReply, Usage


class ScriptedModel:
    """Streams `pieces` (a str is text, an exception is raised, a `ChatDelta` is itself); `replies` answer `complete` in turn.

    With `hold` it waits for that event before the first piece. `closed` is set when a stream is left, however.
    """

    name = "scripted"

    def __init__(
        self, *pieces: str | ChatDelta | Exception, replies: Sequence[str | Exception] = (), context_tokens: int = 8192,
        hold: asyncio.Event | None = None,
    ) -> None:  # fmt: skip
        self.pieces = pieces
        self.replies = list(replies)
        self.context_tokens = context_tokens
        self.hold = hold
        self.asked: list[Sequence[ChatMessage]] = []
        self.options: list[ChatOptions] = []
        self._streams: list[AsyncIterator[ChatDelta]] = []
        self.begun = asyncio.Event()
        self.closed = asyncio.Event()

    def stream(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncIterator[ChatDelta]:
        stream = self._stream(messages, options)
        self._streams.append(stream)  # so that the garbage collector does not close what the code under test forgot to
        return stream

    async def _stream(self, messages: Sequence[ChatMessage], options: ChatOptions) -> AsyncIterator[ChatDelta]:
        self.asked.append(messages)
        self.options.append(options)
        self.begun.set()
        try:
            for piece in self.pieces:
                if self.hold is not None:
                    await self.hold.wait()
                if isinstance(piece, Exception):
                    raise piece
                yield ChatDelta(text=piece) if isinstance(piece, str) else piece
            yield ChatDelta(usage=Usage(11, 7, 0), finish_reason="stop")
        finally:
            self.closed.set()

    async def complete(self, messages: Sequence[ChatMessage], options: ChatOptions) -> ChatReply:
        self.asked.append(messages)
        self.options.append(options)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return ChatReply(reply)
