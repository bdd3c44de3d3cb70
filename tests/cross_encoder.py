"""A real cross-encoder for the tests: the bundled MiniLM's six layers, with a head of random weights.

It has the size, the speed and the inputs of the cross-encoders people use; its judgement is random, but always the same. The
graph is made of ONNX's plain operators, as Optimum exports it.
"""

import json
import shutil
from pathlib import Path

import numpy as np

from rag.llm.bert_graph import Safetensors
from rag.llm.model_directory import bundled_model_path
from rag.llm.onnx_file import FLOAT, INT64, OnnxWriter

WIDTH, HEADS, LAYERS, EPSILON = 384, 12, 6, 1e-12


def make_cross_encoder(directory: Path) -> Path:
    """Write the model into the directory (90 MB), as sentence-transformers lays it out."""
    source = bundled_model_path()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, directory / name)
    config = json.loads((source / "config.json").read_text("utf-8")) | {"id2label": {"0": "LABEL_0"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "onnx").mkdir()
    with (source / "model.safetensors").open("rb") as file, (directory / "onnx" / "weights.bin").open("wb") as weights:
        graph = _Graph(OnnxWriter(weights, "weights.bin"), Safetensors(file)).build()
    (directory / "onnx" / "model.onnx").write_bytes(graph)
    return directory


def head() -> tuple[np.ndarray, np.ndarray]:
    """The head's weights, float32 `[384, 384]` and `[384, 1]`."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal((WIDTH, WIDTH)) * 0.2).astype(np.float32), (rng.standard_normal((WIDTH, 1)) * 0.3).astype(np.float32)


class _Graph:
    def __init__(self, out: OnnxWriter, tensors: Safetensors) -> None:
        self._out = out
        self._tensors = tensors

    def build(self) -> bytes:
        out = self._out
        hidden, mask = self._embeddings(), self._mask()
        for layer in range(LAYERS):
            hidden = self._layer(f"encoder.layer.{layer}.", hidden, mask)
        first = out.node("Gather", [hidden, out.constant("first", np.array(0))], axis=1)
        dense, last = head()
        pooled = out.node("Tanh", [out.node("MatMul", [first, out.weight("head.dense", dense)])])
        out.node("MatMul", [pooled, out.weight("head.last", last)], output="logits")
        shape = ("batch", "tokens")
        inputs = [(name, INT64, shape) for name in ("input_ids", "attention_mask", "token_type_ids")]
        return out.model(inputs=inputs, outputs=[("logits", FLOAT, ("batch", 1))])

    def _embeddings(self) -> str:
        out = self._out
        words = out.node("Gather", [self._weight("embeddings.word_embeddings.weight"), "input_ids"], axis=0)
        kinds = out.node("Gather", [self._weight("embeddings.token_type_embeddings.weight"), "token_type_ids"], axis=0)
        length = out.node("Slice", [out.node("Shape", ["input_ids"]), self._ints("1", [1]), self._ints("2", [2])])
        table = self._weight("embeddings.position_embeddings.weight")
        places = out.node("Slice", [table, self._ints("0", [0]), length, self._ints("0", [0])])
        total = out.node("Add", [out.node("Add", [words, kinds]), places])
        return self._normed("embeddings.LayerNorm", total)

    def _mask(self) -> str:
        """0 for a token, a large negative number for padding, `[batch, 1, 1, tokens]`."""
        out = self._out
        real = out.node("Unsqueeze", [out.node("Cast", ["attention_mask"], to=FLOAT), self._ints("1 2", [1, 2])])
        return out.node("Mul", [out.node("Sub", [real, out.constant("one", 1.0)]), out.constant("far", 1e9)])

    def _layer(self, prefix: str, hidden: str, mask: str) -> str:
        attended = self._attention(prefix + "attention.self.", hidden, mask)
        hidden = self._residual(prefix + "attention.output.", attended, hidden)
        wide = self._project(prefix + "intermediate.dense", hidden)
        erf = self._out.node("Erf", [self._out.node("Mul", [wide, self._out.constant("root", float(0.5**0.5))])])
        gate = self._out.node("Add", [erf, self._out.constant("one", 1.0)])
        activated = self._out.node("Mul", [self._out.node("Mul", [wide, gate]), self._out.constant("half", 0.5)])
        return self._residual(prefix + "output.", activated, hidden)

    def _attention(self, prefix: str, hidden: str, mask: str) -> str:
        out = self._out
        split = self._ints("split", [0, 0, HEADS, WIDTH // HEADS])
        query, key, value = (
            out.node("Transpose", [out.node("Reshape", [self._project(prefix + name, hidden), split])], perm=order)
            for name, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3]))
        )
        scores = out.node("Mul", [out.node("MatMul", [query, key]), out.constant("scale", float((WIDTH // HEADS) ** -0.5))])
        weights = out.node("Softmax", [out.node("Add", [scores, mask])], axis=-1)
        mixed = out.node("Transpose", [out.node("MatMul", [weights, value])], perm=[0, 2, 1, 3])
        return out.node("Reshape", [mixed, self._ints("join", [0, 0, WIDTH])])

    def _residual(self, prefix: str, inner: str, skipped: str) -> str:
        return self._normed(prefix + "LayerNorm", self._out.node("Add", [self._project(prefix + "dense", inner), skipped]))

    def _project(self, name: str, hidden: str) -> str:
        weights = self._out.weight(name + ".weight", self._tensors[name + ".weight"].T)  # safetensors keep [out, in]
        return self._out.node("Add", [self._out.node("MatMul", [hidden, weights]), self._weight(name + ".bias")])

    def _normed(self, name: str, hidden: str) -> str:
        inputs = [hidden, self._weight(name + ".weight"), self._weight(name + ".bias")]
        return self._out.node("LayerNormalization", inputs, axis=-1, epsilon=EPSILON)

    def _weight(self, name: str) -> str:
        return self._out.weight(name, self._tensors[name])

    def _ints(self, name: str, values: list[int]) -> str:
        return self._out.constant(name, np.array(values))
