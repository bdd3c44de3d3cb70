"""A question becomes few, weighted terms."""

import time

from rag.nlp.query import TERM_LIMIT, question_terms
from rag.types import Term


def weights(question: str) -> dict[str, float]:
    return {term.text: term.weight for term in question_terms(question)}


def test_words_of_grammar_are_damped_not_dropped():
    assert weights("Who ruled the mills?") == {"who": 0.3, "rule": 1.0, "the": 0.3, "mill": 1.0}


def test_a_question_of_grammar_only_still_has_terms():
    assert weights("to be or not to be").keys() == {"to", "be", "or", "not"}


def test_repeats_weigh_more_up_to_a_limit():
    assert weights("mill river mill")["mill"] == 2.0
    assert weights("mill " * 100)["mill"] == 5.0


def test_terms_are_distinct_and_in_order_of_first_use():
    assert question_terms("river mill River") == (Term("river", 2.0), Term("mill", 1.0))


def test_a_question_without_words_has_no_terms():
    assert question_terms(" ?! ") == ()


def test_of_too_many_terms_the_heaviest_are_kept():
    found = question_terms("the of " + " ".join(f"word{i}" for i in range(500)) + " word499 word499")
    assert len(found) == TERM_LIMIT
    assert found[0] == Term("word0", 1.0)
    assert found[-1] == Term("word499", 3.0)


def test_a_huge_question_costs_little():
    started = time.process_time()
    question_terms("汉字问题" * 1_000_000)
    assert time.process_time() - started < 0.5
