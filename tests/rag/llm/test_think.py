"""Splitting reasoning from an answer."""

import pytest

from rag.llm.think import ThinkSplitter

TEXTS = [
    ("<think>a < b</think>\n\nYes.", "a < b", "Yes."),
    ("  <think>\nhm\n</think>Yes </think> no", "\nhm\n", "Yes </think> no"),
    ("No tags at all.", "", "No tags at all."),
    ("Use <think> here</think>.", "", "Use <think> here</think>."),
    ("<think>never closed </thi", "never closed </thi", ""),
    ("<thi", "", "<thi"),
    ("<thinking aloud>", "", "<thinking aloud>"),
    ("<think></think>Yes.", "", "Yes."),
    ("  leading blanks", "", "  leading blanks"),
    ("", "", ""),
]


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(("whole", "reasoning", "answer"), TEXTS)
def test_the_parts_do_not_depend_on_how_the_text_is_cut(whole: str, reasoning: str, answer: str, size: int) -> None:
    splitter = ThinkSplitter()
    deltas = [delta for start in range(0, len(whole), size) for delta in splitter.feed(whole[start : start + size])]
    deltas += splitter.flush()
    assert "".join(delta.reasoning for delta in deltas) == reasoning
    assert "".join(delta.text for delta in deltas) == answer
    assert all(bool(delta.text) != bool(delta.reasoning) for delta in deltas)
