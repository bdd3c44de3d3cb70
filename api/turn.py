"""Saves a turn, question and answer, once: when the answer is complete, or with what was sent when the stream is cut."""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import structlog

from api.metrics import Metrics
from api.reference import reference_of
from db.services import conversation_service
from db.services.conversation_service import MessageRecord
from db.session import Session
from rag import stages
from rag.flow.chat import Answer, AnswerDelta, ChatEvent

log = structlog.get_logger("millrace.chat")


@dataclass(frozen=True, slots=True)
class Turn:
    """Where a turn is saved. `questions` is the posted question, or with `replace` the whole history that ends with it."""

    session: Session
    tenant_id: str
    conversation_id: str
    turn_id: str
    questions: Sequence[MessageRecord]
    replace: bool = False

    async def save(self, answer: str, reference: Mapping[str, Any]) -> None:
        """Append question and answer in one transaction. Raises as `Session.write`."""
        reply = MessageRecord("assistant", answer, self.turn_id, reference, time.time())
        messages = (*self.questions, reply)
        await self.session.write(conversation_service.append_turn, self.tenant_id, self.conversation_id, messages, replace=self.replace)


async def saving(turn: Turn | None, events: AsyncIterator[ChatEvent], metrics: Metrics, *, streamed: bool) -> AsyncIterator[ChatEvent]:
    """The events, unchanged; what an answer had to do without is counted.

    The turn is saved before the last one is given on, so that whoever has seen that one can rely on it.
    Where the stream ends early (the client left, the model failed, the server stops) the text given on so far is saved; an
    answer of which nobody saw anything is not. `turn` None saves nothing.
    """
    sent: list[str] = []
    done = False
    stages.flow("chat")
    try:
        async with aclosing(events):  # type: ignore[type-var]
            async for event in events:
                stages.reached("first_token")
                if isinstance(event, Answer):
                    metrics.degraded(event.degraded)
                    done = True  # from here on the write ends by itself, even if we are cancelled
                    if turn is not None:
                        await turn.save(event.text, reference_of(event))
                elif isinstance(event, AnswerDelta):
                    sent.append(event.text)
                yield event
    finally:
        if not done and turn is not None and streamed and sent:
            await _save_cut(turn, "".join(sent))


async def _save_cut(turn: Turn, text: str) -> None:
    try:
        await turn.save(text, {"total": 0, "chunks": [], "doc_aggs": []})
    except Exception as error:  # noqa: BLE001 - what cut the stream is the error to show; this one must not take its place
        log.error("cut turn not saved", error=type(error).__name__)
