"""rag/flow/chat.py: events, history, citations end to end, failures, and a stream that is left."""

import asyncio
import math
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from rag.deadline import seconds_left
from rag.errors import DeadlineExceeded, ProviderUnreachable, TooLarge, Unavailable
from rag.flow import chat as chat_module
from rag.flow.chat import COUNTED_CHARACTERS, Answer, AnswerDelta, ChatEvent, ChatTask, ReasoningDelta, async_chat
from rag.flow.extract import NO_DATASETS, NOTICE
from rag.types import ChatDelta, ChatMessage, ChatOptions, Retrieval, Usage
from tests.rag.flow.passages import BRIDGE, IRON, WATER, ranked, retrieval
from tests.rag.flow.scripted import ScriptedModel

FOUND = retrieval(ranked(WATER, 1), ranked(IRON, 2, "metals.md"), total=9)


def words(text: str) -> int:
    return len(text.split())


def finding(found: Retrieval | Exception, asked: list[str] | None = None) -> Callable[[str], Any]:
    async def retrieve(question: str) -> Retrieval:
        if asked is not None:
            asked.append(question)
        if isinstance(found, Exception):
            raise found
        return found

    return retrieve


def task(model: ScriptedModel | None, found: Retrieval | Exception | None = FOUND, **values: Any) -> ChatTask:
    given = {
        "messages": (ChatMessage("user", "When does water boil?"),),
        "system": "Answer from: {knowledge}",
        "retrieve": None if found is None else finding(found),
        "count_tokens": words,
    }
    return ChatTask(model=model, **(given | values))


async def run(chat: ChatTask) -> list[ChatEvent]:
    async with aclosing(async_chat(chat)) as events:
        return [event async for event in events]


def text_of(events: list[ChatEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, AnswerDelta))


async def test_all_work_on_an_answer_sees_its_deadline() -> None:
    left = []

    class Watching(ScriptedModel):
        async def _stream(self, *given: Any) -> Any:
            async for delta in super()._stream(*given):
                left.append(seconds_left())
                yield delta

    async def retrieve(_: str) -> Retrieval:
        left.append(seconds_left())
        return FOUND

    await run(task(Watching("Water ", "boils."), retrieve=retrieve, deadline_seconds=30.0))
    assert len(left) == 4
    assert all(25 < seconds <= 30 for seconds in left)
    assert seconds_left() == math.inf


async def test_an_answer_tells_why_retrieval_did_without_something() -> None:
    found = replace(FOUND, degraded=("rerank",), reasons={"rerank": "no answer in time"})
    *_, end = await run(task(ScriptedModel("Yes."), found))
    assert (end.degraded, end.reasons) == (("rerank",), {"rerank": "no answer in time"})


async def test_an_answer_is_deltas_and_one_end_that_has_it_all() -> None:
    events = await run(task(ScriptedModel("Water boils ", "at 100 °C ", "at sea level [ID:0].")))
    *deltas, end = events
    assert isinstance(end, Answer)
    assert all(isinstance(event, AnswerDelta) for event in deltas)
    assert len(deltas) > 1
    assert text_of(events) == end.text == "Water boils at 100 °C at sea level [ID:0]."
    assert [entry.chunk.content for entry in end.chunks] == [WATER, IRON]
    assert end.total == 9
    assert [(count.document_name, count.count) for count in end.documents] == [("physics.md", 1), ("metals.md", 1)]
    assert end.usage == Usage(11, 7, 0)
    assert {"retrieve", "search", "total"} <= end.timings.keys()
    assert (end.degraded, end.empty) == ((), False)
    assert "[ID:0] physics.md" in end.prompt


async def test_only_supported_citations_stay() -> None:
    model = ScriptedModel(
        "Water boils at 100 °C at sea level [ID:1]. ",
        "Iron melts at 1538 °C [",
        "ID:",
        "1]. ",
        "It is worked since 1200 BC [ID:7]. ",
        "Ok [ID:0].",
    )
    text = text_of(await run(task(model)))
    first, second, rest = text.split(". ", 2)
    assert "[ID:1]" not in first
    assert second == "Iron melts at 1538 °C [ID:1]"
    assert "[ID:7]" not in rest
    assert "Ok." in rest


async def test_chinese_citations_are_checked_too() -> None:
    found = retrieval(ranked(WATER, 1), ranked(BRIDGE, 2))
    model = ScriptedModel("长江大桥于1957年建成[ID:1]。", "桥长1670米[ID:0]。")
    text = text_of(await run(task(model, found)))
    assert "建成[ID:1]" in text.replace(" ", "")
    assert "[ID:0]" not in text


async def test_without_citing_a_models_marks_are_dropped() -> None:
    model = ScriptedModel("Water boils at 100 °C at sea level [ID:0].")
    assert "[ID:" not in text_of(await run(task(model, cite=False)))


async def test_text_is_passed_on_as_it_arrives() -> None:
    go = asyncio.Event()
    model = ScriptedModel("Water boils at 100 °C. ", "More to come.", hold=go)
    async with aclosing(async_chat(task(model))) as events:
        first = asyncio.ensure_future(anext(events))
        await model.begun.wait()
        assert not first.done()
        go.set()
        assert (await first).text.startswith("Water boils")


async def test_reasoning_comes_apart_from_the_answer() -> None:
    model = ScriptedModel(ChatDelta(reasoning="let me "), ChatDelta(reasoning="see"), "Yes")
    events = await run(task(model))
    assert [type(event) for event in events] == [ReasoningDelta, ReasoningDelta, AnswerDelta, Answer]
    assert events[-1].text == "Yes"


async def test_nothing_found_answers_with_the_empty_response_and_asks_no_model() -> None:
    model = ScriptedModel("never said")
    events = await run(task(model, retrieval(), empty_response="Sorry!"))
    assert events[0] == AnswerDelta("Sorry!", canned=True)
    assert (events[1].text, events[1].empty, events[1].chunks) == ("Sorry!", True, ())
    assert model.asked == []


async def test_nothing_found_without_empty_response_asks_the_model() -> None:
    model = ScriptedModel("I do not know.")
    assert text_of(await run(task(model, retrieval()))) == "I do not know."


async def test_a_chat_without_datasets_is_the_model_alone() -> None:
    model = ScriptedModel("Hello.")
    events = await run(task(model, None, system=""))
    assert model.asked == [(ChatMessage("user", "When does water boil?"),)]
    assert (events[-1].chunks, events[-1].total) == ((), 0)


TALK = (ChatMessage("user", "What is water?"), ChatMessage("assistant", "H2O [ID:0]."), ChatMessage("user", "When does it boil?"))


async def test_a_follow_up_is_searched_as_the_condensed_question_and_answered_as_asked() -> None:
    asked: list[str] = []
    model = ScriptedModel("At 100 °C.", replies=["When does water boil?"])
    await run(task(model, messages=TALK, retrieve=finding(FOUND, asked)))
    assert asked == ["When does water boil?"]
    assert [message.content for message in model.asked[1][1:]] == ["What is water?", "H2O.", "When does it boil?"]


@pytest.mark.parametrize("refine", [True, False])
async def test_a_question_without_history_is_searched_as_it_is(refine: bool) -> None:
    asked: list[str] = []
    messages = TALK if not refine else TALK[-1:]
    await run(task(ScriptedModel("Yes."), messages=messages, retrieve=finding(FOUND, asked), refine_multiturn=refine))
    assert asked == ["When does it boil?"]


async def test_a_model_that_cannot_condense_degrades_to_the_last_two_questions() -> None:
    asked: list[str] = []
    model = ScriptedModel("Yes.", replies=[ProviderUnreachable("model scripted cannot be reached")])
    events = await run(task(model, messages=TALK, retrieve=finding(FOUND, asked)))
    assert asked == ["What is water?\nWhen does it boil?"]
    assert (events[-1].degraded, events[-1].reasons) == (("condense",), {"condense": "model scripted cannot be reached"})


@pytest.mark.parametrize(
    ("refine", "searched"), [(True, "What is water?\nWhen does it boil?"), (False, "When does it boil?")], ids=["refined", "as it is"]
)
async def test_without_a_model_a_follow_up_is_searched_with_the_question_before_it(refine: bool, searched: str) -> None:
    asked: list[str] = []
    await run(task(None, messages=TALK, retrieve=finding(FOUND, asked), refine_multiturn=refine))
    assert asked == [searched]


async def test_nothing_found_since_the_model_could_not_condense_is_the_models_error() -> None:
    model = ScriptedModel("never said", replies=[ProviderUnreachable("model scripted cannot be reached")])
    with pytest.raises(ProviderUnreachable, match="cannot be reached"):
        await run(task(model, retrieval(), messages=TALK, empty_response="Sorry!"))


async def test_nothing_found_since_condensing_took_too_long_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(ScriptedModel):
        async def complete(self, *_: Any) -> Any:
            await asyncio.Event().wait()

    monkeypatch.setattr(chat_module, "QUESTION_SECONDS", 0.01)
    with pytest.raises(ProviderUnreachable, match="no answer in time"):
        await run(task(Hanging("never said"), retrieval(), messages=TALK, empty_response="Sorry!"))


@pytest.mark.parametrize("model", [None, ScriptedModel("Yes.", replies=[ProviderUnreachable("no")])], ids=["no model", "model fails"])
async def test_a_follow_up_that_finds_nothing_with_the_question_before_it_is_searched_as_it_is(model: ScriptedModel | None) -> None:
    asked: list[str] = []

    async def retrieve(question: str) -> Retrieval:
        asked.append(question)
        return FOUND if question == "When does it boil?" else retrieval()

    *_, end = await run(task(model, messages=TALK, retrieve=retrieve, empty_response="Sorry!"))
    assert asked == ["What is water?\nWhen does it boil?", "When does it boil?"]
    assert not end.empty
    assert end.degraded == (() if model is None else ("condense",))


async def test_without_a_model_a_follow_up_is_answered_in_the_light_of_the_question_before() -> None:
    found = retrieval(ranked("Lead melts at 327 °C. Tin melts at 232 °C. Iron melts at 1538 °C."))
    talk = (ChatMessage("user", "Is iron a metal?"), ChatMessage("assistant", "It is."), ChatMessage("user", "When does it melt?"))
    text = text_of(await run(task(None, found, messages=talk)))
    assert text.split("\n\n")[1].startswith("Iron melts at 1538 °C.")


async def test_a_citation_in_other_words_is_compared_by_vectors() -> None:
    async def compare(_: str, chunks: Any) -> list[float]:
        return [0.9] + [0.0] * (len(chunks) - 1)

    model = ScriptedModel("Liquids turn into steam when heated enough [ID:0].")
    assert text_of(await run(task(model, compare=compare))).endswith("[ID:0].")


async def test_a_comparison_that_fails_is_told_with_the_answer() -> None:
    async def compare(_: str, __: Any) -> list[float]:
        raise ProviderUnreachable("model vectors cannot be reached")

    *_, end = await run(task(ScriptedModel("Liquids turn into steam when heated enough [ID:0]."), compare=compare))
    assert "[ID:" not in end.text
    assert (end.degraded, end.reasons) == (("cite",), {"cite": "model vectors cannot be reached"})


async def test_nothing_found_by_a_condensed_question_is_the_empty_response() -> None:
    model = ScriptedModel("never said", replies=["When does water boil?"])
    assert text_of(await run(task(model, retrieval(), messages=TALK, empty_response="Sorry!"))) == "Sorry!"


async def test_keywords_and_translations_are_searched_beside_the_question() -> None:
    asked: list[str] = []
    model = ScriptedModel("Yes.", replies=["boiling point, water", "Wann kocht Wasser?"])
    await run(task(model, retrieve=finding(FOUND, asked), keyword=True, cross_languages=("German",)))
    assert asked == ["When does water boil?\nWann kocht Wasser?\nboiling point\nwater"]


async def test_what_the_retrieval_left_out_is_told() -> None:
    events = await run(task(ScriptedModel("Yes."), retrieval(ranked(WATER), degraded=("embed",))))
    assert events[-1].degraded == ("embed",)


async def test_a_retrieval_that_fails_is_the_answers_error() -> None:
    model = ScriptedModel("never said")
    with pytest.raises(Unavailable, match="the store is closed"):
        await run(task(model, Unavailable("the store is closed")))
    assert model.asked == []


async def test_the_models_failure_comes_after_what_it_said() -> None:
    model = ScriptedModel("Water boils at 100 °C. ", ProviderUnreachable("model scripted dropped the connection"))
    said: list[ChatEvent] = []

    async def listen() -> None:
        async for event in async_chat(task(model)):
            said.append(event)

    with pytest.raises(ProviderUnreachable, match="dropped the connection"):
        await listen()
    assert text_of(said).startswith("Water boils")
    assert not any(isinstance(event, Answer) for event in said)
    assert model.closed.is_set()


async def test_a_question_over_the_window_is_an_error_before_the_model_is_asked() -> None:
    model = ScriptedModel("never said", context_tokens=100)
    with pytest.raises(TooLarge):
        await run(task(model, messages=(ChatMessage("user", "word " * 200),)))
    assert model.asked == []


async def test_an_answer_over_its_time_is_ended_with_an_error() -> None:
    model = ScriptedModel("never said", hold=asyncio.Event())
    with pytest.raises(DeadlineExceeded, match=r"the answer took longer than 0\.05 seconds"):
        await run(task(model, deadline_seconds=0.05))
    assert model.closed.is_set()


async def test_closing_the_answer_closes_the_models_stream() -> None:
    model = ScriptedModel("Water boils at 100 °C. ", "More. " * 50)
    events = async_chat(task(model))
    await anext(events)
    assert not model.closed.is_set()
    await events.aclose()
    assert model.closed.is_set()


async def test_cancelling_whoever_waits_closes_the_models_stream() -> None:
    model = ScriptedModel("never said", hold=asyncio.Event())
    waiting = asyncio.create_task(run(task(model)))
    await model.begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert model.closed.is_set()


async def test_usage_is_counted_where_the_model_does_not_say() -> None:
    class Silent(ScriptedModel):
        async def stream(self, messages: Any, options: ChatOptions) -> Any:
            yield ChatDelta(reasoning="one two")
            yield ChatDelta(text="three four five")

    events = await run(task(Silent()))
    usage = events[-1].usage
    assert (usage.completion_tokens, usage.reasoning_tokens) == (5, 2)
    assert usage.prompt_tokens > words(WATER)


async def test_without_a_model_the_best_sentence_is_quoted_with_its_citation() -> None:
    events = await run(task(None))
    assert events[0].text == NOTICE
    assert "Water boils at 100 °C at sea level. [ID:0]" in text_of(events)
    assert len(events) > 3
    assert events[-1].text == text_of(events)
    assert [entry.chunk.content for entry in events[-1].chunks] == [WATER, IRON]


async def test_without_a_model_only_the_beginning_of_a_long_question_is_counted() -> None:
    events = await run(task(None, None, messages=(ChatMessage("user", "a " * COUNTED_CHARACTERS),)))
    assert events[-1].usage.prompt_tokens == COUNTED_CHARACTERS // 2


async def test_without_a_model_and_without_datasets_it_says_so() -> None:
    assert text_of(await run(task(None, None))) == NO_DATASETS


async def test_the_callers_own_work_is_done_before_the_first_event_and_runs_beside_the_model() -> None:
    model = ScriptedModel("Yes")

    async def work() -> None:
        await model.begun.wait()

    assert text_of(await run(task(model, alongside=work))) == "Yes"


async def test_the_callers_own_work_runs_beside_the_search_and_is_done_even_when_that_fails() -> None:
    steps: list[str] = []
    begun, failed = asyncio.Event(), asyncio.Event()

    async def fail(_: str) -> Retrieval:
        await begun.wait()
        failed.set()
        raise Unavailable("the store cannot answer")

    async def work() -> None:
        begun.set()
        await failed.wait()
        await asyncio.sleep(0)
        steps.append("done")

    with pytest.raises(Unavailable, match="store"):
        await run(task(ScriptedModel("never said"), retrieve=fail, alongside=work))
    assert steps == ["done"]


async def test_the_callers_own_work_failing_is_the_answers_error() -> None:
    async def work() -> None:
        raise Unavailable("no session can be opened")

    model = ScriptedModel("never said")
    with pytest.raises(Unavailable, match="no session"):
        await run(task(model, alongside=work))
    assert model.closed.is_set()


async def test_the_callers_own_work_is_cancelled_with_the_answer() -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    waiting = asyncio.create_task(run(task(ScriptedModel("never said"), alongside=work)))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert stopped.is_set()
