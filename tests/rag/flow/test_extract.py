"""rag/flow/extract.py: the sentences that answer, each once, with their citations, and honesty where none does."""

import pytest

from rag.flow.extract import CLOSEST, NOTHING, NOTICE, best_quotes, extractive_answer, unwrapped
from tests.rag.flow.passages import BRIDGE, IRON, WATER, ranked

CHUNKS = [ranked(WATER, 0), ranked(IRON, 1), ranked(BRIDGE, 2)]


@pytest.mark.parametrize(
    ("question", "sentence", "chunk"),
    [
        ("When does water boil at sea level?", "Water boils at 100 °C at sea level.", 0),
        ("who was the first to smelt iron?", "The Hittites were the first to smelt it.", 1),
        ("What is the melting temperature of iron, at which it melts?", "Iron melts at 1538 °C.", 1),
        ("长江大桥什么时候建成？", "长江大桥于1957年建成。", 2),
        ("桥有多长，多少米？", "桥长1670米。", 2),
    ],
)
def test_the_sentence_that_answers_comes_first(question: str, sentence: str, chunk: int) -> None:
    best = best_quotes(question, CHUNKS)[0]
    assert (best.text, best.chunk) == (sentence, chunk)


def test_an_answer_says_what_it_is_and_cites_every_sentence() -> None:
    pieces = list(extractive_answer("When does water boil?", CHUNKS))
    assert pieces[0] == NOTICE
    quotes = "".join(pieces).split("\n\n", 1)[1].split("\n")
    assert quotes
    assert all(line.endswith(f"[ID:{number}]") for line, number in zip(quotes, [0] * len(quotes), strict=True))


def test_a_sentence_is_quoted_once_however_many_chunks_hold_it() -> None:
    quotes = best_quotes("When does water boil at sea level?", [ranked(WATER, n) for n in range(5)])
    assert len({quote.text for quote in quotes}) == len(quotes)


def test_where_no_word_fits_the_closest_passage_is_called_that() -> None:
    text = "".join(extractive_answer("gravitational lensing", CHUNKS))
    assert text.startswith(f"{NOTICE} {CLOSEST}")
    assert text.endswith("Water boils at 100 °C at sea level.")


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("Tide mills\n\nThe oldest mill\n\nIts timbers are dated to 619.", "Its timbers are dated to 619."),
        ("# Tide mills.\nThe wheel stood still.", "The wheel stood still."),
        ("Tide mills\nThe wheel stood still at high tide.", "The wheel stood still at high tide."),
        ("# Tide mills", "Tide mills"),
    ],
)
def test_the_closest_passage_begins_below_its_headings(text: str, begins: str) -> None:
    assert "".join(extractive_answer("gravitational lensing", [ranked(text)])).split("\n\n", 1)[1] == begins


def test_where_nothing_was_found_it_says_so() -> None:
    assert "".join(extractive_answer("anything", [])) == f"{NOTICE} {NOTHING}"


def test_a_sentence_of_endless_length_is_cut() -> None:
    quote = best_quotes("needle", [ranked("needle " + "hay " * 5000)])[0]
    assert len(quote.text) <= 601
    assert quote.text.endswith("…")


def test_marks_of_markdown_are_not_quoted() -> None:
    chunk = ranked("## Boiling point of water, explained\n- Boiling water reaches its point at 100 °C.")
    assert [quote.text for quote in best_quotes("boiling point of water", [chunk])] == [
        "Boiling point of water, explained",
        "Boiling water reaches its point at 100 °C.",
    ]


def test_common_words_alone_are_no_answer() -> None:
    chunks = [ranked("The cat is on the mat. The dog is in the house. The bird is in the tree. The fish is in the sea.")]
    assert best_quotes("what is the purpose of gravitational lensing in the cosmos?", chunks) == []


@pytest.mark.parametrize("text", ["", "\n\n  \n", "[ID:0]", "a" * 100_000], ids=["empty", "blank", "mark", "one word"])
def test_odd_chunks_are_survived(text: str) -> None:
    assert "".join(extractive_answer("what?", [ranked(text)])).startswith(NOTICE)


def test_a_sentence_that_goes_on_over_the_lines_of_a_page_is_quoted_whole() -> None:
    text = "It was the last in the country to work commercially when its\nmain shaft broke in 1957.\nThe pond was sold."
    assert unwrapped(text) == text.replace("its\nmain", "its main")
    text = "The remains of the oldest excavated tide mill lie on\nMahee Island.\n| a | row |\n| another | row |\n- a point\n- Another"
    assert unwrapped(text) == text.replace("on\nMahee", "on Mahee")
    assert unwrapped("A Heading\nThe text begins.") == "A Heading\nThe text begins."


def test_a_heading_is_not_quoted_but_tells_what_the_sentences_below_it_are_about() -> None:
    text = (
        "Tide mills\n\nThe oldest mill\n\nIts timbers are dated to 619.\n\n"
        "Why they disappeared\n\nThe wheel stood still at high tide. Steam took over their work.\n\nName\n\nEling"
    )
    quotes = [quote.text for quote in best_quotes("Why did tide mills disappear?", [ranked(text)])]
    assert quotes[0] == "The wheel stood still at high tide."
    assert not {"Tide mills", "The oldest mill", "Why they disappeared"} & set(quotes)
    assert [quote.text for quote in best_quotes("eling", [ranked(text)])] == ["Eling"]
