"""Turns a BERT encoder's safetensors into an ONNX graph, once, into a cache directory.

The graph takes `input_ids` and `attention_mask` (int64 `[batch, tokens]`) and gives `token_embeddings` (float32
`[batch, tokens, hidden]`); all tokens count as the first segment. The operators are onnxruntime's fused ones
(MultiHeadAttention, SkipLayerNormalization, BiasGelu), which compute what the plain ones do. The projections' weights are kept
in 8 bits with a scale for each block of 64 (MatMulNBits): a question's dozen tokens take as long as it takes to read the weights,
and these are a quarter of the fp32 ones. The vectors' cosine with fp32's is 0.9994 in the mean (docs/adr/0027-eight-bit-weights.md).

BERT: https://arxiv.org/abs/1810.04805. safetensors: https://huggingface.co/docs/safetensors/index#format.
"""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from rag.errors import SettingsError
from rag.llm.onnx_file import FLOAT, INT32, INT64, MICROSOFT_DOMAIN, OnnxWriter

BUILDER_VERSION = 2

_GRAPH_NAME = "model.onnx"
_WEIGHTS_NAME = "weights.bin"
_NUMPY_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_HASH_BLOCK_BYTES = 1 << 20
_WEIGHT_BITS, _WEIGHT_BLOCK = 8, 64
_INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level


def cached_graph(weights_path: Path, config: Mapping[str, Any], cache_dir: Path) -> Path:
    """The graph's file in `cache_dir`, built now unless it is there. Blocking, about a second the first time.

    `config` is the model's `config.json`. Any number of processes may build at the same time: each writes a directory of its
    own and the first one to rename it wins. Raises `SettingsError` when the model is not a plain BERT.
    """
    _check_architecture(weights_path, config)
    home = cache_dir / f"bert-{file_digest(weights_path)[:16]}-v{BUILDER_VERSION}"
    graph = home / _GRAPH_NAME
    if graph.is_file():
        return graph
    cache_dir.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=cache_dir))
    try:
        _write_graph(weights_path, config, building)
        try:
            building.rename(home)
        except OSError:
            if not graph.is_file():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return graph


def file_digest(path: Path) -> str:
    """32 hex digits that name the file's bytes (XXH3-128)."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _check_architecture(weights_path: Path, config: Mapping[str, Any]) -> None:
    expected = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    for key, wanted in expected.items():
        found = config.get(key, wanted if key != "model_type" else None)
        if found != wanted:
            raise SettingsError(f"{weights_path.parent}: cannot build a graph for {key} {found!r}; bring an onnx/model.onnx")


def _write_graph(weights_path: Path, config: Mapping[str, Any], directory: Path) -> None:
    with weights_path.open("rb") as source, (directory / _WEIGHTS_NAME).open("wb") as target:
        tensors = Safetensors(source)
        graph = _BertGraph(OnnxWriter(target, _WEIGHTS_NAME), tensors, config).build()
        target.flush()
        os.fsync(target.fileno())
    with (directory / _GRAPH_NAME).open("wb") as file:
        file.write(graph)
        file.flush()
        os.fsync(file.fileno())


class Safetensors:
    """The tensors of an open safetensors file, read one at a time, as float32. A leading `bert.` in names is dropped."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        self._data_start = 8 + header_bytes
        header = json.loads(file.read(header_bytes))
        self._entries = {name.removeprefix("bert."): entry for name, entry in header.items() if name != "__metadata__"}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._entries:
            raise SettingsError(f"{self._file.name}: tensor {name} is missing")
        entry = self._entries[name]
        if entry["dtype"] not in _NUMPY_TYPES:
            raise SettingsError(f"{self._file.name}: tensor {name} has type {entry['dtype']}, not one of {', '.join(_NUMPY_TYPES)}")
        begin, end = entry["data_offsets"]
        self._file.seek(self._data_start + begin)
        raw = np.frombuffer(self._file.read(end - begin), dtype=_NUMPY_TYPES[entry["dtype"]])
        return raw.reshape(entry["shape"]).astype(np.float32, copy=False)


class _BertGraph:
    """Emits one encoder. Each method adds a part of the network and returns the name of its output."""

    def __init__(self, writer: OnnxWriter, tensors: Safetensors, config: Mapping[str, Any]) -> None:
        self._out = writer
        self._tensors = tensors
        self._layers = int(config["num_hidden_layers"])
        self._heads = int(config["num_attention_heads"])
        self._hidden = int(config["hidden_size"])
        self._epsilon = float(config["layer_norm_eps"])

    def build(self) -> bytes:
        """The model file; the weights are written by then."""
        hidden = self._embeddings()
        mask = self._out.node("Cast", ["attention_mask"], to=INT32)
        for layer in range(self._layers):
            hidden = self._layer(f"encoder.layer.{layer}.", hidden, mask, output="token_embeddings" if layer == self._layers - 1 else None)
        shape = ("batch", "tokens")
        return self._out.model(
            inputs=[("input_ids", INT64, shape), ("attention_mask", INT64, shape)],
            outputs=[("token_embeddings", FLOAT, (*shape, self._hidden))],
        )

    def _embeddings(self) -> str:
        words = self._weight("embeddings.word_embeddings.weight")
        # The segment is always the first one, so its vector can be added to the positions beforehand.
        places = self._tensors["embeddings.position_embeddings.weight"] + self._tensors["embeddings.token_type_embeddings.weight"][0]
        positions = self._out.weight("positions", places)
        zero, one = self._out.constant("zero", np.array([0])), self._out.constant("one", np.array([1]))
        length = self._out.node("Gather", [self._out.node("Shape", ["input_ids"]), one], axis=0)
        used = self._out.node("Slice", [positions, zero, length, zero])
        found = self._out.node("Gather", [words, "input_ids"], axis=0)
        summed = self._out.node("Add", [found, used])
        norm = [self._weight(f"embeddings.LayerNorm.{part}") for part in ("weight", "bias")]
        return self._out.node("LayerNormalization", [summed, *norm], axis=-1, epsilon=self._epsilon)

    def _layer(self, prefix: str, hidden: str, mask: str, output: str | None) -> str:
        attended = self._residual(prefix + "attention.output.", self._attention(prefix + "attention.self.", hidden, mask), hidden)
        wide = self._project(prefix + "intermediate.dense", attended)
        activated = self._out.node("BiasGelu", [wide, self._weight(prefix + "intermediate.dense.bias")], domain=MICROSOFT_DOMAIN)
        return self._residual(prefix + "output.", activated, attended, output)

    def _attention(self, prefix: str, hidden: str, mask: str) -> str:
        names = [prefix + part for part in ("query", "key", "value")]
        projected = [self._project(name, hidden) for name in names]
        bias = self._out.weight(prefix + "bias", np.concatenate([self._tensors[name + ".bias"] for name in names]))
        return self._out.node("MultiHeadAttention", [*projected, bias, mask], domain=MICROSOFT_DOMAIN, num_heads=self._heads)

    def _residual(self, prefix: str, inner: str, skipped: str, output: str | None = None) -> str:
        names = (prefix + "LayerNorm.weight", prefix + "LayerNorm.bias", prefix + "dense.bias")
        inputs = [self._project(prefix + "dense", inner), skipped, *(self._weight(name) for name in names)]
        return self._out.node("SkipLayerNormalization", inputs, domain=MICROSOFT_DOMAIN, output=output, epsilon=self._epsilon)

    def _project(self, name: str, hidden: str) -> str:
        outputs, inputs = self._tensors[name + ".weight"].shape  # as MatMulNBits wants them, too
        quantized, scales = _in_blocks(self._tensors[name + ".weight"])
        weights = [self._out.weight(name + ".quantized", quantized), self._out.weight(name + ".scales", scales)]
        return self._out.node(
            "MatMulNBits", [hidden, *weights], domain=MICROSOFT_DOMAIN,
            K=inputs, N=outputs, bits=_WEIGHT_BITS, block_size=_WEIGHT_BLOCK, accuracy_level=_INT8_ACTIVATIONS,
        )  # fmt: skip

    def _weight(self, name: str) -> str:
        return self._out.weight(name, self._tensors[name])


def _in_blocks(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric 8 bit weights uint8 `[rows, blocks, block]` around 128, and their scales float32 `[rows * blocks]`, of a matrix
    `[rows, columns]`; the last block of a row is filled up with zeros."""
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % _WEIGHT_BLOCK))).reshape(rows, -1, _WEIGHT_BLOCK)
    scales = np.abs(padded).max(axis=2, keepdims=True) / 127
    scales[scales == 0] = 1
    return (np.round(padded / scales) + 128).astype(np.uint8), scales.astype(np.float32).reshape(-1)
