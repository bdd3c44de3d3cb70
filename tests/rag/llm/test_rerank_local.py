"""The local cross-encoder: a model directory small enough to be computed by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from rag.deadline import within
from rag.errors import DeadlineExceeded, InvalidArgument, ProviderError, SettingsError
from rag.llm.local import BATCH_TOKENS
from rag.llm.onnx_file import FLOAT, INT64, OnnxWriter
from rag.llm.rerank_local import LocalReranker, read_cross_encoder

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "warm": 4, "sea": 5, "cold": 6}
WEIGHTS = np.array([99.0, -0.25, 0.5, 0.125, 1.0, 2.0, -3.0], dtype=np.float32)
MAX_TOKENS = 24

Builder = Callable[..., Path]


@pytest.fixture
def directory(tmp_path: Path) -> Builder:
    def build(config: dict[str, Any] | None = None, *, output: str = "logits", weights: np.ndarray = WEIGHTS) -> Path:
        tokenizer = Tokenizer(WordLevel(VOCABULARY, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer.enable_padding(length=MAX_TOKENS)
        tokenizer.enable_truncation(7)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "config.json").write_text(
            json.dumps({"id2label": {"0": "LABEL_0"}, "max_position_embeddings": MAX_TOKENS} | (config or {}))
        )
        (tmp_path / "onnx").mkdir(exist_ok=True)
        with (tmp_path / "onnx" / "weights.bin").open("wb") as file:
            (tmp_path / "onnx" / "model.onnx").write_bytes(_graph(OnnxWriter(file, "weights.bin"), weights, output))
        return tmp_path

    return build


def _graph(out: OnnxWriter, weights: np.ndarray, output: str) -> bytes:
    """The sum of the text's tokens' weights less a hundredth of the query's: it needs all three inputs to be right."""
    shape = ("batch", "tokens")
    found = out.node("Gather", [out.weight("weights", weights), "input_ids"], axis=0)
    kinds = out.node("Cast", ["token_type_ids"], to=FLOAT)
    mask = out.node("Cast", ["attention_mask"], to=FLOAT)
    signed = out.node("Sub", [out.node("Mul", [kinds, out.constant("scale", 1.01)]), out.constant("query", 0.01)])
    signed = out.node("Mul", [out.node("Mul", [found, signed]), mask])
    out.node("ReduceSum", [signed, out.constant("axis", np.array([1]))], output=output, keepdims=1)
    inputs = [(name, INT64, shape) for name in ("input_ids", "attention_mask", "token_type_ids")]
    return out.model(inputs=inputs, outputs=[(output, FLOAT, ("batch", 1))])


def expected(query: str, text: str) -> float:
    def total(words: str) -> float:
        return sum(float(WEIGHTS[VOCABULARY.get(word, 1)]) for word in words.split())

    logit = total(text) + 0.125 - 0.01 * (0.5 + total(query) + 0.125)
    return 1 / (1 + np.exp(-logit))


def open_reranker(path: Path, context_tokens: int = 512) -> LocalReranker:
    return LocalReranker("tiny@Local", read_cross_encoder(path), context_tokens)


TEXTS = ["warm sea", "cold", "sea cold warm warm warm", "", "unknown words", "warm"]


def test_query_and_text_are_read_as_a_pair_and_scored_in_the_order_given(directory: Builder) -> None:
    scores, tokens = open_reranker(directory()).similarity("warm sea", TEXTS)
    assert scores.dtype == np.float32
    assert scores.tolist() == pytest.approx([expected("warm sea", text) for text in TEXTS], abs=1e-5)
    assert tokens == sum(len(text.split()) + 2 + 3 for text in TEXTS)


def test_many_texts_are_read_in_several_batches(directory: Builder) -> None:
    texts = [" ".join(["warm"] * (number % 9)) for number in range(BATCH_TOKENS // 4)]
    scores, _ = open_reranker(directory()).similarity("sea", texts)
    assert scores.tolist() == pytest.approx([expected("sea", text) for text in texts], abs=1e-5)


def test_a_long_text_is_cut_and_a_long_query_leaves_it_half(directory: Builder) -> None:
    reranker = open_reranker(directory(), context_tokens=12)
    _, tokens = reranker.similarity("sea " * 100, ["warm " * 100])
    assert tokens == 12
    scores, _ = reranker.similarity("sea " * 100, ["cold", "warm"])
    assert scores[1] > scores[0]
    assert reranker.similarity("sea", ["warm " * 10_000_000])[1] == 12


def test_the_models_own_limit_holds(directory: Builder) -> None:
    assert open_reranker(directory(), context_tokens=100_000).similarity("sea", ["warm " * 100])[1] == MAX_TOKENS


def test_any_characters_are_read(directory: Builder) -> None:
    scores, _ = open_reranker(directory()).similarity("half \ud83c", ["\ud800 海", "\x00"])
    assert np.isfinite(scores).all()


def test_no_texts_load_no_model(tmp_path: Path, directory: Builder) -> None:
    reranker = open_reranker(directory())
    (tmp_path / "onnx" / "model.onnx").unlink()
    scores, tokens = reranker.similarity("sea", [])
    assert (scores.shape, tokens) == ((0,), 0)
    with pytest.raises(ProviderError, match=r"^model tiny@Local cannot be loaded$"):
        reranker.similarity("sea", ["warm"])


def test_an_empty_query_is_refused(directory: Builder) -> None:
    with pytest.raises(InvalidArgument):
        open_reranker(directory()).similarity(" ", ["warm"])


def test_work_for_a_caller_who_is_gone_stops(directory: Builder) -> None:
    with within(-1.0), pytest.raises(DeadlineExceeded):
        open_reranker(directory()).similarity("sea", ["warm"])


def test_a_score_that_is_not_a_number_is_an_error(directory: Builder) -> None:
    weights = WEIGHTS.copy()
    weights[VOCABULARY["cold"]] = np.nan
    with pytest.raises(ProviderError, match="finite"):
        open_reranker(directory(weights=weights)).similarity("sea", ["warm", "cold"])


@pytest.mark.parametrize(
    ("config", "message"),
    [({"id2label": {"0": "no", "1": "yes"}}, "2 labels"), ({"num_labels": 3}, "3 labels")],
)
def test_a_classifier_is_no_reranker(directory: Builder, config: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_cross_encoder(directory(config))


@pytest.mark.parametrize("missing", ["tokenizer.json", "onnx/model.onnx"])
def test_a_directory_that_lacks_something_stops_the_start(directory: Builder, missing: str) -> None:
    path = directory()
    (path / missing).unlink()
    with pytest.raises(SettingsError, match=r"tokenizer|onnx"):
        read_cross_encoder(path)


def test_an_output_that_is_not_understood_is_no_score(directory: Builder) -> None:
    with pytest.raises(ProviderError, match="cannot be loaded"):
        open_reranker(directory(output="hidden")).similarity("sea", ["warm"])
