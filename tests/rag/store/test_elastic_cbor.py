"""What is read of CBOR: values as RFC 8949 writes them, lists of hits as columns, and nothing of an answer that is not whole."""

import struct
from typing import Any

import numpy as np
import pytest

from rag.errors import Unavailable
from rag.store import elastic_search
from rag.store.elastic_cbor import decoded

LOWEST, HIGHEST = -(1 << 63), (1 << 63) - 1


def encoded(value: Any) -> bytes:
    """As Elasticsearch writes it: ends of maps and arrays marked, floats of 32 bits, integers as short as can be."""
    match value:
        case None:
            return b"\xf6"
        case dict():
            return b"\xbf" + b"".join(encoded(key) + encoded(each) for key, each in value.items()) + b"\xff"
        case list() | tuple():
            return b"\x9f" + b"".join(map(encoded, value)) + b"\xff"
        case float():
            return b"\xfa" + struct.pack(">f", value)
        case str():
            return head(3, len(value.encode())) + value.encode()
        case int():
            return head(0, value) if value >= 0 else head(1, ~value)
    raise TypeError


def head(kind: int, number: int) -> bytes:
    if number < 24:
        return bytes([kind << 5 | number])
    size = next(size for size in range(4) if number < 1 << (8 << size))
    return bytes([kind << 5 | 24 + size]) + number.to_bytes(1 << size, "big")


def hits(*rows: tuple[Any, ...]) -> dict[str, Any]:
    return {"hits": [{"sort": row} for row in rows]}


def columns_of(*rows: tuple[Any, ...]) -> list[Any]:
    columns = decoded(encoded(hits(*rows)))["hits"]
    return [column if isinstance(column, list) else (column.dtype.name, column.tolist()) for column in columns]


# ---------------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize(("data", "value"), [  # RFC 8949, appendix A
    ("00", 0), ("17", 23), ("1818", 24), ("1903e8", 1000), ("1a000f4240", 1_000_000), ("1b000000e8d4a51000", 1_000_000_000_000),
    ("20", -1), ("3863", -100), ("3903e7", -1000), ("3bffffffffffffffff", -(1 << 64)),
    ("f93c00", 1.0), ("fa47c35000", 100_000.0), ("fb3ff199999999999a", 1.1), ("fbc010666666666666", -4.1),
    ("f4", False), ("f5", True), ("f6", None), ("4401020304", b"\1\2\3\4"),
    ("60", ""), ("6449455446", "IETF"), ("62c3bc", "ü"), ("64f0908591", "\U00010151"), ("7f657374726561646d696e67ff", "streaming"),
    ("80", []), ("83010203", [1, 2, 3]), ("9fff", []), ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
    ("a0", {}), ("a26161016162820203", {"a": 1, "b": [2, 3]}), ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
    ("d9d9f7a1616101", {"a": 1}), ("c11a514b67b0", 1_363_896_240),
])  # fmt: skip
def test_a_value_is_what_the_standard_says(data, value):
    assert decoded(bytes.fromhex(data)) == value


@pytest.mark.parametrize(
    "data", ["", "1c", "1f", "3f", "df01", "5f4101ff", "ff", "f7", "61", "62c3", "61ff", "8101ff", "9f", "bf6161ff", "a19f01ff01"]
)
def test_what_is_no_value_is_refused(data):
    with pytest.raises(ValueError, match="CBOR"):
        decoded(bytes.fromhex(data))


def test_arrays_in_arrays_without_end_are_refused():
    with pytest.raises(ValueError, match="CBOR"):
        decoded(b"\x9f" * 100_000)


# ---------------------------------------------------------------------------------------------------- hits
def test_hits_come_out_as_columns():
    rows = [(1.5, LOWEST, "a" * 32), (0.25, HIGHEST, "ü" * 16), (-3.0, 1 << 32, "c" * 32), (3.4e38, -(1 << 32) - 1, "\0" * 32)]
    scores, ids, documents = zip(*rows, strict=True)
    assert columns_of(*rows) == [
        ("float32", np.array(scores, np.float32).tolist()), ("int64", list(ids)), [document.encode() for document in documents],
    ]  # fmt: skip


@pytest.mark.parametrize("odd", [(1.0, 7, "a" * 32), (1.0, 1 << 40, "short"), (1.0, 1 << 40, ""), (1.0, 1 << 40, "x" * 300)])
@pytest.mark.parametrize("place", [0, 1, 5])
def test_hits_that_do_not_lie_alike_come_out_as_the_same_columns(odd, place):
    rows = [(float(n), (n - 2) << 40, f"{n:032x}") for n in (1, 3, 4, 5, 6)]
    rows.insert(place, odd)
    scores, ids, documents = zip(*rows, strict=True)
    assert columns_of(*rows) == [("float32", list(scores)), ("int64", list(ids)), [document.encode() for document in documents]]


def test_texts_in_pieces_are_put_together():
    hit = b"\xbf\x64sort\x9f\x7f\x62ab\x61c\xff\xff\xff"
    assert decoded(b"\x9f" + 2 * hit + b"\xff") == [[b"abc", b"abc"]]


def test_small_numbers_and_large_ones_are_told_apart():
    assert columns_of(*[(n,) for n in (0, -1, 23, -24, 24, 1 << 16, -(1 << 33), HIGHEST)]) == [
        ("int64", [0, -1, 23, -24, 24, 1 << 16, -(1 << 33), HIGHEST])
    ]


def test_several_lists_and_what_stands_around_them_are_read():
    first, second = [(0.5, 1 << 50, "a" * 32)] * 3, [(0.75, -(1 << 50), "b" * 32)]
    answer = {
        "responses": [
            {"hits": hits(*first), "status": 200},
            {"error": {"type": "x"}, "status": 503},
            {"hits": hits(*second), "status": 200},
        ]
    }
    one, failed, other = decoded(encoded(answer))["responses"]
    assert [len(column) for column in one["hits"]["hits"]] == [3, 3, 3]
    assert one["status"] == other["status"] == 200
    assert failed == {"error": {"type": "x"}, "status": 503}
    assert [column[0] for column in other["hits"]["hits"]] == [0.75, -(1 << 50), b"b" * 32]


def test_no_hits_are_an_empty_list():
    assert decoded(encoded(hits())) == {"hits": []}


def test_hits_that_hold_more_than_sort_values_are_refused():
    with pytest.raises(ValueError, match="CBOR"):
        decoded(encoded({"hits": [{"sort": [1.0]}, {"id": 1}]}))


@pytest.mark.parametrize("document", ["a" * 32, "of any length"])
def test_an_answer_that_is_not_whole_is_refused(document):
    answer = encoded({"responses": [{"hits": hits((0.5, 1 << 50, "a" * 32), (0.25, 1 << 51, document)), "status": 200}]})
    assert decoded(answer)
    for length in range(len(answer)):
        with pytest.raises(ValueError, match="CBOR"):
            decoded(answer[:length])
    with pytest.raises(ValueError, match="CBOR"):
        decoded(answer + b"\xff")


@pytest.mark.parametrize("rows", [[(1.0,), (None,)], [(1, "a"), (2.5, "b")], [("a",), (None,)], [(1 << 63, "any"), (1, "one")]])
def test_columns_of_unlike_values_are_refused(rows):
    with pytest.raises(ValueError, match="CBOR"):
        decoded(encoded(hits(*rows)))


def test_a_number_that_no_column_holds_is_refused():
    with pytest.raises(ValueError, match="CBOR"):
        decoded(encoded(hits((1 << 63, "a"), (1 << 63, "b"))))


def test_hits_in_json_are_told_as_what_they_are():
    with pytest.raises(Unavailable, match="answers in JSON"):
        elastic_search._hits({"hits": hits((0.5, 1, "a"))}, (), 10)
