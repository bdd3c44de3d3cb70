"""Answers a conversation's last message from the retrieved chunks, with checked citations, as a stream of events."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rag.deadline import within
from rag.errors import DeadlineExceeded, ProviderUnreachable
from rag.flow.citations import CheckedCitations, Compare
from rag.flow.extract import NO_DATASETS, extractive_answer
from rag.flow.nodes import Flow, Node, Outcome, Values
from rag.flow.prompt import Prompt, Window, build_prompt, characters_of, passage
from rag.flow.question import condense, keywords, question_before, translate, with_the_one_before
from rag.ports import ChatModel
from rag.threads import LARGE_CHARACTERS, Lane, aside, beside
from rag.types import ChatMessage, ChatOptions, DocumentCount, RankedChunk, Retrieval, Usage

QUESTION_SECONDS = 20.0  # for the model's work on the question; then the question is searched without it
HEAD_START_SECONDS = 0.001  # of the question, so that a thread embeds it while the interpreter is at the work alongside
COUNTED_CHARACTERS = 100_000  # of a question that no model reads


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTask:
    """All that an answer depends on.

    `messages` ends with the user's question; no system message among them. `system` and `variables`: see `build_prompt`. `retrieve`
    finds the chunks for a question; None for a chat without datasets. `model` None: the extractive answerer. `count_tokens` counts
    as the model does, or nearly. `empty_response` answers in the model's place when nothing is found (unless the model failed to
    condense the question: then its error is raised); "" lets the model answer. `compare` gives the cosine of a sentence of the
    answer with each of the chunks, for citations that the words do not support; None where vectors cannot tell.
    `deadline_seconds` bounds the whole answer.
    `alongside` is work of the caller's that must be done before the first event; it runs beside the search, and its error is the
    answer's. `lane` does the work on large texts; without it the event loop does.
    """

    messages: Sequence[ChatMessage]
    system: str
    model: ChatModel | None
    retrieve: Callable[[str], Awaitable[Retrieval]] | None
    count_tokens: Callable[[str], int]
    variables: Mapping[str, str] = field(default_factory=dict)
    options: ChatOptions = field(default_factory=ChatOptions)
    empty_response: str = ""
    cite: bool = True
    compare: Compare | None = None
    refine_multiturn: bool = True
    keyword: bool = False
    cross_languages: Sequence[str] = ()
    deadline_seconds: float = 600.0
    alongside: Callable[[], Awaitable[Any]] | None = None
    lane: Lane | None = None

    @property
    def question(self) -> str:
        """The last message's text."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class AnswerDelta:
    """More text of the answer; `canned` where it is the chat's `empty_response`."""

    text: str
    canned: bool = False


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model says to itself before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of an answer, always the last event.

    `[ID:n]` in `text` is `chunks[n]`; `total` is the retrieval's length, `documents` counts `chunks` by document, descending.
    `empty`: nothing was found and `empty_response` was given. `usage` is counted by us where the model does not say.
    `degraded` names the steps that failed and were left out, `reasons` tells of some of them why, `timings` maps steps to milliseconds.
    """

    text: str
    prompt: str = ""
    total: int = 0
    chunks: tuple[RankedChunk, ...] = ()
    documents: tuple[DocumentCount, ...] = ()
    usage: Usage = field(default_factory=Usage)
    finish_reason: str = "stop"
    empty: bool = False
    degraded: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


ChatEvent = AnswerDelta | ReasoningDelta | Answer
NOTHING_FOUND = Retrieval(0, (), ())


async def async_chat(task: ChatTask) -> AsyncIterator[ChatEvent]:
    """The answer as it comes: deltas, then one `Answer`.

    Closing it, or cancelling whoever awaits it, closes the model's stream at once. Raises `ProviderError` when the model fails,
    `TooLarge` when the question does not fit into its window, `DeadlineExceeded`, and what the retrieval raises.
    """
    async with beside(_after_the_question(task.alongside)) as alongside, aclosing(_answer(task)) as events:
        try:
            async for event in events:
                await alongside
                yield event
        except Exception:
            await alongside  # what it makes is there, whatever became of the answer
            raise


async def _after_the_question(work: Callable[[], Awaitable[Any]] | None) -> None:
    if work is not None:
        await asyncio.sleep(HEAD_START_SECONDS)
        await work()


async def _answer(task: ChatTask) -> AsyncIterator[ChatEvent]:
    started = time.perf_counter()
    deadline = asyncio.get_running_loop().time() + task.deadline_seconds
    found = await _before(deadline, task, _find(task))
    retrieval: Retrieval | None = found.values.get("retrieve")
    end = partial(_end, found, retrieval, started)
    if retrieval is not None and not retrieval.chunks and task.empty_response:
        if failure := found.failures.get("condense"):
            raise _model_error(failure)  # what was searched is not what was asked: to say that there is nothing would hide it
        yield AnswerDelta(task.empty_response, canned=True)
        yield end(text=task.empty_response, empty=True)
        return
    stream = _generate(task, task.model, retrieval, found.failures, deadline, end) if task.model else _extract(task, retrieval, end)
    async with aclosing(stream) as events:
        async for event in events:
            yield event


async def _find(task: ChatTask) -> Outcome:
    """Work on the question, then retrieve. Values: `retrieve`, absent for a chat without datasets."""
    if task.retrieve is None:
        return Outcome()
    nodes = list(_question_nodes(task))
    return await Flow([*nodes, _retrieve_node(task, task.retrieve, after=tuple(node.name for node in nodes))]).run()


def _question_nodes(task: ChatTask) -> Iterator[Node]:
    """What the model does with the question before it is searched: at the same time, but for what needs the condensed one."""
    model = task.model
    if model is None:
        return
    condensed: tuple[str, ...] = ()
    if task.refine_multiturn and len(task.messages) > 1:
        condensed = ("condense",)
        yield Node("condense", lambda _: condense(model, task.messages), (), QUESTION_SECONDS)
    if task.keyword:
        yield Node("keywords", lambda values: keywords(model, _asked(task, values)), condensed, QUESTION_SECONDS, ())
    if task.cross_languages:
        yield Node(
            "translate", lambda values: translate(model, _asked(task, values), task.cross_languages), condensed, QUESTION_SECONDS, ()
        )


def _retrieve_node(task: ChatTask, retrieve: Callable[[str], Awaitable[Retrieval]], after: tuple[str, ...]) -> Node:
    async def search(values: Values) -> Retrieval:
        more = (*values.get("translate", ()), *values.get("keywords", ()))
        found = await retrieve("\n".join((_asked(task, values), *more)))
        if not found.chunks and _asked(task, values) != task.question and values.get("condense") is None:
            found = await retrieve("\n".join((task.question, *more)))  # the question before it may have led astray
        return found

    return Node("retrieve", search, after, required=True)


def _asked(task: ChatTask, values: Values) -> str:
    """The question that stands by itself: the condensed one, or else the last two questions together."""
    if "condense" in values or (task.model is None and task.refine_multiturn):
        return values.get("condense") or with_the_one_before(task.messages)
    return task.question


def _model_error(failure: Exception) -> Exception:
    return ProviderUnreachable("the chat model gave no answer in time") if isinstance(failure, TimeoutError) else failure


async def _generate(
    task: ChatTask, model: ChatModel, retrieval: Retrieval | None, failures: dict[str, Exception], deadline: float,
    end: Callable[..., Answer],
) -> AsyncIterator[ChatEvent]:  # fmt: skip
    build = partial(
        build_prompt,
        system=task.system,
        variables=task.variables,
        messages=task.messages,
        chunks=None if retrieval is None else retrieval.chunks,
        cite=task.cite,
        window=Window(model.context_tokens, task.options.max_tokens, task.count_tokens),
    )
    prompt = await aside(task.lane, _characters(task, () if retrieval is None else retrieval.chunks), build)
    shown = [passage(ranked) for ranked in prompt.chunks] if task.cite else []
    citations = CheckedCitations(shown, prompt.chunks, task.compare, failures, add=task.cite)
    if task.lane is not None and sum(map(len, shown)) > LARGE_CHARACTERS:
        await task.lane.run(citations.prepare)
    text: list[str] = []
    reasoning: list[str] = []
    usage, finish_reason = Usage(), "stop"
    async with aclosing(model.stream(prompt.messages, task.options)) as deltas:
        while (delta := await _before(deadline, task, anext(deltas, None))) is not None:
            if delta.reasoning:
                reasoning.append(delta.reasoning)
                yield ReasoningDelta(delta.reasoning)
            if delta.text:
                async for piece in citations.feed(delta.text):
                    text.append(piece)
                    yield AnswerDelta(piece)
            usage, finish_reason = delta.usage or usage, delta.finish_reason or finish_reason
    async for piece in citations.finish():
        text.append(piece)
        yield AnswerDelta(piece)
    answer, thoughts = "".join(text), "".join(reasoning)
    count = partial(_counted, usage, task, prompt, answer, thoughts)
    yield end(
        text=answer,
        prompt=prompt,
        chunks=prompt.chunks,
        usage=await aside(task.lane, len(answer) + len(thoughts), count),
        finish_reason=finish_reason,
    )


async def _extract(task: ChatTask, retrieval: Retrieval | None, end: Callable[..., Answer]) -> AsyncIterator[ChatEvent]:
    chunks = () if retrieval is None else retrieval.chunks
    before = question_before(task.messages) if task.refine_multiturn else ""
    quote = partial(extractive_answer, task.question, chunks, task.cite, before=before)
    pieces = (NO_DATASETS,) if retrieval is None else await aside(task.lane, characters_of(chunks), lambda: list(quote()))
    text = ""
    for piece in pieces:
        text += piece
        yield AnswerDelta(piece)
    asked = task.question[:COUNTED_CHARACTERS]
    used = await aside(task.lane, len(asked) + len(text), lambda: Usage(task.count_tokens(asked), task.count_tokens(text)))
    yield end(text=text, chunks=chunks, usage=used)


def _characters(task: ChatTask, chunks: Sequence[RankedChunk]) -> int:
    """How much text a prompt is chosen from."""
    return len(task.system) + sum(len(message.content) for message in task.messages) + characters_of(chunks)


async def _before(deadline: float, task: ChatTask, work: Awaitable[Any]) -> Any:
    """What `work` returns. Raises `DeadlineExceeded`. Not a block around the stream: its consumer's time is not ours to cut."""
    limit = asyncio.timeout_at(deadline)
    try:
        async with limit:
            with within(deadline - asyncio.get_running_loop().time()):
                return await work
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(f"the answer took longer than {task.deadline_seconds:g} seconds") from None


def _end(
    found: Outcome, retrieval: Retrieval | None, started: float, *, text: str, prompt: Prompt | None = None,
    chunks: Sequence[RankedChunk] = (), **rest: Any,
) -> Answer:  # fmt: skip
    retrieval = retrieval or NOTHING_FOUND
    return Answer(
        text=text,
        prompt="" if prompt is None else prompt.text,
        total=retrieval.total,
        chunks=tuple(chunks),
        documents=count_documents(chunks),
        degraded=(*found.degraded, *retrieval.degraded),
        timings={**found.timings, **retrieval.timings, "total": round((time.perf_counter() - started) * 1000, 3)},
        reasons={**found.reasons, **retrieval.reasons},
        **rest,
    )


def count_documents(chunks: Sequence[RankedChunk]) -> tuple[DocumentCount, ...]:
    """How many of the chunks come from each document, most first, else in the chunks' order."""
    counts: dict[str, DocumentCount] = {}
    for ranked in chunks:
        chunk = ranked.chunk
        before = counts.get(chunk.document_id, DocumentCount(chunk.document_id, chunk.document_name, 0))
        counts[chunk.document_id] = DocumentCount(before.document_id, before.document_name, before.count + 1)
    return tuple(sorted(counts.values(), key=lambda count: -count.count))


def _counted(usage: Usage, task: ChatTask, prompt: Prompt, answer: str, reasoning: str) -> Usage:
    """The vendor's figures, ours where it gave none."""
    thought = task.count_tokens(reasoning) if reasoning else 0
    return Usage(
        prompt.tokens if usage.prompt_tokens is None else usage.prompt_tokens,
        task.count_tokens(answer) + thought if usage.completion_tokens is None else usage.completion_tokens,
        thought if usage.reasoning_tokens is None else usage.reasoning_tokens,
    )
