"""Matched words are marked in the original text, and nothing else of it changes."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag.nlp.highlight import Highlighter
from rag.nlp.query import question_terms


def marked(question: str, text: str) -> str:
    return Highlighter(question_terms(question)).mark(text)


@pytest.mark.parametrize(
    ("question", "text", "expected"),
    [
        ("grinding mills", "The Mill ground; milling it.", "The <em>Mill</em> ground; <em>milling</em> it."),
        ("what is the mill", "It is the mill.", "It is the <em>mill</em>."),
        ("the", "It is the mill.", "It is <em>the</em> mill."),
        ("mill", "<b>mill</b>", "<b><em>mill</em></b>"),
        ("C++ templates", "In C++, c and C#.", "In <em>C++</em>, c and C#."),
        ("x86_64", "an x86_64 box", "an <em>x86</em>_<em>64</em> box"),
        ("café", "“CAFÉ” cafe", "“<em>CAFÉ</em>” cafe"),
        ("武田信玄的父亲", "当时武田信玄出生。", "当时<em>武田信玄</em>出生。"),
        ("2019年 开发", "2019年Python开发", "<em>2019</em>年Python<em>开发</em>"),
        ("한국어", "이 한국어 책", "이 <em>한국어</em> 책"),
        ("книга", "В книге", "В <em>книге</em>"),
        ("हिन्दी", "यह हिन्दी है", "यह <em>हिन्दी</em> है"),
        ("river", "no match", "no match"),
        ("", "text", "text"),
    ],
)
def test_marks(question, text, expected):
    assert marked(question, text) == expected


@given(st.text(max_size=40), st.text(max_size=80))
def test_without_the_marks_it_is_the_text(question, text):
    assert re.sub("</?em>", "", marked(question, text)) == re.sub("</?em>", "", text)


def test_a_huge_text_costs_little():
    started = time.process_time()
    marked("mill 武田信玄", "a mill " * 500_000 + "武" * 1_000_000)
    assert time.process_time() - started < 1
