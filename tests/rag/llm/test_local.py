"""The local embedder: exactness against a reference in numpy, user directories, loading, memory of queries."""

import asyncio
import json
import math
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from rag.errors import Overloaded, SettingsError
from rag.llm.bert_graph import Safetensors, cached_graph
from rag.llm.encoder import MAX_WINDOWS
from rag.llm.local import LocalEmbedder, length_sorted_batches
from rag.llm.model_directory import bundled_model_path, read_model_directory
from rag.threads import Lane

BUNDLED = bundled_model_path()
CONFIG = json.loads((BUNDLED / "config.json").read_text("utf-8"))
TEXTS = [
    "when does water boil?",
    "Naïve café — 水 \u0000 emoji 😀",
    "",
    "the quick brown fox jumps over the lazy dog " * 28,  # 254 tokens: as much as the model reads at once
    "a",
]


def reference_embedding(text: str) -> np.ndarray:
    """all-MiniLM-L6-v2 written down plainly in float64, one text at a time, from the model's description."""
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    ids = tokenizer.encode(text).ids
    with (BUNDLED / "model.safetensors").open("rb") as file:
        tensors = Safetensors(file)

        def weight(name: str) -> np.ndarray:
            return tensors[name].astype(np.float64)

        def dense(x: np.ndarray, name: str) -> np.ndarray:
            return x @ weight(name + ".weight").T + weight(name + ".bias")

        def norm(x: np.ndarray, name: str) -> np.ndarray:
            centred = x - x.mean(axis=-1, keepdims=True)
            scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + CONFIG["layer_norm_eps"])
            return scaled * weight(name + ".weight") + weight(name + ".bias")

        x = weight("embeddings.word_embeddings.weight")[ids] + weight("embeddings.position_embeddings.weight")[: len(ids)]
        x = norm(x + weight("embeddings.token_type_embeddings.weight")[0], "embeddings.LayerNorm")
        for layer in range(CONFIG["num_hidden_layers"]):
            name = f"encoder.layer.{layer}."
            heads = [
                dense(x, f"{name}attention.self.{part}").reshape(len(ids), CONFIG["num_attention_heads"], -1).transpose(1, 0, 2)
                for part in ("query", "key", "value")
            ]
            scores = heads[0] @ heads[1].transpose(0, 2, 1) / np.sqrt(heads[0].shape[-1])
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            shares /= shares.sum(axis=-1, keepdims=True)
            attended = (shares @ heads[2]).transpose(1, 0, 2).reshape(len(ids), -1)
            x = norm(dense(attended, name + "attention.output.dense") + x, name + "attention.output.LayerNorm")
            inner = dense(x, name + "intermediate.dense")
            inner = inner * 0.5 * (1 + _erf(inner / np.sqrt(2)))
            x = norm(dense(inner, name + "output.dense") + x, name + "output.LayerNorm")
    mean = x.mean(axis=0)
    return mean / np.linalg.norm(mean)


_erf = np.vectorize(math.erf)


async def test_vectors_equal_the_reference(minilm: LocalEmbedder) -> None:
    expected = np.stack([reference_embedding(text) for text in TEXTS])
    batched = await minilm.embed_documents(TEXTS)
    single = np.stack([await minilm.embed_query(text) for text in TEXTS])
    for vectors in (batched, single):
        cosines = (vectors * expected).sum(axis=1)  # weights and activations are in 8 bits
        assert cosines.mean() > 0.998
        assert cosines.min() > 0.996
    assert np.abs(batched - single).max() < 1e-5


async def test_like_meanings_are_near(minilm: LocalEmbedder) -> None:
    query = await minilm.embed_query("How hot must water be to boil?")
    near, far = await minilm.embed_documents(["Water boils at 100 degrees Celsius.", "The cat sat on the mat."])
    assert query @ near > query @ far + 0.4


async def test_a_text_that_is_no_utf8_is_embedded(minilm: LocalEmbedder) -> None:
    assert np.isfinite(await minilm.embed_query("half a pair: \ud83d")).all()


async def test_a_text_longer_than_the_model_reads_is_the_mean_of_its_windows_by_length(minilm: LocalEmbedder) -> None:
    full, rest = "water " * 254, "the mill"  # one token a word, and two special ones a window: 256 and 4
    whole, first, second = await minilm.embed_documents([full + rest, full, rest])
    expected = first * 256 + second * 4
    assert whole @ (expected / np.linalg.norm(expected)) == pytest.approx(1.0, abs=1e-5)
    assert await minilm.embed_query(full + rest) @ whole == pytest.approx(1.0, abs=1e-5)


async def test_a_text_of_millions_of_characters_takes_no_longer(minilm: LocalEmbedder) -> None:
    vectors = await minilm.embed_documents(["word " * 2_000_000, "word " * (MAX_WINDOWS * 254)])
    assert vectors[0] @ vectors[1] == pytest.approx(1.0, abs=1e-5)


async def test_no_texts_are_no_vectors(minilm: LocalEmbedder) -> None:
    assert (await minilm.embed_documents([])).shape == (0, 384)


def test_the_model_does_not_trust_itself_with_other_languages(minilm: LocalEmbedder) -> None:
    assert minilm.trust("when does water boil? 100!") == 1.0
    assert minilm.trust("水什么时候沸腾") == 0.0
    assert minilm.trust("café") == 0.75
    assert minilm.trust("42") == 1.0


Open = Callable[..., LocalEmbedder]


@pytest.fixture
def open_local(query_lane: Lane, document_lane: Lane, graph_cache: Path) -> Open:
    def make(directory: Path = BUNDLED, cache_dir: Path = graph_cache, lane: Lane | None = None, **options: Any) -> LocalEmbedder:
        read = read_model_directory(directory, **{key: options.pop(key) for key in ("pooling", "query_prompt") if key in options})
        return LocalEmbedder("mine", read, cache_dir, lane or query_lane, lane or document_lane, **options)

    return make


async def test_a_full_lane_refuses(open_local: Open) -> None:
    lane = Lane("tiny", 1, 0)
    embedder = open_local(lane=lane)
    try:
        await embedder.warm()
        results = await asyncio.gather(*(embedder.embed_documents(["text"] * 300) for _ in range(2)), return_exceptions=True)
        assert [type(result) for result in results].count(Overloaded) == 1
    finally:
        lane.close()


async def test_pooling_and_prompts_of_a_directory_change_the_space_and_the_vectors(open_local: Open) -> None:
    plain, prompted, first_token = open_local(), open_local(query_prompt="query: "), open_local(pooling="cls")
    assert len({plain.space, prompted.space, first_token.space}) == 3
    assert np.array_equal(await prompted.embed_query("water"), await plain.embed_query("query: water"))
    assert await first_token.embed_query("water") @ await plain.embed_query("water") < 0.999


@pytest.fixture
def user_directory(tmp_path: Path, graph_cache: Path) -> Path:
    """A directory as optimum exports it: `onnx/model.onnx`, no safetensors."""
    target = tmp_path / "mine"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json", "modules.json"):
        target.mkdir(exist_ok=True)
        shutil.copy(BUNDLED / name, target / name)
    shutil.copytree(BUNDLED / "1_Pooling", target / "1_Pooling")
    graph = cached_graph(BUNDLED / "model.safetensors", CONFIG, graph_cache)
    shutil.copytree(graph.parent, target / "onnx")
    return target


async def test_a_users_onnx_directory_gives_the_same_vectors(open_local: Open, user_directory: Path, minilm: LocalEmbedder) -> None:
    mine = open_local(user_directory)
    assert np.array_equal(await mine.embed_query("water"), await minilm.embed_query("water"))


REFUSED = {
    "a Dense module": ("modules.json", [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], "Dense"),
    "two poolings": ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls\\+mean"),
    "an unknown pooling": ("1_Pooling/config.json", {"pooling_mode": "attention"}, "attention"),
    "no pooling": ("1_Pooling/config.json", {}, "no pooling"),
    "a prompt left out of the pooling": ("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
    "no size": ("config.json", {"model_type": "bert"}, "hidden_size"),
    "a list for a config": ("config.json", [], "JSON object"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_understood_stops_the_start(user_directory: Path, name: str, content: Any, message: str) -> None:
    (user_directory / name).write_text(json.dumps(content), "utf-8")
    with pytest.raises(SettingsError, match=message):
        read_model_directory(user_directory)


@pytest.mark.parametrize("missing", ["tokenizer.json", "onnx"])
def test_a_directory_without_its_parts_is_refused(user_directory: Path, missing: str) -> None:
    path = user_directory / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(SettingsError):
        read_model_directory(user_directory)


async def test_a_damaged_model_is_refused_without_a_crash(open_local: Open, user_directory: Path) -> None:
    (user_directory / "onnx/model.onnx").write_bytes(b"not a model")
    with pytest.raises(SettingsError, match="cannot load"):
        await open_local(user_directory).warm()


def test_another_architecture_needs_its_own_graph(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="model_type"):
        cached_graph(BUNDLED / "model.safetensors", CONFIG | {"model_type": "deberta"}, tmp_path)


def _build(cache_dir: Path, start: Any) -> None:
    start.wait()
    cached_graph(BUNDLED / "model.safetensors", CONFIG, cache_dir)


def test_two_processes_build_the_graph_at_once_and_leave_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    builders = [context.Process(target=_build, args=(tmp_path, start)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    (left,) = tmp_path.iterdir()
    assert sorted(path.name for path in left.iterdir()) == ["model.onnx", "weights.bin"]


def test_batches_hold_every_text_once_and_little_padding() -> None:
    lengths = [3, 250, 5, 120, 7, 256, 2000, 4]
    batches = list(length_sorted_batches(lengths, 512))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert batches[0] == [6]
    assert all(len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 512 for batch in batches)
