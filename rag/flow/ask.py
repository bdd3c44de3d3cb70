"""Answers one question over datasets, without a conversation: what a search shows above its results."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from rag.flow.chat import ChatEvent, ChatTask, async_chat
from rag.flow.citations import Compare
from rag.ports import ChatModel
from rag.threads import Lane
from rag.types import ChatMessage, ChatOptions, Retrieval

SYSTEM = """\
You answer the user's question from the passages below, and from nothing else.
- Begin with the answer itself; then give what the passages add to it. Use Markdown where it helps.
- Keep numbers, names and units as the passages write them. Where they contradict each other, say so.
- When they do not answer the question, say that plainly.
- Answer in the language of the question.

The passages:
{knowledge}"""

NOTHING = "Nothing that fits the question was found."


def async_ask(
    question: str,
    *,
    retrieve: Callable[[str], Awaitable[Retrieval]],
    model: ChatModel | None,
    count_tokens: Callable[[str], int],
    options: ChatOptions = ChatOptions(),  # noqa: B008 (frozen)
    keyword: bool = False,
    cross_languages: Sequence[str] = (),
    compare: Compare | None = None,
    deadline_seconds: float = 600.0,
    lane: Lane | None = None,
) -> AsyncIterator[ChatEvent]:
    """The answer as `async_chat` gives it, and raising as it does. Nothing found is said without asking the model."""
    task = ChatTask(
        messages=(ChatMessage("user", question),),
        system=SYSTEM,
        model=model,
        retrieve=retrieve,
        count_tokens=count_tokens,
        options=options,
        empty_response=NOTHING,
        keyword=keyword,
        cross_languages=cross_languages,
        compare=compare,
        deadline_seconds=deadline_seconds,
        lane=lane,
    )
    return async_chat(task)
