"""What becomes of texts of every script, and that nothing makes the analyser slow, unsafe or inconsistent."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag.nlp import tokenize
from rag.nlp.tokenize import analyse, chunk_terms, terms

TEXTS = st.text(st.one_of(st.characters(), st.sampled_from("aZ9 ,.+#_\u0301\u200d汉字かカ한ไท")), max_size=80)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Mills were grinding.", "the mill were grind"),
        ("C++ and C# (also F#), notepad++", "c++ and c# also f# notepad++"),
        ("tag #1 and a+b", "tag 1 and a b"),
        ("x86_64", "x86 64"),
        ("john.doe@example.com", "john doe exampl com"),
        ("2019-10-07 10,000 3.14", "2019 10 07 10000 3 14"),
        ("don't, King’s", "don t king s"),
        ("ＡＢＣ１２３ ﬁne x²", "abc123 fine x2"),
        ("exam\u00adple", "exampl"),
        ("Straße STRASSE", "strass strass"),
        ("İstanbul Istanbul", "istanbul istanbul"),
        ("Σίσυφος ΣΊΣΥΦΟΣ", "σισυφ σισυφ"),
        ("5км книги книга", "5км книг книг"),
        ("ωfour", "ω four"),
        ("العَرَبِيَّة ٢٠١٩", "عرب 2019"),
        ("שָׁלוֹם", "שלום"),
        ("한국어", "한국 국어"),
        ("私はプログラマ", "私 は プロ ログ グラ ラマ"),
        ("ไทย", "ไท ทย"),
        ("Party🎉🎉 ❤️", "parti 🎉 🎉 ❤"),
        ("\ud800 a\x00b \x7f", "a b"),
        ("", ""),
        (" \n\t\u3000", ""),
        ("... -- !!", ""),
    ],
)
def test_terms_of(text, expected):
    assert analyse(text) == expected


def test_han_after_digits_and_letters_is_not_swallowed():
    found = terms("2019年10月Python开发")
    assert {"2019", "年", "10", "月", "python", "开发"} <= set(found)


def test_a_han_name_matches_however_the_sentence_around_it_is_cut():
    assert {"武田", "信玄"} <= set(terms("武田信玄出生于甲斐国")) & set(terms("武田信玄"))


def test_composed_and_decomposed_text_are_the_same():
    assert terms("café") == terms("cafe\u0301") != terms("cafe")


@settings(deadline=None, max_examples=300)
@given(TEXTS)
def test_terms_are_short_without_blanks_and_can_be_stored(text):
    for term in terms(text):
        assert 0 < len(term) <= tokenize.TERM_CHARACTERS
        assert term.split() == [term]
        term.encode()


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_a_text_is_analysed_piece_by_piece(left, right):
    assert terms(f"{left} {right}") == terms(left) + terms(right)


def test_a_long_word_is_cut():
    assert terms("x" * 1000) == ["x" * 64]


@pytest.mark.parametrize(
    "text", ["a" * 3_000_000, "1" * 3_000_000, "1,234" * 500_000, "汉" * 1_000_000, "0a" * 1_000_000, "a+" * 500_000, "ก" * 1_000_000]
)
def test_a_huge_line_costs_linear_time(text):
    started = time.process_time()
    terms(text)
    assert time.process_time() - started < 5


def test_english_text_is_analysed_at_over_a_megabyte_a_second():
    sentence = "The quick brown foxes, numbering %d, were jumping over lazily sleeping dogs near the river's northern bank. "
    text = "".join(sentence % i for i in range(10_000))
    started = time.process_time()
    terms(text)
    assert len(text) / (time.process_time() - started) > 1_000_000


def test_memory_is_bounded_by_the_number_of_pieces_kept(monkeypatch):
    monkeypatch.setattr(tokenize, "MEMO_PIECES", 10)
    memo = tokenize._Memo()
    for i in range(100):
        assert memo[f"word{i}"] == (f"word{i}",)
    assert len(memo) <= 10


def test_threads_get_the_same_terms():
    words = [f"{stem}{ending}{i}" for i in range(50) for stem in ("mill", "книг") for ending in ("ing", "ами", "s")]
    expected = [tuple(tokenize._terms_of_piece(word)) for word in words]
    wrong: list[str] = []

    def analyse_all() -> None:
        memo = tokenize._Memo()
        wrong.extend(word for word, want in zip(words, expected, strict=True) if memo[word] != want)

    threads = [threading.Thread(target=analyse_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_title_and_headings_enter_on_their_own_and_with_the_content():
    found = chunk_terms("Annual Report.pdf", ["Revenue"], "Grew by 5%", ["growth rate"], ["How much?"])
    assert found.title == "annual report revenu"
    assert found.content == "annual report revenu grew by 5"
    assert found.keywords == "growth rate"
    assert found.questions == "how much"


def test_a_chunk_without_title_has_its_content_only():
    assert chunk_terms("", [], "plain text").title == ""
    assert chunk_terms("", [], "plain text").content == "plain text"
