"""DOCX, PPTX, XLSX, EPUB: what people see comes out, in order, with its structure."""

import datetime

import pytest

from rag.errors import ParseFailed
from rag.ingest.parsers import docx, epub, pptx, xlsx
from rag.ingest.parsers.rows import Table, is_header, row_text, with_header
from rag.ingest.progress import silent
from tests.rag.ingest import sample_files
from tests.rag.ingest.sample_files import FACT

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def blocks(parsed):
    return [(block.level, block.kind, parsed.text[block.start : block.end]) for block in parsed.blocks]


def test_docx_keeps_headings_lists_and_tables_in_order(tmp_path):
    parsed = docx.parse(sample_files.docx_file(tmp_path / "a.docx"), silent)
    assert parsed.title == "Mills"
    assert blocks(parsed) == [
        (1, "", "Water"), (0, "", FACT), (2, "", "Wheels"), (0, "", "- overshot"), (0, "", "- undershot"),
        (0, "table", "wheel | power\nW1 | 3 kW"), (0, "", "The end."),
    ]  # fmt: skip


def test_docx_leaves_deleted_text_and_the_second_copy_of_a_text_box_out(tmp_path):
    xml = (
        f'<w:document xmlns:w="{W}" xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"><w:body><w:p>'
        "<w:r><w:t>kept</w:t><w:tab/><w:t>too</w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:r><mc:AlternateContent><mc:Choice><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Choice>"
        "<mc:Fallback><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Fallback></mc:AlternateContent></w:r></w:p></w:body></w:document>"
    )
    assert docx.parse(sample_files.docx_with(tmp_path / "a.docx", xml), silent).text == "kept\ttoo\nbox"


def test_pptx_has_a_page_for_each_slide_with_title_body_notes_and_tables(tmp_path):
    parsed = pptx.parse(sample_files.pptx_file(tmp_path / "a.pptx"), silent)
    assert parsed.pages == 2
    assert [(block.page, *entry) for block, entry in zip(parsed.blocks, blocks(parsed), strict=True)] == [
        (1, 1, "", "Water"), (1, 0, "", FACT), (1, 0, "", "Speak slowly."), (2, 1, "", "Wheels"), (2, 0, "table", "W1 | 3 kW"),
    ]  # fmt: skip


def test_xlsx_names_the_columns_in_every_row(tmp_path):
    parsed = xlsx.parse(sample_files.xlsx_file(tmp_path / "a.xlsx", rows=2), silent)
    assert blocks(parsed) == [
        (1, "", "Wheels"), (0, "table", "Name: W1; Power: 1.5; Built: 1801\nName: W2; Power: 3; Built: 1802"),
        (1, "", "Loose"), (0, "table", "1 | lonely"),
    ]  # fmt: skip


def test_a_spreadsheet_with_far_cells_is_read_by_rows(tmp_path):
    parsed = xlsx.parse(sample_files.sparse_xlsx(tmp_path / "far.xlsx"), silent)
    assert FACT in parsed.text
    assert "far" in parsed.text


def test_a_careful_reading_finds_the_same_cells(tmp_path):
    path = sample_files.xlsx_file(tmp_path / "a.xlsx")
    assert xlsx.parse(path, silent, careful=True) == xlsx.parse(path, silent)


def test_cells_read_as_people_write_them():
    moment = datetime.datetime(2026, 11, 20, 9, 30)
    values = [None, True, 3.0, 2.5, datetime.date(2026, 1, 2), moment, datetime.time(9, 30), "x"]
    assert [xlsx.cell_text(value) for value in values] == [
        "", "TRUE", "3", "2.5", "2026-01-02", "2026-11-20 09:30:00", "09:30:00", "x",
    ]  # fmt: skip


def test_a_header_is_different_short_words_above_other_rows():
    assert is_header(["Name", "Power"])
    assert not is_header(["Name", "3.5"])
    assert not is_header(["same", "same"])
    assert not is_header(["single"])
    assert list(with_header([["a", "b"]])) == [((), ("a", "b"))]
    assert list(with_header([["a", "b"], [], ["1", "", ""]])) == [(("a", "b"), ("1",))]
    assert row_text(("a", "b"), ("1", "2", "3")) == "a: 1; b: 2; 3"


def test_epub_reads_the_chapters_in_reading_order(tmp_path):
    parsed = epub.parse(sample_files.epub(tmp_path / "a.epub"), silent)
    assert parsed.title == "Mills"
    assert blocks(parsed) == [(1, "", "One"), (0, "", FACT), (1, "", "Two"), (0, "", "The end.")]


@pytest.mark.parametrize("parse", [docx.parse, pptx.parse, epub.parse])
def test_a_cut_off_archive_is_a_clear_failure(tmp_path, parse):
    whole = sample_files.docx_file(tmp_path / "whole.docx").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ParseFailed, match="damaged"):
        parse(tmp_path / "cut", silent)


def test_rows_are_read_as_they_are_asked_for():
    read = []

    def rows():
        for number in range(3):
            read.append(number)
            yield [str(number), "x"]

    first = next(with_header(Table("", rows()).rows))
    assert first == ((), ("0", "x"))
    assert len(read) == 2
