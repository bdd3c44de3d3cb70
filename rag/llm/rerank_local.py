"""Reranks on this machine's CPU: a cross-encoder from a model directory the user brings, run by onnxruntime.

Layout: https://sbert.net/docs/cross_encoder/usage/usage.html, exported to ONNX by Optimum.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from tokenizers import Encoding

from rag.deadline import seconds_left
from rag.errors import DeadlineExceeded, InvalidArgument, ProviderError, SettingsError
from rag.llm.local import BATCH_TOKENS, length_sorted_batches
from rag.llm.model_directory import read_json
from rag.llm.onnx import open_session, open_tokenizer, readable
from rag.llm.rerank_wire import scaled

_ONNX_FILES = ("onnx/model.onnx", "model.onnx")
_OUTPUT = "logits"
_POSITIONS_OFFSET = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2}
_DEFAULT_MAX_TOKENS = 512
_SPECIAL_TOKENS = 4
# A text is cut to this many characters per token of the limit before it is tokenised, so that a text of millions costs nothing.
_CHARACTERS_PER_TOKEN = 64

_log = structlog.get_logger("millrace.models")


@dataclass(frozen=True, slots=True)
class CrossEncoderDirectory:
    """What a cross-encoder's directory says."""

    path: Path
    weights_path: Path
    max_tokens: int
    pad_id: int


def read_cross_encoder(path: Path) -> CrossEncoderDirectory:
    """Read the directory. Raises `SettingsError` naming what is missing or not understood."""
    config = read_json(path / "config.json")
    labels = config.get("num_labels") or len(config.get("id2label") or (None,))
    if labels != 1:
        raise SettingsError(f"{path}: a model with {labels} labels is a classifier; a reranker has one")
    if not (path / "tokenizer.json").is_file():
        raise SettingsError(f"{path}: no tokenizer.json; a model directory needs one")
    weights_path = next((path / name for name in _ONNX_FILES if (path / name).is_file()), None)
    if weights_path is None:
        raise SettingsError(f"{path}: none of {', '.join(_ONNX_FILES)} is there; export the model to ONNX")
    positions = config.get("max_position_embeddings", _DEFAULT_MAX_TOKENS) - _POSITIONS_OFFSET.get(config.get("model_type", ""), 0)
    limit = read_json(path / "tokenizer_config.json").get("model_max_length") or positions
    return CrossEncoderDirectory(path, weights_path, int(min(limit, positions)), config.get("pad_token_id") or 0)


class LocalReranker:
    """A `Reranker` over one model directory: blocking and thread-safe, run it in a lane. The first call loads the model."""

    def __init__(self, name: str, directory: CrossEncoderDirectory, context_tokens: int = _DEFAULT_MAX_TOKENS) -> None:
        """`context_tokens` bounds query and text together, as far as the model's own limit does not."""
        self.name = name
        self._directory = directory
        self._max_tokens = min(directory.max_tokens, context_tokens)
        self._model: _CrossEncoder | None = None
        self._loading = threading.Lock()

    def similarity(self, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int | None]:
        """Scores in [0, 1], float32 `[len(texts)]` in the order given, and the tokens read.

        Raises `InvalidArgument` for an empty query, `DeadlineExceeded` between two batches when the caller's time is over,
        `ProviderError` when the model cannot be loaded or run.
        """
        if not query.strip():
            raise InvalidArgument("a query to rerank by must be a text that is not empty")
        if not texts:
            return np.empty(0, dtype=np.float32), 0
        model = self._load()
        pairs = model.tokenize(query, texts)
        lengths = [len(pair.ids) for pair in pairs]
        logits = np.empty(len(texts), dtype=np.float64)
        for batch in length_sorted_batches(lengths, BATCH_TOKENS):
            if seconds_left() <= 0:
                raise DeadlineExceeded(f"model {self.name} did not read {len(texts)} texts in time")
            logits[batch] = model.logits([pairs[index] for index in batch])
        if not np.isfinite(logits).all():
            raise ProviderError(f"model {self.name} gave a score that is not a finite number")
        return scaled(logits, logits=True), sum(lengths)

    def _load(self) -> "_CrossEncoder":
        with self._loading:
            if self._model is None:
                try:
                    self._model = _CrossEncoder(self.name, self._directory, self._max_tokens)
                except SettingsError as error:
                    _log.error("a reranker cannot be loaded", model=self.name, reason=str(error))
                    raise ProviderError(f"model {self.name} cannot be loaded") from error
            return self._model


class _CrossEncoder:
    """A loaded model: one onnxruntime session of one core a call, and its tokenizer."""

    def __init__(self, name: str, directory: CrossEncoderDirectory, max_tokens: int) -> None:
        self._name = name
        self._max_tokens = max_tokens
        self._pad_id = directory.pad_id
        self._tokenizer = open_tokenizer(directory.path / "tokenizer.json", max_tokens)
        self._session = open_session(directory.weights_path)
        self._inputs = {value.name for value in self._session.get_inputs()}
        if _OUTPUT not in (value.name for value in self._session.get_outputs()):
            raise SettingsError(f"{directory.path}: the model has no output {_OUTPUT}")

    def tokenize(self, query: str, texts: Sequence[str]) -> list[Encoding]:
        """Query and text as one sequence each; the text is cut to what the query leaves, the query to half of the limit."""
        characters = self._max_tokens * _CHARACTERS_PER_TOKEN
        query = self._cut_query(readable(query[:characters]))
        return self._tokenizer.encode_batch([(query, readable(text[:characters])) for text in texts])

    def logits(self, pairs: Sequence[Encoding]) -> np.ndarray:
        """float `[len(pairs)]`; the batch is padded to its longest."""
        longest = max(len(pair.ids) for pair in pairs)
        ids = np.full((len(pairs), longest), self._pad_id, dtype=np.int64)
        mask, kinds = np.zeros_like(ids), np.zeros_like(ids)
        for row, pair in enumerate(pairs):
            length = len(pair.ids)
            ids[row, :length], kinds[row, :length], mask[row, :length] = pair.ids, pair.type_ids, 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
        try:
            (output,) = self._session.run([_OUTPUT], {name: feed[name] for name in self._inputs})
        except Exception as error:
            raise ProviderError(f"model {self._name} could not be run") from error
        if output.size != len(pairs):
            raise ProviderError(f"model {self._name} gave {output.size} scores for {len(pairs)} texts")
        return output.reshape(len(pairs))

    def _cut_query(self, query: str) -> str:
        encoding = self._tokenizer.encode(query, add_special_tokens=False)
        most = max(1, (self._max_tokens - _SPECIAL_TOKENS) // 2)
        return query[: encoding.offsets[most - 1][1]] if len(encoding.ids) > most else query
