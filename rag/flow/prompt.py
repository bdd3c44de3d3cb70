"""Builds what the model reads: instruction, as many whole chunks as its window takes, as much history as is left room for."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rag.errors import TooLarge
from rag.types import ChatMessage, RankedChunk

TOKEN_CHARACTERS = 16  # no prose has so many a token: a text with more of them than the window is over it, uncounted
NUMBER_TOKENS = 8  # `[ID:12]` and the blank line
MESSAGE_TOKENS = 8  # what a chat template puts around a message
ANSWER_TOKENS = 1_024  # kept free for the answer where the caller sets no limit ...
ANSWER_SHARE = 0.25  # ... but no more than this share of the window
ASKED_SHARE = 0.5  # of the window, whatever answer the caller asks for
WINDOW_SHARE = 0.95  # the counter is another model's tokenizer; the rest of the window is its margin of error
CHUNKS_SHARE = 0.75  # of the room that chunks and history share, chunks may always have this much

CITE = """\


Rules for citations:
- Put the ID of the passage that supports a sentence at its end, in the form [ID:0]. Several are written [ID:0][ID:2].
- Cite only passages given above, at most four a sentence. Leave out the citation where no passage supports the sentence."""

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_CITATION = re.compile(r"(?<![ \t])[ \t]*\[ID:\s*\d+\]")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The messages, and the chunks they show: passage `[ID:n]` is `chunks[n]`. `tokens` is an estimate."""

    messages: tuple[ChatMessage, ...]
    chunks: tuple[RankedChunk, ...]
    tokens: int

    @property
    def text(self) -> str:
        """All of it, for people to read."""
        return "\n\n".join(f"### {message.role}\n{message.content}" for message in self.messages)


@dataclass(frozen=True, slots=True)
class Window:
    """How much a model reads: `context_tokens` for prompt and answer, `answer_tokens` of it asked for the answer (None: our choice)."""

    context_tokens: int
    answer_tokens: int | None
    count: Callable[[str], int]

    @property
    def prompt_tokens(self) -> int:
        """What a prompt may have."""
        if self.answer_tokens is None:
            wanted = min(ANSWER_TOKENS, int(self.context_tokens * ANSWER_SHARE))
        else:
            wanted = min(self.answer_tokens, int(self.context_tokens * ASKED_SHARE))
        return int(self.context_tokens * WINDOW_SHARE) - wanted

    def cost(self, message: ChatMessage) -> int:
        """The tokens of a message with what the chat template adds.

        Counting takes time on the event loop, so a text far over the window is estimated from below, at more than the window.
        """
        characters = len(message.content)
        if characters > TOKEN_CHARACTERS * self.context_tokens:
            return characters // TOKEN_CHARACTERS + MESSAGE_TOKENS
        return self.count(message.content) + MESSAGE_TOKENS


def build_prompt(
    *, system: str, variables: Mapping[str, str], messages: Sequence[ChatMessage], chunks: Sequence[RankedChunk] | None, cite: bool,
    window: Window,
) -> Prompt:  # fmt: skip
    """The prompt for the last of `messages`; those before it are history, of which the oldest go first when room is short.

    `{name}` in `system` becomes the variable of that name, `{knowledge}` the chunks; a system text without that placeholder
    gets them at its end. `chunks` None: the chat has no datasets. Chunks enter whole, best first; one that does not fit is
    passed over. Raises `TooLarge` when instruction and question do not fit, or when there are chunks and none does.
    """
    rules = CITE if cite and chunks else ""
    if chunks is not None and "{knowledge}" not in system:
        system = f"{system}\n\n{{knowledge}}".strip()
    *history, question = messages
    bare = _substitute(system, {**variables, "knowledge": ""}) + rules
    asked = window.cost(question)
    room = window.prompt_tokens - window.cost(ChatMessage("system", bare)) - asked
    if room < 0:
        raise TooLarge(f"instruction and question exceed the model's window of {window.context_tokens} tokens")
    history = _newest(map(_without_citations, reversed(history)), room, window)
    history_cost = sum(map(window.cost, history))
    used = _fitting_chunks(chunks or (), max(room - history_cost, int(room * CHUNKS_SHARE)), window)
    if chunks and not used:
        raise TooLarge(f"no passage fits into the model's window of {window.context_tokens} tokens")
    knowledge = "\n\n".join(f"[ID:{number}] {passage(ranked)}" for number, ranked in enumerate(used))
    head = ChatMessage("system", _substitute(system, {**variables, "knowledge": knowledge}) + rules)
    instructed = window.cost(head)
    kept = _newest(reversed(history), window.prompt_tokens - instructed - asked, window)
    heads, instructed = ((head,), instructed) if head.content else ((), 0)
    return Prompt((*heads, *kept, question), tuple(used), instructed + sum(map(window.cost, kept)) + asked)


def _substitute(text: str, variables: Mapping[str, str]) -> str:
    # one pass: a value that holds a placeholder is left as it is
    return _PLACEHOLDER.sub(lambda match: variables.get(match[1], match[0]), text)


def passage(ranked: RankedChunk) -> str:
    """A chunk as the model reads it: where it stands, then what it says."""
    path = " > ".join((ranked.chunk.document_name, *ranked.chunk.headings))
    return f"{path}\n{ranked.chunk.content}"


def characters_of(chunks: Sequence[RankedChunk]) -> int:
    """How much text the chunks hold."""
    return sum(len(ranked.chunk.content) for ranked in chunks)


def _fitting_chunks(chunks: Sequence[RankedChunk], room: int, window: Window) -> list[RankedChunk]:
    fitting: list[RankedChunk] = []
    for ranked in chunks:
        cost = window.count(passage(ranked)) + NUMBER_TOKENS
        if cost <= room:
            fitting.append(ranked)
            room -= cost
    return fitting


def _newest(newest_first: Iterable[ChatMessage], room: int, window: Window) -> list[ChatMessage]:
    """As many as fit, oldest first; what does not fit is not looked at."""
    kept: list[ChatMessage] = []
    for message in newest_first:
        room -= window.cost(message)
        if room < 0:
            break
        kept.append(message)
    kept.reverse()
    while kept and kept[0].role == "assistant":  # an answer without its question says nothing; some models refuse it
        kept.pop(0)
    return kept


def _without_citations(message: ChatMessage) -> ChatMessage:
    """The message without `[ID:n]`: an older turn's numbers mean other chunks."""
    if message.role != "assistant" or "[ID:" not in message.content:
        return message
    return ChatMessage(message.role, _CITATION.sub("", message.content))
