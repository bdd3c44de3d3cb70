"""The pure half of reranking: URLs, cutting, placing, scaling, counting."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import ProviderBadReply, SettingsError
from rag.llm.cutting import cut, estimated_tokens, windows
from rag.llm.rerank_model import VENDORS, GPUStackRerank, LocalAIRerank, NvidiaRerank, OpenAI_APIRerank, VendorReranker, XInferenceRerank
from rag.llm.rerank_wire import join_url, placed_scores, scaled, token_count, total_tokens

OWN_SERVERS = (LocalAIRerank, GPUStackRerank, XInferenceRerank)
URLS = [
    ("http://h:8080", "http://h:8080/v1/rerank", "http://h:8080/rerank"),
    ("http://h:8080/", "http://h:8080/v1/rerank", "http://h:8080/rerank"),
    ("http://h:8080/v1", "http://h:8080/v1/rerank", "http://h:8080/v1/rerank"),
    ("http://h:8080/v1/", "http://h:8080/v1/rerank", "http://h:8080/v1/rerank"),
    ("https://gw/x/v1", "https://gw/x/v1/rerank", "https://gw/x/v1/rerank"),
    ("http://h/v1/rerank", "http://h/v1/rerank", "http://h/v1/rerank"),
    ("http://h/v1/rerank/", "http://h/v1/rerank", "http://h/v1/rerank"),
    ("http://h/reranker/v1", "http://h/reranker/v1/rerank", "http://h/reranker/v1/rerank"),
    ("http://h/v2", "http://h/v2/rerank", "http://h/v2/rerank"),
    ("http://user:secret@h/v1?tenant=7#top", "http://h/v1/rerank?tenant=7", "http://h/v1/rerank?tenant=7"),
]


@pytest.mark.parametrize(("given_url", "versioned", "plain"), URLS)
def test_the_rule_for_urls(given_url: str, versioned: str, plain: str) -> None:
    assert {vendor.url(given_url, "m") for vendor in OWN_SERVERS} == {versioned}
    assert OpenAI_APIRerank.url(given_url, "m") == plain


HOSTED = {
    "Jina": "https://api.jina.ai/v1/rerank",
    "NVIDIA": "https://ai.api.nvidia.com/v1/retrieval/nvidia/llama-3_2-nv-rerankqa-1b-v2/reranking",
    "SILICONFLOW": "https://api.siliconflow.cn/v1/rerank",
    "NovitaAI": "https://api.novita.ai/openai/v1/rerank",
    "GiteeAI": "https://ai.gitee.com/v1/rerank",
    "Jiekou.AI": "https://api.jiekou.ai/openai/v1/rerank",
}


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.provider)
def test_a_hosted_vendor_is_found_without_a_base_url_and_others_need_one(vendor: type[VendorReranker]) -> None:
    assert bool(vendor.default_base_url) == (vendor.provider in HOSTED)
    if vendor.default_base_url:
        assert vendor.url(vendor.default_base_url, "nvidia/llama-3.2-nv-rerankqa-1b-v2") == HOSTED[vendor.provider]


@pytest.mark.parametrize("vendor", [vendor for vendor in VENDORS if vendor.provider != "NVIDIA"], ids=lambda vendor: vendor.provider)
@pytest.mark.parametrize("host", ["https://h", "https://gw.example/x"])
def test_the_base_the_base_with_v1_and_the_whole_url_mean_the_same(vendor: type[VendorReranker], host: str) -> None:
    whole = f"{host}/{vendor.path}"
    given_urls = {whole, whole + "/"} | ({host, host + "/v1"} if vendor.path != "rerank" else {host})
    assert {vendor.url(url, "m") for url in given_urls} == {whole}


@pytest.mark.parametrize(
    ("base_url", "model", "url"),
    [
        ("https://ai.api.nvidia.com", "nvidia/nv-rerankqa-mistral-4b-v3", "/v1/retrieval/nvidia/nv-rerankqa-mistral-4b-v3/reranking"),
        ("https://ai.api.nvidia.com/v1", "nvidia/rerank-qa-mistral-4b", "/v1/retrieval/nvidia/reranking"),
        ("https://ai.api.nvidia.com/v1/retrieval/nvidia/", "nv-rerank-qa-mistral-4b:1", "/v1/retrieval/nvidia/reranking"),
        ("https://ai.api.nvidia.com/v1/retrieval/nvidia/reranking", "any", "/v1/retrieval/nvidia/reranking"),
        ("https://gw/x/v1/retrieval/nvidia", "nvidia/a-1.5", "/x/v1/retrieval/nvidia/a-1_5/reranking"),
        ("http://nim:8000", "nvidia/a-1.5", "/v1/ranking"),
        ("http://nim:8000/v1", "nvidia/a-1.5", "/v1/ranking"),
        ("http://nim:8000/v1/ranking", "nvidia/a-1.5", "/v1/ranking"),
    ],
)
def test_nvidia_has_a_path_for_each_model_and_a_nim_one_for_all(base_url: str, model: str, url: str) -> None:
    scheme, host = base_url.split("/")[0], base_url.split("/")[2]
    assert NvidiaRerank.url(base_url, model) == f"{scheme}//{host}{url}"


@pytest.mark.parametrize("base_url", ["", "h:8080", "ftp://h", "http://", "rerank"])
def test_what_is_no_url_is_refused(base_url: str) -> None:
    with pytest.raises(SettingsError):
        join_url(base_url, "v1/rerank")


scores_of_any_size = st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=80)


@given(scores_of_any_size, st.randoms())
def test_scores_are_placed_by_index_whatever_their_order(scores: list[float], dice) -> None:
    entries = [{"index": index, "score": score} for index, score in enumerate(scores)]
    dice.shuffle(entries)
    assert placed_scores(entries, len(scores), "score", "m").tolist() == scores


@given(scores_of_any_size, st.data())
def test_anything_but_each_index_once_is_refused(scores: list[float], data: st.DataObject) -> None:
    entries = [{"index": index, "score": score} for index, score in enumerate(scores)]
    spoiled = data.draw(st.integers(0, len(scores) - 1))
    other = data.draw(st.integers(-3, len(scores) + 3).filter(lambda index: index != spoiled))
    entries[spoiled] = {**entries[spoiled], "index": other}
    with pytest.raises(ProviderBadReply):
        placed_scores(entries, len(scores), "score", "m")


@given(
    scores_of_any_size,
    st.data(),
    st.sampled_from([math.nan, math.inf, -math.inf, None, "0.5", True, [0.5], {}]),
)
def test_anything_but_a_finite_number_is_refused(scores: list[float], data: st.DataObject, value: object) -> None:
    entries: list[dict] = [{"index": index, "score": score} for index, score in enumerate(scores)]
    entries[data.draw(st.integers(0, len(scores) - 1))]["score"] = value
    with pytest.raises(ProviderBadReply):
        placed_scores(entries, len(scores), "score", "m")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["index", "score", "x"]), inner, max_size=3),
    max_leaves=20,
)


@given(json_values, st.integers(1, 4))
def test_no_answer_at_all_breaks_the_reading(value: object, count: int) -> None:
    try:
        scores = placed_scores(value, count, "score", "m")
    except ProviderBadReply:
        return
    assert scores.shape == (count,)
    assert np.isfinite(scores).all()


@given(scores_of_any_size, st.booleans())
def test_scaling_keeps_the_order_and_the_range(scores: list[float], logits: bool) -> None:
    raw = np.array(scores)
    result = scaled(raw, logits=logits)
    assert result.dtype == np.float32
    assert bool(((result >= 0) & (result <= 1)).all())
    order = np.argsort(raw, kind="stable")
    assert bool((np.diff(result[order]) >= 0).all())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80))
def test_probabilities_stay_as_they_are(scores: list[float]) -> None:
    assert np.array_equal(scaled(np.array(scores)), np.array(scores, dtype=np.float32))


def test_a_logit_is_scaled_by_itself_not_by_its_neighbours() -> None:
    weak = scaled(np.array([-6.0, -7.0]))
    assert weak[0] == pytest.approx(1 / (1 + math.exp(6)))
    assert weak[0] == scaled(np.array([-6.0, 9.0]))[0]
    assert scaled(np.array([0.9, 1.5]))[1] > scaled(np.array([0.9, 1.5]))[0]


def test_a_rounded_one_is_no_logit() -> None:
    assert scaled(np.array([1.0000001, 0.5, -1e-9])).tolist() == [1.0, 0.5, 0.0]


def test_told_so_a_logit_within_the_range_is_one_too() -> None:
    assert scaled(np.array([0.0]), logits=True).tolist() == [0.5]


@pytest.mark.parametrize(
    ("reply", "tokens"),
    [
        ({"usage": {"total_tokens": 7, "prompt_tokens": 5}}, 7),
        ({"usage": {"prompt_tokens": 5}}, 5),
        ({"meta": {"tokens": {"input_tokens": 3}}}, 3),
        ({"meta": {"tokens": None, "billed_units": {"input_tokens": 4}}}, 4),
        ({"meta": {"billed_units": {"search_units": 1}}}, None),
        ({"tokens": {"input_tokens": 2}}, 2),
        ({"usage": {"total_tokens": "7"}}, None),
        ({"usage": {"total_tokens": True}}, None),
        ({"usage": {"total_tokens": -1}}, None),
        ({"usage": {"total_tokens": 0}}, 0),
        ({"usage": None}, None),
        ({}, None),
        ([{"index": 0}], None),
        (None, None),
    ],
)
def test_tokens_are_read_where_vendors_put_them_and_unknown_elsewhere(reply: object, tokens: int | None) -> None:
    assert token_count(reply) == tokens


def test_one_unknown_count_makes_the_sum_unknown() -> None:
    assert total_tokens([1, 2]) == 3
    assert total_tokens([1, None]) is None


@given(st.text(st.characters(codec="utf-8") | st.just("\ud800"), max_size=400), st.integers(1, 60))
def test_a_cut_text_fits_is_a_beginning_and_can_be_encoded(text: str, max_tokens: int) -> None:
    short = cut(text, max_tokens)
    assert estimated_tokens(short) <= max_tokens
    assert text.replace("\ud800", "?").startswith(short)
    short.encode()


def test_what_fits_is_not_cut() -> None:
    for text in ("word " * 30, "海" * 50, ""):
        assert cut(text, 50) == text


@given(st.text(), st.integers(1, 20))
def test_windows_leave_nothing_out(text: str, max_tokens: int) -> None:
    pieces = windows(text, max_tokens)
    assert "".join(pieces) == text.encode("utf-8", "replace").decode()
    assert all(piece or not text for piece in pieces)
    assert all(estimated_tokens(piece) <= max_tokens for piece in pieces)
