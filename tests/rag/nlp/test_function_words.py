"""Words of grammar are known in the question's own language, and never at the cost of an English question."""

from rag.nlp.function_words import FUNCTION_WORDS, function_words_in
from rag.nlp.tokenize import terms


def found(question: str) -> set[str]:
    return set(function_words_in(set(terms(question))))


def test_english():
    assert found("Who was the miller of Barrow?") == {"who", "was", "the", "of"}


def test_english_words_that_are_grammar_in_german_keep_their_weight():
    assert not {"war", "die"} & found("How many men die in a war?")
    assert found("Vietnam war") == set()
    assert {"war", "die"}.isdisjoint(FUNCTION_WORDS)


def test_german():
    assert found("Wann war die Schlacht bei Hastings?") == set(terms("wann war die bei"))


def test_other_scripts_need_no_guess():
    assert found("Когда построена мельница?") == set(terms("когда"))
    assert found("磨坊在哪里?") >= {"在", "哪里"}


def test_a_question_without_grammar_has_none():
    assert found("Barrow mill 1743") == set()
    assert found("") == set()
