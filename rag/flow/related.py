"""Questions that somebody who asked this one may ask next."""

import re
from collections.abc import Sequence

from rag.nlp.tokenize import terms
from rag.ports import ChatModel
from rag.types import ChatMessage, ChatOptions, RankedChunk

MAX_RELATED = 8
HEADING_CHARACTERS = 120

INSTRUCTION = """\
Propose five to eight search questions that are related to the user's question, so that they help to explore its subject:
neighbouring topics, causes, consequences, comparisons, details. Each is a full question of its own, in the language of the
user's question, and none repeats it. Answer with a numbered list only:
1. ...
2. ..."""

_LINE = re.compile(r"^[0-9]\. ")


async def related_questions(question: str, model: ChatModel, options: ChatOptions = ChatOptions(temperature=0.9)) -> list[str]:  # noqa: B008
    """What the model proposes, in its order. Raises `ProviderError`."""
    reply = await model.complete((ChatMessage("system", INSTRUCTION), ChatMessage("user", question)), options)
    lines = (line.strip() for line in reply.text.splitlines())
    return [_LINE.sub("", line).strip() for line in lines if _LINE.match(line)]


def related_headings(question: str, chunks: Sequence[RankedChunk]) -> list[str]:
    """Without a model: the headings the chunks stand under, as searches to go on with. Those that only repeat the question are left out."""
    asked = set(terms(question))
    found: dict[str, None] = {}
    for ranked in chunks:
        for heading in reversed(ranked.chunk.headings):
            text = " ".join(heading.split())
            if text and len(text) <= HEADING_CHARACTERS and not set(terms(text)) <= asked:
                found.setdefault(text)
    return list(found)[:MAX_RELATED]
