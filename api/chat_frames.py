"""Chat events as the contract's frames (11.2) and as its one answer (11.3)."""

import html
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from api.reference import Metadata, reference_of
from rag.flow.chat import Answer, AnswerDelta, ChatEvent, ReasoningDelta

Frame = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ids:
    """What every frame carries: the message's id, the session's and the chat's; "" where there is none."""

    message: str
    session: str
    chat: str

    def as_dict(self) -> Frame:
        """As the wire names them."""
        return {"id": self.message, "session_id": self.session, "chat_id": self.chat}


async def frames(events: AsyncIterator[ChatEvent], ids: Ids, *, with_final: bool, legacy: bool = False) -> AsyncIterator[Frame]:
    """A delta for each piece of text, then one final frame.

    Reasoning stands between two frames that mark its borders; with `legacy` it stands inline in `<think>`, and every frame has the
    whole answer so far. `with_final` False, for chats without datasets: no final frame, the deltas carry what it would.
    """
    writer = _Cumulative() if legacy else _Pieces()
    async with aclosing(events):  # type: ignore[type-var]
        async for event in events:
            for text, marks in writer.deltas(event):
                yield _delta(text, ids, with_final) | marks
            if isinstance(event, Answer) and with_final:
                yield _final(writer.final(event), event, ids)


async def whole(events: AsyncIterator[ChatEvent], ids: Ids) -> Frame:
    """The answer in one piece, without the reasoning."""
    answer = await last_of(events)
    return {
        "answer": answer.text,
        "reference": reference_of(answer),
        "prompt": answer.prompt,
        "created_at": time.time(),
        "audio_binary": None,
        **ids.as_dict(),
        **degraded_of(answer),
    }


async def last_of(events: AsyncIterator[ChatEvent]) -> Answer:
    """The event that ends the answer; the others are passed over."""
    async with aclosing(events):  # type: ignore[type-var]
        return [event async for event in events if isinstance(event, Answer)][-1]


class _Pieces:
    """Only what is new, and the borders of the reasoning."""

    def __init__(self) -> None:
        self._thinking = False

    def deltas(self, event: ChatEvent) -> Iterator[tuple[str, Frame]]:
        """The texts to send for the event, each with the marks that go beside it."""
        if self._thinking is not isinstance(event, ReasoningDelta):
            self._thinking = not self._thinking
            yield "", {"start_to_think" if self._thinking else "end_to_think": True}
        if not isinstance(event, Answer):
            yield _shown(event), {}

    def final(self, answer: Answer) -> str:
        """The text of the final frame: that of `empty_response` is said twice."""
        return html.escape(answer.text) if answer.empty else ""


class _Cumulative:
    """The whole text so far, reasoning inline."""

    def __init__(self) -> None:
        self._text = ""
        self._thinking = False

    def deltas(self, event: ChatEvent) -> Iterator[tuple[str, Frame]]:
        """The text to send for the event."""
        if self._thinking is not isinstance(event, ReasoningDelta):
            self._thinking = not self._thinking
            self._text += "<think>" if self._thinking else "</think>"
        if not isinstance(event, Answer):
            self._text += _shown(event)
            yield self._text, {}

    def final(self, answer: Answer) -> str:
        """The text of the final frame: all of it again."""
        return self._text


def _shown(event: AnswerDelta | ReasoningDelta) -> str:
    return html.escape(event.text) if isinstance(event, AnswerDelta) and event.canned else event.text


def _delta(text: str, ids: Ids, with_final: bool) -> Frame:
    beside = {} if with_final else {"prompt": "", "created_at": time.time()}
    return {"answer": text, "reference": {"chunks": []}, "audio_binary": None, **beside, "final": False, **ids.as_dict()}


def _final(text: str, answer: Answer, ids: Ids, metadata: Metadata | None = None) -> Frame:
    return {
        "answer": text,
        "reference": reference_of(answer, metadata),
        "audio_binary": None,
        "prompt": answer.prompt,
        "created_at": time.time(),
        "final": True,
        **ids.as_dict(),
        **degraded_of(answer),
    }


def degraded_of(answer: Answer) -> Frame:
    """The steps that the answer had to do without, and of some of them why; the keys are there only when there are any."""
    return {"degraded": list(answer.degraded), "reasons": dict(answer.reasons)} if answer.degraded else {}
