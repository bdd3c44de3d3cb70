"""A real llama.cpp server with tiny models, for the tests: the `xllamacpp` package in a process of its own.

The models are made on first use and kept under `.cache/`: a chat model of half a megabyte with random weights, which knows thirty
words, all-MiniLM-L6-v2 for embeddings, and the same with a random head for reranking. `with model_server("chat") as base_url:`
takes under a second.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import pytest

from rag.llm.bert_graph import Safetensors
from rag.llm.model_directory import bundled_model_path

Kind = Literal["chat", "embedding", "rerank"]

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "test-models"
MAKER_VERSION = 1

CHAT_CONTEXT_TOKENS = 2048
CHAT_WORDS = (
    "the", "of", "and", "to", "in", "is", "answer", "based", "on", "context", "document", "shows", "that", "we", "find",
    "a", "for", "with", "this", "report", "page", "see", "system", "model", "data", "[ID:0]", "[ID:1]", "hello", "world", "result",
)  # fmt: skip

_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@contextmanager
def model_server(kind: Kind) -> Iterator[str]:
    """The base URL of a running server, stopped when the context ends. Skips the test where xllamacpp is not installed."""
    if importlib.util.find_spec("xllamacpp") is None and not os.environ.get("CI"):
        pytest.skip("xllamacpp is not installed")
    command = [sys.executable, "-m", "tests.model_server", kind, str(model_file(kind))]
    # The server ends with its standard input, so it never outlives a test run that is killed.
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            lines = iter(process.stdout.readline, "")
            base_url = next((line.split()[1] for line in lines if line.startswith("listening ")), None)
            assert base_url, "the model server did not start"
            yield base_url
        finally:
            process.kill()


def model_file(kind: Kind) -> Path:
    """The model's GGUF file, made now unless it is in the cache."""
    path = CACHE / f"{kind}-v{MAKER_VERSION}.gguf"
    if not path.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        {"chat": _make_chat_model, "embedding": _make_embedding_model, "rerank": _make_rerank_model}[kind](unfinished)
        unfinished.rename(path)
    return path


def _make_chat_model(path: Path) -> None:
    """A llama of two layers with random weights whose likeliest tokens are `CHAT_WORDS`."""
    kinds = gguf.TokenType
    pieces = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [kinds.UNKNOWN] + [kinds.CONTROL] * 4 + [kinds.BYTE] * 256
    plain = ["▁", *map(chr, range(33, 127)), *("▁" + word for word in CHAT_WORDS)]
    pieces, types = pieces + plain, types + [kinds.NORMAL] * len(plain)
    width, inner, layers, heads = 64, 128, 2, 4
    rng = np.random.default_rng(0)

    def weights(*shape: int, scale: float) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny-random-chat")
    writer.add_context_length(CHAT_CONTEXT_TOKENS)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(pieces))
    writer.add_file_type(0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(rank) for rank in range(len(pieces))])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(4)
    writer.add_eot_token_id(4)
    writer.add_unk_token_id(0)
    writer.add_chat_template(_CHAT_TEMPLATE)
    writer.add_tensor("token_embd.weight", weights(len(pieces), width, scale=1.0))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    output = weights(len(pieces), width, scale=0.001)
    output[-len(CHAT_WORDS) :] = weights(len(CHAT_WORDS), width, scale=0.6)
    writer.add_tensor("output.weight", output)
    shapes = {"attn_q": (width, width), "attn_k": (width, width), "attn_v": (width, width), "attn_output": (width, width)}
    shapes |= {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    for layer in range(layers):
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.ones(width, np.float32))
        for part, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{part}.weight", weights(*shape, scale=0.1))
    _write(writer)


def _make_embedding_model(path: Path) -> None:
    """The bundled all-MiniLM-L6-v2 in llama.cpp's format."""
    _write(_bert_writer(path, "all-minilm-l6-v2", gguf.PoolingType.MEAN))


def _make_rerank_model(path: Path) -> None:
    """The same with a head of random weights, which makes raw logits of both signs."""
    writer = _bert_writer(path, "tiny-random-rerank", gguf.PoolingType.RANK)
    rng = np.random.default_rng(0)
    for name, shape, scale in (("cls", (384, 384), 0.2), ("cls.output", (1, 384), 0.6)):
        writer.add_tensor(f"{name}.weight", (rng.standard_normal(shape) * scale).astype(np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(shape[0], np.float32))
    _write(writer)


def _bert_writer(path: Path, name: str, pooling: gguf.PoolingType) -> gguf.GGUFWriter:
    directory = bundled_model_path()
    vocabulary = (directory / "vocab.txt").read_text("utf-8").splitlines()
    special = [piece.startswith("[") and piece.endswith("]") and len(piece) > 3 for piece in vocabulary]
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(name)
    writer.add_context_length(512)
    writer.add_embedding_length(384)
    writer.add_block_count(6)
    writer.add_feed_forward_length(1536)
    writer.add_head_count(12)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(pooling)
    writer.add_file_type(0)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([_bert_piece(piece) for piece in vocabulary])
    writer.add_token_types([gguf.TokenType.CONTROL if mark else gguf.TokenType.NORMAL for mark in special])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(101)
    writer.add_eos_token_id(102)
    writer.add_unk_token_id(100)
    writer.add_sep_token_id(102)
    writer.add_pad_token_id(0)
    writer.add_mask_token_id(103)
    with (directory / "model.safetensors").open("rb") as file:
        tensors = Safetensors(file)
        for source, target in _bert_names().items():
            writer.add_tensor(target, tensors[source])
    return writer


def _bert_piece(piece: str) -> str:
    if piece.startswith("[") and piece.endswith("]"):
        return piece
    return piece.removeprefix("##") if piece.startswith("##") else "▁" + piece


def _bert_names() -> dict[str, str]:
    names = {
        "embeddings.word_embeddings.weight": "token_embd.weight",
        "embeddings.position_embeddings.weight": "position_embd.weight",
        "embeddings.token_type_embeddings.weight": "token_types.weight",
        "embeddings.LayerNorm.weight": "token_embd_norm.weight",
        "embeddings.LayerNorm.bias": "token_embd_norm.bias",
    }
    parts = {
        "attention.self.query": "attn_q",
        "attention.self.key": "attn_k",
        "attention.self.value": "attn_v",
        "attention.output.dense": "attn_output",
        "attention.output.LayerNorm": "attn_output_norm",
        "intermediate.dense": "ffn_up",
        "output.dense": "ffn_down",
        "output.LayerNorm": "layer_output_norm",
    }
    for layer in range(6):
        for source, target in parts.items():
            for kind in ("weight", "bias"):
                names[f"encoder.layer.{layer}.{source}.{kind}"] = f"blk.{layer}.{target}.{kind}"
    return names


def _write(writer: object) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _serve(kind: Kind, path: str) -> None:
    """Run the server until standard input ends."""
    import xllamacpp  # here, since the tests themselves run without it

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_ctx = CHAT_CONTEXT_TOKENS if kind == "chat" else 512
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    parameters.ui = False
    if kind != "chat":
        parameters.embedding = True
        parameters.n_ubatch = parameters.n_batch = 512
    if kind == "rerank":
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    server = xllamacpp.Server(parameters)
    print(f"listening {server.listening_address}", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
