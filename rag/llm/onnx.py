"""Opens what every local model has: a tokenizer and an ONNX graph. Blocking; errors are `SettingsError`."""

from pathlib import Path

import onnxruntime
from tokenizers import Tokenizer

from rag.errors import SettingsError

KNOWN_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


def open_tokenizer(path: Path, max_tokens: int) -> Tokenizer:
    """The tokenizer, cutting at `max_tokens` and padding nothing."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise SettingsError(f"{path}: cannot be read as a tokenizer") from error
    # The file may carry padding and a truncation of its own (all-MiniLM-L6-v2: both to 128), which would cost time and text.
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def open_session(graph: Path) -> onnxruntime.InferenceSession:
    """The graph, run on one core a call; its inputs are some of `KNOWN_INPUTS`, `input_ids` among them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library's error classes share no base
        raise SettingsError(f"{graph}: onnxruntime cannot load the model") from error
    inputs = {value.name for value in session.get_inputs()}
    if "input_ids" not in inputs or not inputs <= KNOWN_INPUTS:
        raise SettingsError(f"{graph}: the model's inputs {', '.join(sorted(inputs))} are not understood")
    return session


def readable(text: str) -> str:
    """The text without lone surrogates: tokenizers take UTF-8."""
    return text.encode("utf-8", "replace").decode()
