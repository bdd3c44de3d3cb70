"""PDF: text by pages with boxes, bookmarks as headings, clear failures."""

import pytest

from rag.errors import Encrypted, ParseFailed
from rag.ingest.parsers import pdf
from rag.ingest.progress import silent
from tests.rag.ingest import sample_files
from tests.rag.ingest.sample_files import FACT


def test_pages_paragraphs_headings_and_boxes_come_out(tmp_path):
    told = []
    parsed = pdf.parse(sample_files.pdf(tmp_path / "a.pdf", chapters=3), lambda *where: told.append(where))
    assert (parsed.title, parsed.pages) == ("Mills", 3)
    assert told == [("page", 1, 3), ("page", 2, 3), ("page", 3, 3)]
    second = [block for block in parsed.blocks if block.page == 2]
    texts = [parsed.text[block.start : block.end] for block in second]
    assert (texts[0], second[0].level) == ("Chapter 2", 1)
    assert texts[1].replace("\n", " ").count(FACT) == 6
    assert texts[2].startswith("A second paragraph of chapter 2.")
    assert "W2" in texts[-1]
    for block in second:
        left, right, top, bottom = block.box
        assert 0 <= left < right <= 612
        assert 0 <= top < bottom <= 842


def test_a_password_is_said_to_be_the_reason(tmp_path):
    with pytest.raises(Encrypted, match="password"):
        pdf.parse(sample_files.encrypted_pdf(tmp_path / "a.pdf"), silent)


def test_a_pdf_without_text_is_a_failure_that_says_what_to_do(tmp_path):
    with pytest.raises(ParseFailed, match="OCR"):
        pdf.parse(sample_files.pdf_without_text(tmp_path / "a.pdf"), silent)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_a_pdf_that_lost_its_table_of_objects_is_refused(tmp_path, share):
    whole = sample_files.pdf(tmp_path / "whole.pdf", chapters=5).read_bytes()
    cut = tmp_path / "cut.pdf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ParseFailed, match="the PDF is damaged or cut off and cannot be opened"):
        pdf.parse(cut, silent)


def test_a_pdf_that_lost_only_its_end_mark_is_read_whole(tmp_path):
    whole = sample_files.pdf(tmp_path / "whole.pdf", chapters=5)
    cut = tmp_path / "cut.pdf"
    cut.write_bytes(whole.read_bytes().rstrip().removesuffix(b"%%EOF"))
    assert pdf.parse(cut, silent) == pdf.parse(whole, silent)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_a_pdf_whose_last_change_is_cut_off_is_read_as_it_was_before(tmp_path, share):
    before = sample_files.pdf(tmp_path / "before.pdf", chapters=2)
    after = sample_files.changed_pdf(tmp_path / "after.pdf", before)
    size, change = before.stat().st_size, after.stat().st_size - before.stat().st_size
    cut = tmp_path / "cut.pdf"
    cut.write_bytes(after.read_bytes()[: size + int(change * share)])
    assert pdf.parse(after, silent).pages == 3
    assert pdf.parse(cut, silent) == pdf.parse(before, silent)


def test_bytes_that_only_begin_like_a_pdf_are_a_clear_failure(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\n" + b"rubbish " * 100)
    with pytest.raises(ParseFailed, match="damaged or cut off"):
        pdf.parse(tmp_path / "a.pdf", silent)
