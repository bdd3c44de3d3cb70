"""rag/flow/prompt.py: whole chunks, newest history, one pass of substitution, all within the model's window."""

import time

import pytest

from rag.errors import TooLarge
from rag.flow.prompt import MESSAGE_TOKENS, TOKEN_CHARACTERS, Prompt, Window, build_prompt
from rag.types import ChatMessage, Chunk, ChunkTerms, RankedChunk


def words(text: str) -> int:
    return len(text.split())


def ranked(number: int, content: str, headings: tuple[str, ...] = ()) -> RankedChunk:
    chunk = Chunk(f"{number:016x}", "d" * 32, "e" * 32, "guide.md", content, ChunkTerms(), headings=headings)
    return RankedChunk(chunk, 0.9, 0.9, 0.9)


def build(
    *, system: str = "Use this: {knowledge}", question: str = "what?", history: tuple[ChatMessage, ...] = (),
    chunks: list[RankedChunk] | None = None, context: int = 1000, answer: int | None = None, cite: bool = False, **variables: str,
) -> Prompt:  # fmt: skip
    return build_prompt(
        system=system,
        variables=variables,
        messages=(*history, ChatMessage("user", question)),
        chunks=chunks,
        cite=cite,
        window=Window(context, answer, words),
    )


def long_text(size: int, word: str = "word") -> str:
    return " ".join([word] * size)


def test_chunks_are_numbered_as_they_stand_in_the_prompt() -> None:
    prompt = build(chunks=[ranked(1, "first text", ("Part", "Chapter")), ranked(2, "second text")])
    assert prompt.messages[0].content == "Use this: [ID:0] guide.md > Part > Chapter\nfirst text\n\n[ID:1] guide.md\nsecond text"
    assert [entry.chunk.id for entry in prompt.chunks] == [f"{1:016x}", f"{2:016x}"]


def test_a_chunk_that_does_not_fit_is_passed_over_whole_and_the_numbers_close_up() -> None:
    prompt = build(chunks=[ranked(1, "a b c"), ranked(2, long_text(900)), ranked(3, "d e f")], context=400)
    assert [entry.chunk.id for entry in prompt.chunks] == [f"{1:016x}", f"{3:016x}"]
    assert "[ID:1] guide.md\nd e f" in prompt.messages[0].content
    assert "word" not in prompt.messages[0].content


@pytest.mark.parametrize("context", [120, 200, 500, 2000])
@pytest.mark.parametrize("answer", [None, 50, 100_000])
def test_the_prompt_leaves_room_for_the_answer_whatever_is_asked(context: int, answer: int | None) -> None:
    history = tuple(ChatMessage("user" if n % 2 == 0 else "assistant", long_text(30)) for n in range(20))
    prompt = build(chunks=[ranked(n, long_text(10)) for n in range(50)], history=history, context=context, answer=answer, cite=False)
    window = Window(context, answer, words)
    assert prompt.tokens == sum(words(message.content) + MESSAGE_TOKENS for message in prompt.messages)
    assert 0 < prompt.tokens <= window.prompt_tokens < context
    assert prompt.messages[-1].content == "what?"
    assert prompt.chunks


def test_the_oldest_history_goes_first() -> None:
    history = tuple(ChatMessage("user" if n % 2 == 0 else "assistant", f"m{n} {long_text(60)}") for n in range(8))
    prompt = build(chunks=[ranked(1, "short")], history=history, context=400)
    kept = [message.content.split()[0] for message in prompt.messages[1:-1]]
    assert kept
    assert kept == [f"m{n}" for n in range(8 - len(kept), 8)]
    assert prompt.messages[1].role == "user"


def test_history_yields_to_chunks_up_to_three_quarters_of_the_room() -> None:
    history = (ChatMessage("user", long_text(700)), ChatMessage("assistant", "yes"))
    prompt = build(chunks=[ranked(n, long_text(100)) for n in range(4)], history=history, context=1000)
    assert len(prompt.chunks) == 4
    assert long_text(700) not in [message.content for message in prompt.messages]


def test_citations_of_older_turns_are_taken_out() -> None:
    history = (ChatMessage("user", "is [ID:1] a tag?"), ChatMessage("assistant", "Water boils [ID:3][ID:12]. Yes [ID:0]"))
    prompt = build(history=history, chunks=None, system="")
    assert [message.content for message in prompt.messages] == ["is [ID:1] a tag?", "Water boils. Yes", "what?"]


def test_variables_are_put_in_once_and_values_are_not_read_again() -> None:
    prompt = build(system="{a} {b} {c} {knowledge}", chunks=[ranked(1, "{a} text")], a="{b}", b="{knowledge}")
    assert prompt.messages[0].content == "{b} {knowledge} {c} [ID:0] guide.md\n{a} text"


def test_a_system_text_without_the_placeholder_gets_the_chunks_at_its_end() -> None:
    assert build(system="Be kind.", chunks=[ranked(1, "text")]).messages[0].content == "Be kind.\n\n[ID:0] guide.md\ntext"


def test_a_chat_without_datasets_keeps_its_own_placeholder_empty_and_adds_nothing() -> None:
    assert build(system="Know: {knowledge}!", chunks=None).messages[0].content == "Know: !"
    assert [message.role for message in build(system="", chunks=None).messages] == ["user"]


def test_citation_rules_stand_only_where_there_is_something_to_cite() -> None:
    assert "[ID:0][ID:2]" in build(chunks=[ranked(1, "text")], cite=True).messages[0].content
    assert "[ID:" not in build(chunks=[], cite=True).messages[0].content
    assert "Rules for citations" not in build(chunks=[ranked(1, "text")], cite=False).messages[0].content


def test_a_question_over_the_window_is_an_error_that_names_it() -> None:
    with pytest.raises(TooLarge, match="instruction and question exceed the model's window of 300 tokens"):
        build(question=long_text(500), context=300)


def test_chunks_of_which_none_fits_are_an_error_and_not_an_ungrounded_answer() -> None:
    with pytest.raises(TooLarge, match="no passage fits into the model's window of 300 tokens"):
        build(chunks=[ranked(1, long_text(500))], context=300)


@pytest.mark.parametrize("place", ["question", "variable", "history", "much history"])
def test_what_is_far_over_the_window_is_not_counted(place: str) -> None:
    counted: list[int] = []

    def count(text: str) -> int:
        counted.append(len(text))
        return words(text)

    window = Window(200, None, count)
    endless = "word" * (200 * TOKEN_CHARACTERS)
    talk = (ChatMessage("user", endless),) if place == "history" else (ChatMessage("user", long_text(50)),) * 1_000
    messages = (*(talk if "history" in place else ()), ChatMessage("user", endless if place == "question" else "what?"))
    arguments = {"system": "{place}", "variables": {"place": endless if place == "variable" else ""}, "messages": messages}
    if "history" in place:
        prompt = build_prompt(**arguments, chunks=None, cite=False, window=window)
        assert prompt.messages[-1].content == "what?"
        assert len(prompt.messages) < 5
    else:
        with pytest.raises(TooLarge, match="exceed the model's window of 200 tokens"):
            build_prompt(**arguments, chunks=None, cite=False, window=window)
    assert sum(counted) <= 200 * TOKEN_CHARACTERS


def test_blanks_before_no_citation_take_no_time() -> None:
    history = (ChatMessage("user", "q"), ChatMessage("assistant", f"a [ID:0]{' ' * 50_000}b"))
    started = time.process_time()
    assert build(history=history, context=10_000).messages[-2].content == f"a{' ' * 50_000}b"
    assert time.process_time() - started < 1
