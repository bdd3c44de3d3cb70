"""What a file is: its content counts before its name, and every refusal says what to do."""

import zipfile

import pytest

from rag.errors import Encrypted, ParseFailed, TooLarge, UnsupportedType
from rag.ingest.parse import parse, recognise
from rag.ingest.progress import silent
from tests.rag.ingest import sample_files
from tests.rag.ingest.sample_files import FACT

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["right", "wrong.txt", "wrong.pdf", "wrong.xlsx", "wrong.doc"])
@pytest.mark.parametrize(
    ("make", "expected"),
    [(sample_files.pdf, "pdf"), (sample_files.docx_file, "docx"), (sample_files.pptx_file, "pptx"), (sample_files.xlsx_file, "xlsx"),
     (sample_files.epub, "epub")],
)  # fmt: skip
def test_the_content_tells_binary_formats_whatever_the_name(tmp_path, make, expected, name):
    file = recognise(make(tmp_path / "file"), name)
    assert file.format == expected
    promised = {"wrong.pdf": "a PDF", "wrong.xlsx": "a spreadsheet"}.get(name)
    if promised and expected not in name:
        assert file.warnings[0].startswith(f"the file is not {promised} as its name says: it was read as ")
    else:
        assert file.warnings == ()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.md", "# x", "markdown"), ("a.HTML", "x", "html"), ("a.csv", "a,b", "csv"), ("a.json", "{}", "json"), ("a.eml", "A: b", "eml"),
        ("a.xml", "<a/>", "xml"), ("a.py", "import os", "text"), ("a.sql", "select 1", "text"), ("noname", FACT, "text"),
        ("a.doc", "<html><body>x</body></html>", "html"), ("a.txt", "what %PDF-1.4 means", "text"),
        ("a.txt", "<!DOCTYPE html><p>x", "html"),
    ],
)  # fmt: skip
def test_the_name_tells_text_formats_apart(tmp_path, name, content, expected):
    assert recognise(written(tmp_path, "file", content.encode()), name).format == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.pdf", "is not a PDF"), ("a.docx", "is not a DOCX"), ("a.pptx", "is not a PPTX"), ("a.xlsx", "is not a spreadsheet"),
        ("a.epub", "is not an EPUB"),
    ],
)  # fmt: skip
def test_text_under_the_name_of_a_binary_format_is_a_failure(tmp_path, name, message):
    with pytest.raises(ParseFailed, match=message):
        recognise(written(tmp_path, "file", FACT.encode()), name)
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("x.txt", FACT)
    with pytest.raises(ParseFailed, match=message):
        recognise(tmp_path / "zip", name)


def test_a_text_table_named_as_an_old_spreadsheet_is_read_and_told(tmp_path):
    file = recognise(written(tmp_path, "file", b"a\tb\n1\t2"), "export.xls")
    assert (file.format, file.warnings) == ("text", ("the file is not a spreadsheet as its name says: it was read as a text file",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.doc", OLE), ("a.ppt", OLE), ("a.wps", OLE), ("a.msg", OLE), ("x", OLE), ("a.rtf", b"{\\rtf1 x}"),
        ("a.png", b"\x89PNG\r\n\x1a\n1"),
        ("a.txt", b"\xff\xd8\xff\xe0 jpeg"), ("a.mp3", b"ID3\x03"), ("a.wav", b"RIFF1234WAVE"), ("a.mp4", b"\0\0\0\x20ftypisom"),
        ("a.gz", b"\x1f\x8b\x08"), ("a.exe", b"\x7fELF"),
    ],
)  # fmt: skip
def test_formats_that_are_not_read_say_what_to_do(tmp_path, name, content):
    with pytest.raises(UnsupportedType, match=r"not read"):
        recognise(written(tmp_path, "file", content), name)


@pytest.mark.parametrize(("name", "advice"), [("a.msg", r"\.eml"), ("a.doc", r"\.docx")])
def test_a_damaged_file_of_a_format_that_is_not_read_says_what_to_do_and_a_text_is_read(tmp_path, name, advice):
    with pytest.raises(UnsupportedType, match=advice):
        recognise(written(tmp_path, "file", OLE[:4] + bytes(range(256)) * 8), name)
    assert recognise(written(tmp_path, "file", "Mühlen".encode()), name).format == "text"


def test_other_archives_are_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.txt", FACT)
    with pytest.raises(UnsupportedType, match="unpack"):
        recognise(tmp_path / "a.zip", "a.zip")
    with pytest.raises(UnsupportedType, match="Pages"):
        recognise(tmp_path / "a.zip", "a.pages")


def test_an_encrypted_office_file_is_told_from_an_old_one(tmp_path):
    content = OLE + "EncryptedPackage".encode("utf-16-le")
    with pytest.raises(Encrypted, match="password"):
        recognise(written(tmp_path, "a.docx", content), "a.docx")


@pytest.mark.parametrize("blank", [b"", b" \n\t", b"\xef\xbb\xbf", b"\x00\x00"])
def test_a_file_without_text_is_a_failure(tmp_path, blank):
    with pytest.raises(ParseFailed, match=r"empty|no text"):
        parse(recognise(written(tmp_path, "a.txt", blank), "a.txt"), silent)


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path):
    with pytest.raises(TooLarge, match="times its size"):
        recognise(sample_files.zip_bomb(tmp_path / "a.docx"), "a.docx")


def test_an_archive_that_lies_about_its_size_is_damaged(tmp_path):
    with pytest.raises(ParseFailed, match="damaged"):
        parse(recognise(sample_files.lying_zip_bomb(tmp_path / "a.docx"), "a.docx"), silent)


def test_an_xml_bomb_in_an_office_file_is_not_expanded(tmp_path):
    with pytest.raises(ParseFailed):
        parse(recognise(sample_files.docx_with(tmp_path / "a.docx", sample_files.entity_bomb()), "a.docx"), silent)
