"""What stands before a chunk when it is embedded. Apart from the chunk methods, so that a server need not load the parsers."""

from collections.abc import Sequence

MAX_CONTEXT_CHARACTERS = 300  # of what is put before a chunk when it is embedded: models read little


def embedding_text(document_name: str, headings: Sequence[str], content: str) -> str:
    """What is embedded for a chunk: where it stands, in few words, and its content."""
    title = document_name.rpartition(".")[0] or document_name
    context = "\n".join((title[: MAX_CONTEXT_CHARACTERS // 2], " > ".join(headings)[-MAX_CONTEXT_CHARACTERS // 2 :])).strip()
    return f"{context}\n{content}" if context else content
