"""Arranges what the datasets say about a question as a tree: drawn by the chat model, or from documents, headings and key sentences."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rag.flow.extract import best_quotes
from rag.flow.prompt import Window, build_prompt, characters_of
from rag.ports import ChatModel
from rag.threads import Lane, aside
from rag.types import ChatMessage, ChatOptions, RankedChunk

ROOT = "root"
MAX_DEPTH = 5
MAX_NODES = 200
LABEL_CHARACTERS = 120
KEY_SENTENCES = 12
OPTIONS = ChatOptions(temperature=0.2)

INSTRUCTION = """\
Draw a mind map of what the passages below say about the user's question, as a nested Markdown list:
- one short phrase an item, in the language of the passages
  - details below what they belong to, at most four levels deep
Use the passages only. Answer with the list and nothing else.

{knowledge}"""

_ITEM = re.compile(r"^(?P<indent>[ \t]*)(?:(?P<hashes>#{1,6})|[-*+•]|\d{1,3}[.)])\s+(?P<text>\S.*)$")


@dataclass(slots=True)
class Branch:
    """A node of the tree; `id` is its text."""

    id: str
    children: list["Branch"] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """`{"id": ..., "children": [...]}`, all the way down."""
        return {"id": self.id, "children": [child.as_dict() for child in self.children]}

    def child(self, text: str) -> "Branch":
        """The child of that text, made if there is none."""
        for child in self.children:
            if child.id == text:
                return child
        self.children.append(Branch(text))
        return self.children[-1]


async def gen_mindmap(
    question: str, chunks: Sequence[RankedChunk], model: ChatModel | None, count_tokens: Callable[[str], int], lane: Lane | None = None
) -> Branch:
    """The tree below a node "root"; without children when there are no chunks. The lane does the work on large texts.

    Raises `ProviderError`.
    """
    if not chunks:
        return Branch(ROOT)
    size = len(question) + characters_of(chunks)
    map_them = partial(map_of_documents, question, chunks)
    if model is None:
        return await aside(lane, size, map_them)
    build = partial(
        build_prompt,
        system=INSTRUCTION,
        variables={},
        messages=(ChatMessage("user", question),),
        chunks=chunks,
        cite=False,
        window=Window(model.context_tokens, None, count_tokens),
    )
    prompt = await aside(lane, size, build)
    tree = parse_outline((await model.complete(prompt.messages, OPTIONS)).text)
    return tree if tree.children else await aside(lane, size, map_them)


def parse_outline(markdown: str) -> Branch:
    """The tree of a Markdown outline: headings, and list items below them by indentation. Other lines are passed over."""
    root = Branch(ROOT)
    open_branches: list[tuple[int, Branch]] = [(-1, root)]
    nodes = 0
    for line in markdown.splitlines():
        item = _ITEM.match(line)
        if item is None or nodes == MAX_NODES:
            continue
        # headings stand above all items: 0 to 5; items by their indentation from 6 on
        level = len(item["hashes"]) - 1 if item["hashes"] else 6 + len(item["indent"].expandtabs(4))
        while open_branches[-1][0] >= level:
            open_branches.pop()
        if len(open_branches) > MAX_DEPTH:
            continue
        branch = Branch(_label(item["text"]))
        open_branches[-1][1].children.append(branch)
        open_branches.append((level, branch))
        nodes += 1
    return root


def map_of_documents(question: str, chunks: Sequence[RankedChunk]) -> Branch:
    """Without a model: documents, their headings, and below them the sentences that fit the question best."""
    root = Branch(ROOT)
    for ranked in chunks:
        _place(root, ranked)
    for quote in best_quotes(question, chunks, KEY_SENTENCES):
        _place(root, chunks[quote.chunk]).child(_label(quote.text))
    return root


def _place(root: Branch, ranked: RankedChunk) -> Branch:
    branch = root
    for text in (ranked.chunk.document_name, *ranked.chunk.headings[: MAX_DEPTH - 2]):
        branch = branch.child(_label(text))
    return branch


def _label(text: str) -> str:
    plain = re.sub(r"\s*\[ID:\d+\]|\*\*|__|`", "", text).strip()
    plain = " ".join(plain.split())
    return plain if len(plain) <= LABEL_CHARACTERS else plain[: LABEL_CHARACTERS - 1] + "…"
