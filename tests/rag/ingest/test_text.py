"""Decoding and normalising: every encoding people use, and offsets that stay exact."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.errors import ParseFailed
from rag.ingest.text import DocumentBuilder, decode, normalise

GERMAN = "Die Mühle am Bach mahlt das Getreide für das ganze Dorf, und der Müller heißt Jörg. " * 5
CHINESE = "武田信玄是日本战国时代的著名武将，他的军队以骑兵闻名于世，号称甲斐之虎。" * 5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_german_is_decoded_in_any_usual_encoding(encoding):
    assert decode(GERMAN.encode(encoding)) == GERMAN


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030", "big5"])
def test_chinese_is_decoded_in_any_usual_encoding(encoding):
    text = CHINESE if encoding != "big5" else "武田信玄是日本戰國時代的著名武將，他的軍隊以騎兵聞名於世。" * 5
    assert decode(text.encode(encoding)) == text


def test_a_declared_encoding_is_tried_before_guessing():
    assert decode("Köln".encode("cp437"), declared="cp437") == "Köln"
    assert decode("Köln".encode(), declared="no such encoding") == "Köln"


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ParseFailed, match="not text"):
        decode(bytes(range(256)) * 50)


def test_single_nul_bytes_are_dropped():
    assert normalise(decode(b"a mill\x00 race by the river and so on")) == "a mill race by the river and so on"


@given(st.text())
def test_normalised_text_is_stable_nfc_and_encodable(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert "\r" not in once
    once.encode()


@given(st.lists(st.tuples(st.text(), st.booleans()), max_size=8))
def test_blocks_are_exact_in_order_and_without_blanks_around(parts):
    builder = DocumentBuilder()
    for text, tight in parts:
        builder.add(text, tight=tight)
    parsed = builder.build()
    assert [parsed.text[block.start : block.end] for block in parsed.blocks] == [
        normalise(text).strip() for text, _ in parts if normalise(text).strip()
    ]
