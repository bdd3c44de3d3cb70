"""rag/llm/remembered.py: a question's vector is asked for once, and belongs to its space, prompt and text."""

from pathlib import Path

import numpy as np
import pytest

from rag.cache.local import LocalCache
from rag.errors import ProviderUnreachable, Unavailable
from rag.llm.remembered import RememberingEmbedder


class Counting:
    """An embedder that counts how often it is asked."""

    name, dimension, tokenizer_path = "counting", 3, Path("tokenizer.json")

    def __init__(self, space: str = "counting/1") -> None:
        self.known_space: str | None = space
        self.asked: list[str] = []
        self.fails = False

    @property
    def space(self) -> str:
        if self.known_space is None:
            raise Unavailable("not known yet")
        return self.known_space

    async def warm(self) -> None:
        self.asked.append("warm")

    async def embed_query(self, text: str) -> np.ndarray:
        self.asked.append(text)
        if self.fails:
            raise ProviderUnreachable("down")
        return np.array([1.0, len(text), len(self.asked)], dtype=np.float32)

    async def embed_documents(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return np.ones((len(texts), 3), dtype=np.float32)

    def trust(self, text: str) -> float:
        return 0.5


@pytest.fixture
def cache() -> LocalCache:
    return LocalCache(1 << 20)


def remembering(inner: Counting, cache: LocalCache, prompt: str = "", told: list[tuple[str, bool]] | None = None) -> RememberingEmbedder:
    seen = told if told is not None else []
    return RememberingEmbedder(inner, cache, prompt, lambda name, hit: seen.append((name, hit)))  # type: ignore[arg-type]


async def test_a_question_asked_again_has_the_same_vector_and_is_not_embedded(cache: LocalCache) -> None:
    inner, told = Counting(), []
    embedder = remembering(inner, cache, told=told)
    first, second = [await embedder.embed_query("what boils?") for _ in range(2)]
    assert np.array_equal(first, second)
    assert second.dtype == np.float32
    assert not second.flags.writeable
    assert inner.asked == ["what boils?"]
    assert told == [("vector", False), ("vector", True)]


async def test_another_text_space_or_prompt_is_another_question(cache: LocalCache) -> None:
    embedders = [remembering(Counting(), cache), remembering(Counting("counting/2"), cache), remembering(Counting(), cache, "query: ")]
    for embedder in embedders:
        for text in ("a", "A", "a ", "\ud800"):
            await embedder.embed_query(text)
        assert len(embedder._embedder.asked) == 4


async def test_a_failure_is_not_remembered(cache: LocalCache) -> None:
    inner = Counting()
    embedder = remembering(inner, cache)
    inner.fails = True
    with pytest.raises(ProviderUnreachable):
        await embedder.embed_query("a")
    inner.fails = False
    assert (await embedder.embed_query("a"))[1] == 1.0


async def test_a_vector_of_another_length_is_a_miss(cache: LocalCache) -> None:
    inner = Counting()
    embedder = remembering(inner, cache)
    await cache.put(embedder._key("a"), b"\x00" * 7, 60)
    assert len(await embedder.embed_query("a")) == 3
    assert inner.asked == ["a"]


async def test_an_endpoint_of_which_the_space_is_not_known_is_asked(cache: LocalCache) -> None:
    inner = Counting()
    inner.known_space = None
    embedder = remembering(inner, cache)
    for _ in range(2):
        await embedder.embed_query("a")
    assert inner.asked == ["a", "a"]


async def test_everything_else_is_the_embedders(cache: LocalCache) -> None:
    inner = Counting()
    embedder = remembering(inner, cache)
    await embedder.warm()
    assert (await embedder.embed_documents(["x", "y"])).shape == (2, 3)
    assert (embedder.trust("x"), embedder.dimension, embedder.space, embedder.name) == (0.5, 3, "counting/1", "counting")
    assert inner.asked == ["warm", "x", "y"]
