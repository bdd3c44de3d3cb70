"""Answers in CBOR (RFC 8949), and the lists of hits in them as columns of numbers.

Two arms of 1,024 hits are 200 KB of JSON, and reading its digits was most of what decoding them took. In CBOR a number has a fixed
length: hits that hold nothing but sort values are alike byte by byte, and numpy reads them as the rows of a table.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_END = 0xFF
_HIT = b"\xbf\x64sort\x9f"  # a map and in it an array, their ends marked: {"sort": [
_INT64, _NEGATIVE_INT64 = 0x1B, 0x3B
_SIZES = {float: 4, int: 8}  # of those that all hits have of one size
_FLOATS = {0xF9: ">f2", 0xFA: ">f4", 0xFB: ">f8"}
_SIMPLE = {0xF4: False, 0xF5: True, 0xF6: None}

Column = np.ndarray | list[bytes]


def decoded(data: bytes | bytearray) -> Any:
    """The value that the data is. Raises `ValueError` for what is no CBOR.

    A list of hits that hold nothing but sort values comes out as the list of its columns: arrays float32 or int64, or UTF-8 texts.
    """
    reader = _Reader(data)
    try:
        value = reader.value()
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise ValueError("the answer is not CBOR, or not whole") from exc
    if reader.place != len(data):
        raise ValueError("the answer is not CBOR alone")
    return value


class _Reader:
    """Reads value by value from `place`. Raises `ValueError`, `LookupError`, `TypeError`, `RecursionError` for what is no CBOR."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data, self.place = data, 0

    def value(self) -> Any:
        first = self._take(1)[0]
        kind, low = first >> 5, first & 31
        if kind == 7:
            return float(np.frombuffer(self._take(1 << low - 24), _FLOATS[first])[0]) if first in _FLOATS else _SIMPLE[first]
        if low == 31:
            return self._with_mark(kind)
        if low > 27:
            raise ValueError("no length is written so")
        number = low if low < 24 else int.from_bytes(self._take(1 << low - 24), "big")
        match kind:
            case 0:
                return number
            case 1:
                return ~number
            case 2:
                return bytes(self._take(number))
            case 3:
                return self._take(number).decode()
            case 4:
                return [self.value() for _ in range(number)]
            case 5:
                return {self.value(): self.value() for _ in range(number)}
        return self.value()  # a tag says more about the value that follows

    def _with_mark(self, kind: int) -> Any:
        """A value whose end is marked, without its first byte."""
        match kind:
            case 3:
                return "".join([self.value() for _ in self._until_end()])
            case 4 if self._data.startswith(_HIT, self.place):
                return self._table() or self._hit_by_hit()
            case 4:
                return [self.value() for _ in self._until_end()]
            case 5:
                return {self.value(): self.value() for _ in self._until_end()}
        raise ValueError("such a value has no mark at its end")

    def _until_end(self) -> Iterator[None]:
        while self._data[self.place] != _END:
            yield
        self.place += 1

    def _take(self, count: int) -> bytes | bytearray:
        start = self.place
        self.place += count
        if self.place > len(self._data):
            raise ValueError("the answer is not whole")
        return self._data[start : self.place]

    # ------------------------------------------------------------------------------------------------ hits
    def _hit_by_hit(self) -> list[Column]:
        return [_column(values) for values in zip(*[self.value()["sort"] for _ in self._until_end()], strict=True)]

    def _table(self) -> list[Column] | None:
        """The columns of hits that lie alike; None for others, which are still to be read then."""
        start = self.place
        fields = self._first_hit()
        width, self.place = self.place - start, start
        if not fields:
            return None
        varying = np.zeros(width, np.uint8)  # the bits in which hits of this layout may differ
        for kind, begin, end in fields:
            varying[begin:end] = 0xFF
            if kind is int:
                varying[begin - 1] = _INT64 ^ _NEGATIVE_INT64
        fixed = np.flatnonzero(varying != 0xFF)
        rows = (len(self._data) - start) // width  # no more than that
        table = np.frombuffer(self._data, np.uint8, rows * width, start).reshape(rows, width)
        alike = ((table[:, fixed] ^ table[0, fixed]) & ~varying[fixed] == 0).all(axis=1)
        rows = rows if alike.all() else int(alike.argmin())
        if self._data[start + rows * width] != _END:
            return None
        self.place = start + rows * width + 1
        return [_field(table[:rows], *field) for field in fields]

    def _first_hit(self) -> list[tuple[type, int, int]]:
        """Of each of its values the type, and where the bytes begin and end that hold it; nothing where hits cannot lie alike."""
        start = self.place
        self._take(len(_HIT))
        fields = []
        while self._data[self.place] != _END:
            before, value = self.place, self.value()
            text = value.encode() if isinstance(value, str) else b""
            size = len(text) or _SIZES.get(type(value), 0)
            if not size or (self._data[self.place - size : self.place] != text if text else self.place - before != 1 + size):
                return []
            fields.append((type(value), self.place - size - start, self.place - start))
        return fields if self._take(2) == b"\xff\xff" else []


def _field(table: np.ndarray, kind: type, begin: int, end: int) -> Column:
    values = np.ascontiguousarray(table[:, begin:end])
    if kind is float:
        return values.view(">f4").ravel().astype(np.float32)
    if kind is int:
        numbers = values.view(">i8").ravel()
        if (numbers < 0).any():
            raise ValueError("a number has more than 63 bits")
        negative = table[:, begin - 1] == _NEGATIVE_INT64
        return numbers ^ -negative.astype(np.int64)  # of a negative one the complement is written
    return values.view(f"V{end - begin}").ravel().tolist()


def _column(values: Sequence[Any]) -> Column:
    if len(set(map(type, values))) > 1:
        raise ValueError("the values of a column are not alike")
    if isinstance(values[0], str):
        return [value.encode() for value in values]
    return np.array(values, np.float32 if isinstance(values[0], float) else np.int64)
