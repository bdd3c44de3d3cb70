"""One suite for the port `Embedder` over every implementation, and the remote one's own corners."""

import base64
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from load.vendor_simulator import Behaviour, VendorSimulator
from rag.errors import ProviderBadReply, ProviderUnreachable, Unavailable
from rag.llm.embedding_model import OpenAIEmbedder
from rag.llm.endpoint import Endpoint, openai_url
from rag.llm.local import LocalEmbedder
from rag.llm.model_directory import bundled_model_path
from rag.llm.resilience import Guard
from rag.llm.transport import Transport
from rag.ports import Embedder

Open = Callable[..., OpenAIEmbedder]
TEXTS = ["a", "Water boils at 100 °C.", "the cat sat on the mat " * 9, "Ein Satz auf Deutsch.", "水在一百度沸腾", "1", "x" * 500] * 4


@pytest.fixture
def open_remote(transport: Transport) -> Open:
    def make(base_url: str, **options: Any) -> OpenAIEmbedder:
        endpoint = Endpoint("tiny@Acme", openai_url(base_url, "embeddings"), timeout_seconds=20.0)
        tokenizer = bundled_model_path() / "tokenizer.json"
        return OpenAIEmbedder("tiny", endpoint, transport, Guard("tiny@Acme", 4, 20.0), tokenizer, **options)

    return make


@pytest.fixture(params=["local", "simulated", "llama.cpp"])
async def embedder(request: pytest.FixtureRequest, vendor: VendorSimulator, open_remote: Open) -> Embedder:
    match request.param:
        case "local":
            return request.getfixturevalue("minilm")
        case "simulated":
            return open_remote(vendor.base_url, max_batch=5)
    return open_remote(request.getfixturevalue("embedding_server"), max_batch=5)


class TestEveryEmbedder:
    async def test_a_query_is_one_unit_vector(self, embedder: Embedder) -> None:
        vector = await embedder.embed_query("when does water boil?")
        assert vector.shape == (embedder.dimension,)
        assert vector.dtype == np.float32
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)

    async def test_documents_come_in_the_order_given(self, embedder: Embedder) -> None:
        vectors = await embedder.embed_documents(TEXTS)
        assert vectors.shape == (len(TEXTS), embedder.dimension)
        assert vectors.dtype == np.float32
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
        alone = np.stack([await embedder.embed_query(text) for text in TEXTS[:7]])
        assert np.all((alone * vectors[:7]).sum(axis=1) > 1 - 1e-5)
        assert np.all((vectors[:7] * vectors[7:14]).sum(axis=1) > 1 - 1e-5)

    async def test_no_documents_give_no_rows(self, embedder: Embedder) -> None:
        await embedder.embed_query("so that the dimension is known")
        assert (await embedder.embed_documents([])).shape == (0, embedder.dimension)

    async def test_space_and_tokenizer_are_named(self, embedder: Embedder) -> None:
        await embedder.embed_query("so that the dimension is known")
        assert embedder.space
        assert embedder.tokenizer_path.is_file()
        assert 0.0 <= embedder.trust("hello") <= 1.0


async def test_the_local_model_and_llama_cpp_agree(minilm: LocalEmbedder, embedding_server: str, open_remote: Open) -> None:
    texts = ["when does water boil?", "the cat sat on the mat " * 9]
    cosines = (await minilm.embed_documents(texts) * await open_remote(embedding_server).embed_documents(texts)).sum(axis=1)
    assert np.all(cosines > 0.999)


def reply_with(*embeddings: Any, indexes: tuple[Any, ...] | None = None) -> Behaviour:
    data = [{"index": index, "embedding": row} for index, row in zip(indexes or range(len(embeddings)), embeddings, strict=True)]
    return Behaviour(reply=lambda body: {"data": data})


NAN = base64.b64encode(np.array([math.nan, 1.0], "<f4").tobytes()).decode()
BAD_REPLIES = {
    "too few": reply_with([1.0, 0.0]),
    "too many": reply_with([1.0, 0.0], [1.0, 0.0], [1.0, 0.0]),
    "doubled index": reply_with([1.0, 0.0], [1.0, 0.0], indexes=(0, 0)),
    "index out of range": reply_with([1.0, 0.0], [1.0, 0.0], indexes=(0, 2)),
    "negative index": reply_with([1.0, 0.0], [1.0, 0.0], indexes=(0, -1)),
    "no index": reply_with([1.0, 0.0], [1.0, 0.0], indexes=(0, None)),
    "uneven": reply_with([1.0, 0.0], [1.0]),
    "not a number": reply_with([1.0, 0.0], NAN),
    "all zeros": reply_with([1.0, 0.0], [0.0, 0.0]),
    "null": reply_with([1.0, 0.0], None),
    "empty": reply_with([], []),
    "strings": reply_with([1.0, 0.0], ["a", "b"]),
    "nested": reply_with([1.0, 0.0], [[1.0, 0.0]]),
    "bad base64": reply_with([1.0, 0.0], "***"),
    "half a float": reply_with([1.0, 0.0], "AAAA"),
    "no data": Behaviour(reply=lambda body: {}),
    "a list": Behaviour(reply=lambda body: []),
    "an entry that is none": Behaviour(reply=lambda body: {"data": [None, None]}),
}


@pytest.mark.parametrize("behaviour", BAD_REPLIES.values(), ids=BAD_REPLIES.keys())
async def test_a_wrong_reply_is_refused(vendor: VendorSimulator, open_remote: Open, behaviour: Behaviour) -> None:
    vendor.behaviour = behaviour
    with pytest.raises(ProviderBadReply, match="tiny@Acme"):
        await open_remote(vendor.base_url).embed_documents(["one", "two"])


async def test_another_dimension_than_the_configured_one_is_refused(vendor: VendorSimulator, open_remote: Open) -> None:
    embedder = open_remote(vendor.base_url, dimension=9)
    assert embedder.space == "tiny@Acme/9"
    with pytest.raises(ProviderBadReply, match="9"):
        await embedder.embed_query("hello")


async def test_a_dimension_that_changes_is_refused(vendor: VendorSimulator, open_remote: Open) -> None:
    embedder = open_remote(vendor.base_url)
    await embedder.embed_query("hello")
    vendor.behaviour = Behaviour(dimension=16)
    with pytest.raises(ProviderBadReply):
        await embedder.embed_query("hello")


async def test_the_dimension_is_unknown_until_the_endpoint_answered(vendor: VendorSimulator, open_remote: Open) -> None:
    embedder = open_remote(vendor.base_url)
    with pytest.raises(Unavailable):
        _ = embedder.dimension
    with pytest.raises(Unavailable):
        _ = embedder.space
    await embedder.warm()
    assert (embedder.dimension, embedder.space) == (8, "tiny@Acme/8")


async def test_decimal_numbers_are_read_like_base64(vendor: VendorSimulator, open_remote: Open) -> None:
    vendor.behaviour = reply_with([3.0, 4.0])
    assert (await open_remote(vendor.base_url).embed_query("hello")).tolist() == pytest.approx([0.6, 0.8])


async def test_batches_and_prompts_are_kept(vendor: VendorSimulator, open_remote: Open) -> None:
    embedder = open_remote(vendor.base_url, max_batch=2, query_prompt="query: ", document_prompt="passage: ")
    await embedder.embed_documents(["a", "b", "c"])
    await embedder.embed_query("q")
    assert [request.body["input"] for request in vendor.requests] == [["passage: a", "passage: b"], ["passage: c"], ["query: q"]]


async def test_a_vendor_that_is_gone_is_an_error_of_ours(open_remote: Open) -> None:
    async with VendorSimulator().listen() as closed:
        pass
    with pytest.raises(ProviderUnreachable, match="tiny@Acme"):
        await open_remote(closed.base_url).embed_query("hello")


async def test_a_text_longer_than_the_model_reads_is_the_mean_of_its_windows(open_remote: Open, vendor: VendorSimulator) -> None:
    embedder = open_remote(vendor.base_url, context_tokens=108, max_batch=2, document_prompt="")
    long = "a" * 300 + "b" * 300 + "c" * 150
    vectors = await embedder.embed_documents(["short", long, ""])
    assert [request.body["input"] for request in vendor.requests] == [["short", "a" * 300], ["b" * 300, "c" * 150], [""]]
    assert vectors.shape == (3, 8)
    parts = await embedder.embed_documents(["a" * 300, "b" * 300, "c" * 150])
    mean = np.average(parts, axis=0, weights=[2, 2, 1])
    assert vectors[1] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


async def test_of_a_question_longer_than_the_model_reads_the_beginning_counts(open_remote: Open, vendor: VendorSimulator) -> None:
    embedder = open_remote(vendor.base_url, context_tokens=110, query_prompt="query:")
    await embedder.embed_query("when " * 1_000_000)
    assert vendor.requests[0].body["input"] == ["query:" + ("when " * 100)[:300]]
