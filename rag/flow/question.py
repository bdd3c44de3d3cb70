"""Has a chat model work on a question before it is searched: stand it on its own, translate it, name its keywords."""

import re
from collections.abc import Sequence

from rag.ports import ChatModel
from rag.types import ChatMessage, ChatOptions

HISTORY_MESSAGES = 6  # what a follow-up question refers to is hardly ever older
HISTORY_CHARACTERS = 1_000  # of each message
QUESTION_CHARACTERS = 2_000  # a longer "question" is the model rambling
MODEL_OPTIONS = ChatOptions(temperature=0.0, max_tokens=512)
MAX_KEYWORDS = 8

CONDENSE = """\
Rewrite the last message of the user as one question that can be understood without the conversation.
Resolve pronouns and omissions from the conversation, keep names, numbers and the language of the last message.
If it can be understood already, repeat it unchanged. Answer with the question only."""

TRANSLATE = """\
Translate the text of the user into each of these languages: {languages}.
Answer with one line per language that holds the translation only, in the order given."""

KEYWORDS = """\
Name the at most {count} words or short phrases of the user's text, and close synonyms, that a search for it should use.
Answer with one line, separated by commas, in the language of the text."""


async def condense(model: ChatModel, messages: Sequence[ChatMessage]) -> str:
    """The last message as a question that stands without those before it; as it is where the model has nothing sensible to say.

    Raises `ProviderError`.
    """
    question = messages[-1].content
    transcript = "\n".join(f"{message.role}: {message.content[:HISTORY_CHARACTERS]}" for message in messages[-1 - HISTORY_MESSAGES : -1])
    task = f"Conversation:\n{transcript}\n\nLast message of the user:\n{question[:QUESTION_CHARACTERS]}"
    reply = _plain(await _ask(model, CONDENSE, task))
    return reply if reply and len(reply) <= QUESTION_CHARACTERS else question


def question_before(messages: Sequence[ChatMessage]) -> str:
    """The beginning of what the user asked before the last message, "" if that was the first."""
    return next((message.content[:HISTORY_CHARACTERS] for message in reversed(messages[:-1]) if message.role == "user"), "")


def with_the_one_before(messages: Sequence[ChatMessage]) -> str:
    """What to search for when no model condenses: the user's question before, at most its beginning, then the last message."""
    return f"{question_before(messages)}\n{messages[-1].content}".lstrip("\n")


async def translate(model: ChatModel, question: str, languages: Sequence[str]) -> tuple[str, ...]:
    """The question in each of the languages, as far as the model answered. Raises `ProviderError`."""
    reply = await _ask(model, TRANSLATE.format(languages=", ".join(languages)), question[:QUESTION_CHARACTERS])
    lines = [_plain(line) for line in reply.splitlines()]
    return tuple([line for line in lines if line][: len(languages)])


async def keywords(model: ChatModel, question: str) -> tuple[str, ...]:
    """At most eight words or phrases to search for beside the question. Raises `ProviderError`."""
    reply = await _ask(model, KEYWORDS.format(count=MAX_KEYWORDS), question[:QUESTION_CHARACTERS])
    found = [_plain(word) for word in re.split(r"[,，、;；\n]", reply)]
    return tuple(list(dict.fromkeys(word for word in found if word and len(word) <= 64))[:MAX_KEYWORDS])


async def _ask(model: ChatModel, instruction: str, text: str) -> str:
    reply = await model.complete((ChatMessage("system", instruction), ChatMessage("user", text)), MODEL_OPTIONS)
    return reply.text.strip()


def _plain(text: str) -> str:
    """The text without the list marks and quotation marks that models put around it."""
    return re.sub(r"^\s*(?:[-*•]\s+|\d{1,2}[.)]\s+)", "", text).strip().strip("\"'“”「」").strip()
