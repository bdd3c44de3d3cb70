"""Turns a question into the weighted terms that the text arm looks for."""

from collections import Counter

from rag.nlp.function_words import function_words_in
from rag.nlp.tokenize import terms
from rag.types import Term

QUESTION_CHARACTERS = 8_192  # what is analysed of a longer question
TERM_LIMIT = 64  # the text arm's cost grows with every term
REPEAT_LIMIT = 5
FUNCTION_WORD_WEIGHT = 0.3  # damped, not dropped: `The Who` is still found


def question_terms(question: str) -> tuple[Term, ...]:
    """The question's distinct terms in the order of their first use, at most 64; of more, the heaviest are kept.

    A term's weight is how often the question uses it, as in BM25, but no more than 5; 0.3 of that for words of grammar.
    """
    counts = Counter(terms(question[:QUESTION_CHARACTERS]))
    damped = function_words_in(counts.keys())
    found = [Term(text, min(count, REPEAT_LIMIT) * (FUNCTION_WORD_WEIGHT if text in damped else 1.0)) for text, count in counts.items()]
    if len(found) > TERM_LIMIT:
        heaviest = sorted(range(len(found)), key=lambda i: -found[i].weight)[:TERM_LIMIT]
        found = [found[i] for i in sorted(heaviest)]
    return tuple(found)
