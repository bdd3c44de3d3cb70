"""The process's token counters, one a tokenizer file: loading one takes long, and all that it has counted makes it faster."""

from functools import cache
from pathlib import Path

from rag.nlp.tokens import TokenCounter


@cache
def token_counter(tokenizer_path: Path) -> TokenCounter:
    """The counter for the file. The first call reads it: off the event loop (api/warmup.py does so for the default model)."""
    return TokenCounter(tokenizer_path)
