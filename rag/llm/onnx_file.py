"""Writes an ONNX model file without the `onnx` package: the few messages a plain graph needs, in protobuf's wire format.

Weights go to a second file beside the model ("external data"), each on a page of its own, so that onnxruntime maps them
instead of copying them and writing never holds more than one tensor in memory.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Wire format: https://protobuf.dev/programming-guides/encoding.
"""

import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

MICROSOFT_DOMAIN = "com.microsoft"

_PAGE_BYTES = 4096
_OPSET = 17
_IR_VERSION = 8
_ELEMENT_TYPES = {"float32": 1, "uint8": 2, "int64": 7}
_EXTERNAL = 1
_ATTRIBUTE_FLOAT, _ATTRIBUTE_INT, _ATTRIBUTE_INTS = 1, 2, 7

FLOAT = 1
INT32 = 6
INT64 = 7


class OnnxWriter:
    """Collects the nodes of one graph and streams its weights to `weights`, to be loaded as the file `weights_name`.

    Every method that adds something returns the name by which later nodes refer to it.
    """

    def __init__(self, weights: BinaryIO, weights_name: str) -> None:
        self._weights = weights
        self._weights_name = weights_name
        self._nodes: list[bytes] = []
        self._initializers: dict[str, bytes] = {}

    def constant(self, name: str, values: np.ndarray | Sequence[int] | float) -> str:
        """A small constant kept in the model file; the same name twice is the same constant."""
        if name not in self._initializers:
            array = np.asarray(values, dtype=np.float32 if isinstance(values, float) else None)
            self._initializers[name] = _tensor_head(name, array) + _bytes(9, array.tobytes())
        return name

    def weight(self, name: str, array: np.ndarray) -> str:
        """A tensor kept in the weights file."""
        contiguous = np.ascontiguousarray(array)
        self._weights.write(b"\0" * (-self._weights.tell() % _PAGE_BYTES))
        place = {"location": self._weights_name, "offset": str(self._weights.tell()), "length": str(contiguous.nbytes)}
        self._weights.write(contiguous.data)
        entries = b"".join(_bytes(13, _bytes(1, key) + _bytes(2, value)) for key, value in place.items())
        self._initializers[name] = _tensor_head(name, contiguous) + entries + _integer(14, _EXTERNAL)
        return name

    def node(self, operator: str, inputs: Sequence[str], *, domain: str = "", output: str | None = None, **attributes: object) -> str:
        """One operator with one output; `inputs` may hold "" for an optional input that is left out."""
        name = output or f"{operator}_{len(self._nodes)}"
        message = b"".join(_bytes(1, source) for source in inputs) + _bytes(2, name) + _bytes(3, name) + _bytes(4, operator)
        message += b"".join(_bytes(5, _attribute(key, value)) for key, value in attributes.items())
        self._nodes.append(message + (_bytes(7, domain) if domain else b""))
        return name

    def model(
        self, inputs: Sequence[tuple[str, int, Sequence[str | int]]], outputs: Sequence[tuple[str, int, Sequence[str | int]]]
    ) -> bytes:
        """The model file's bytes; inputs and outputs are `(name, element type, shape)`, a named dimension being free."""
        graph = b"".join(_bytes(1, node) for node in self._nodes) + _bytes(2, "graph")
        graph += b"".join(_bytes(5, tensor) for tensor in self._initializers.values())
        graph += b"".join(_bytes(11, _value(*value)) for value in inputs) + b"".join(_bytes(12, _value(*value)) for value in outputs)
        opsets = ((_OPSET, ""), (1, MICROSOFT_DOMAIN))
        imports = b"".join(_bytes(8, _bytes(1, domain) + _integer(2, version)) for version, domain in opsets)
        return _integer(1, _IR_VERSION) + _bytes(2, "millrace") + imports + _bytes(7, graph)


def _tensor_head(name: str, array: np.ndarray) -> bytes:
    dimensions = b"".join(_integer(1, length) for length in array.shape)
    return dimensions + _integer(2, _ELEMENT_TYPES[array.dtype.name]) + _bytes(8, name)


def _attribute(name: str, value: object) -> bytes:
    head = _bytes(1, name)
    match value:
        case float():
            return head + _varint(2 << 3 | 5) + struct.pack("<f", value) + _integer(20, _ATTRIBUTE_FLOAT)
        case int():
            return head + _integer(3, value) + _integer(20, _ATTRIBUTE_INT)
        case list() | tuple():
            return head + b"".join(_integer(8, item) for item in value) + _integer(20, _ATTRIBUTE_INTS)
    raise TypeError(f"no attribute type for {type(value).__name__}")


def _value(name: str, element_type: int, shape: Sequence[str | int]) -> bytes:
    dimensions = b"".join(_bytes(1, _bytes(2, size) if isinstance(size, str) else _integer(1, size)) for size in shape)
    return _bytes(1, name) + _bytes(2, _bytes(1, _integer(1, element_type) + _bytes(2, dimensions)))


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _integer(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _bytes(field: int, payload: bytes | str) -> bytes:
    raw = payload.encode() if isinstance(payload, str) else payload
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw
