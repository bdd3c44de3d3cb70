"""Chunk methods: how files become chunks, with headings, positions and bounds."""

import pytest

from rag.errors import ParseFailed, UnsupportedType
from rag.ingest.chunks import chunk
from rag.ingest.progress import silent
from rag.nlp.split import CharacterCounter
from tests.rag.ingest import sample_files
from tests.rag.ingest.sample_files import FACT


class Words(CharacterCounter):
    """A token a word."""

    def count(self, text):
        return len(text.split())

    def runs(self, text):
        runs = super().runs(text)
        runs.tokens[:] = range(len(runs.ends))
        return runs


def drafts(path, method="naive", **config):
    return chunk(path, path.name, method, config, Words(), silent)[0]


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


GUIDE = f"# Mills\n\nIntro words.\n\n## Water\n\n{FACT}\n\n### Race\n\nIt is a channel.\n\n## Wind\n\nIt turns sails."


def test_naive_fills_chunks_and_keeps_the_headings_above(tmp_path):
    found = drafts(written(tmp_path, "guide.md", GUIDE), chunk_token_num=12)
    assert "".join(draft.content.replace("\n", "") for draft in found) == GUIDE.replace("\n", "")
    assert all(GUIDE[draft.start : draft.end] == draft.content for draft in found)
    assert all(draft.size_tokens <= 12 for draft in found)
    race = next(draft for draft in found if "It is a channel" in draft.content)
    assert race.headings[:2] == ("Mills", "Water")


@pytest.mark.parametrize("method", ["manual", "paper", "book", "laws"])
def test_every_heading_begins_a_chunk_where_the_method_says_so(tmp_path, method):
    found = drafts(written(tmp_path, "guide.md", GUIDE), method)
    assert [draft.content.split("\n")[0] for draft in found] == ["# Mills", "## Water", "### Race", "## Wind"]
    assert [draft.headings for draft in found] == [(), ("Mills",), ("Mills", "Water"), ("Mills",)]


def test_a_slide_is_a_chunk_of_a_presentation(tmp_path):
    found = drafts(sample_files.pptx_file(tmp_path / "a.pptx"), "presentation")
    assert [draft.positions for draft in found] == [((1, 0, 0, 0, 0),), ((2, 0, 0, 0, 0),)]


def test_one_keeps_the_document_whole_up_to_its_bound(tmp_path):
    assert [draft.content for draft in drafts(written(tmp_path, "a.txt", f"{FACT}\n\n{FACT}"), "one", chunk_token_num=4)] == [
        f"{FACT}\n\n{FACT}"
    ]
    assert len(drafts(written(tmp_path, "b.txt", "word " * 20_000), "one")) == 3


def test_pdf_chunks_know_their_pages_and_boxes(tmp_path):
    found = drafts(sample_files.pdf(tmp_path / "a.pdf", chapters=3), "book")
    assert [{position[0] for position in draft.positions} for draft in found] == [{1}, {2}, {3}]
    assert all(position[2] > position[1] and position[4] > position[3] for draft in found for position in draft.positions)


def test_qa_takes_pairs_from_tabs_tables_and_headings(tmp_path):
    expected = ["Question: What is it?\tAnswer: A mill\nby a race", "Question: Who?\tAnswer: Ada"]
    assert [
        draft.content for draft in drafts(written(tmp_path, "a.txt", "Q: What is it?\tA mill\nby a race\nWho?\tA: Ada"), "qa")
    ] == expected
    table = "question,answer\nWhat is it?,A mill\n,by a race\nWho?,Ada\n"
    assert [draft.content for draft in drafts(written(tmp_path, "a.csv", table), "qa")] == expected
    found = drafts(written(tmp_path, "a.md", "# What is it?\n\nA mill\n\n# Who?\n\nAda"), "qa")
    assert [draft.content for draft in found] == ["Question: What is it?\tAnswer: A mill", "Question: Who?\tAnswer: Ada"]
    with pytest.raises(ParseFailed, match="no questions"):
        drafts(written(tmp_path, "b.txt", FACT), "qa")


def test_table_makes_a_chunk_of_each_row_with_its_columns(tmp_path):
    found = drafts(sample_files.xlsx_file(tmp_path / "a.xlsx", rows=2), "table")
    assert [(draft.content, draft.headings) for draft in found] == [
        ("Name: W1; Power: 1.5; Built: 1801", ("Wheels",)), ("Name: W2; Power: 3; Built: 1802", ("Wheels",)),
        ("1 | lonely", ("Loose",)),
    ]  # fmt: skip
    with pytest.raises(ParseFailed, match="needs a table"):
        drafts(written(tmp_path, "a.txt", FACT), "table")


def test_tag_reads_a_text_and_its_tags(tmp_path):
    found = drafts(written(tmp_path, "a.csv", f'content,tags\n{FACT},"water, wheel，water"\n'), "tag")
    assert [(draft.content, draft.tags) for draft in found] == [(FACT, ("water", "wheel"))]


@pytest.mark.parametrize("method", ["picture", "audio"])
def test_methods_for_what_is_not_read_say_what_to_do(tmp_path, method):
    with pytest.raises(UnsupportedType, match="upload"):
        drafts(written(tmp_path, "a.txt", FACT), method)


def test_a_table_under_a_heading_is_a_table(tmp_path):
    assert drafts(sample_files.xlsx_file(tmp_path / "a.xlsx"))[0].kind == "table"
    assert drafts(written(tmp_path, "a.md", "# Only a heading"))[0].kind == ""
