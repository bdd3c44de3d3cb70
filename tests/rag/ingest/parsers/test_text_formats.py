"""Text, Markdown, HTML, CSV, JSON, XML, e-mail: text with exact offsets and structure."""

from email.message import EmailMessage

import pytest

from rag.errors import ParseFailed
from rag.ingest.parsers import delimited, eml, html, json_lines, markdown, plain, xml
from rag.ingest.progress import silent
from tests.rag.ingest import sample_files
from tests.rag.ingest.sample_files import FACT


def blocks(parsed):
    return [(block.level, block.kind, parsed.text[block.start : block.end]) for block in parsed.blocks]


def written(tmp_path, content, name="file"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_paragraphs_of_plain_text_are_blocks(tmp_path):
    parsed = plain.parse(written(tmp_path, " one\r\ntwo \r\n\r\n \t\r\nthree\r\n"), silent)
    assert parsed.text == " one\ntwo \n\n \t\nthree\n"
    assert blocks(parsed) == [(0, "", "one\ntwo"), (0, "", "three")]


def test_markdown_keeps_fences_whole_and_finds_headings_and_tables(tmp_path):
    source = "# One #\ntext\nmore\n\nTwo\n---\n| a | b |\n|---|---|\n| 1 | 2 |\nafter\n```\n# none\n\nx\n```\n~~~\nopen"
    parsed = markdown.parse(written(tmp_path, source), silent)
    assert parsed.title == "One"
    assert blocks(parsed) == [
        (1, "", "# One #"), (0, "", "text\nmore"), (2, "", "Two\n---"), (0, "table", "| a | b |\n|---|---|\n| 1 | 2 |"),
        (0, "", "after"), (0, "", "```\n# none\n\nx\n```"), (0, "", "~~~\nopen"),
    ]  # fmt: skip
    assert markdown.heading_text("## C# and more ##") == "C# and more"


def test_html_shows_what_a_reader_sees(tmp_path):
    source = (
        "<html><head><title>A  mill</title><style>p{}</style></head><body><h2>One</h2><p>a <b>bold</b>\n word<br>next</p>"
        "<script>evil()</script><ul><li>x<li>y</ul><table><caption>Cap</caption><tr><th>A<th>B<tr><td>1<td><p>2</p><p>3</p></table>"
        "tail<pre>  keep\n   this</pre><img alt='a wheel'></body></html>"
    )
    parsed = html.parse(written(tmp_path, source), silent)
    assert parsed.title == "A mill"
    assert blocks(parsed) == [
        (2, "", "One"), (0, "", "a bold word\nnext"), (0, "", "- x"), (0, "", "- y"), (0, "table", "Cap\nA | B\n1 | 2 3"),
        (0, "", "tail"), (0, "", "keep\n   this"), (0, "", "a wheel"),
    ]  # fmt: skip


def test_html_is_decoded_as_it_declares(tmp_path):
    page = "<meta charset='gb2312'><p>武田信玄</p>".encode("gb2312")
    assert html.parse(written(tmp_path, page), silent).text == "武田信玄"


def test_nested_tables_and_unclosed_elements_lose_no_text(tmp_path):
    source = "<table><tr><td>a<table><tr><td>b</td></tr></table></td><td>c</table><div>d<div>e<p>f"
    text = html.parse(written(tmp_path, source), silent).text
    assert [letter for letter in "abcdef" if letter not in text] == []


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_table_is_found_out(tmp_path, delimiter):
    rows = [["Name", "Note"], ["W1", f'"a{delimiter}b"'], ["W2", "c"]]
    source = "\n".join(delimiter.join(row) for row in rows)
    expected = f"Name: W1; Note: a{' ' if delimiter == chr(9) else delimiter}b\nName: W2; Note: c"
    assert delimited.parse(written(tmp_path, source), silent).text == expected


def test_json_records_become_lines_with_their_paths(tmp_path):
    parsed = json_lines.parse(written(tmp_path, '[{"a":{"b":1},"c":["x","y"],"n":null},{"d":[{"e":true}]}]'), silent)
    assert blocks(parsed) == [(0, "", "a.b: 1\nc: x, y"), (0, "", "d.e: true")]


def test_json_lines_are_records_and_broken_json_is_text(tmp_path):
    assert json_lines.parse(written(tmp_path, '{"a":1}\n\n{"a":2}\n'), silent).text == "a: 1\n\na: 2"
    assert json_lines.parse(written(tmp_path, '{"a": broken'), silent).text == '{"a": broken'
    assert "deep" in json_lines.parse(written(tmp_path, "[" * 5000 + '"deep"' + "]" * 5000), silent).text


def test_xml_gives_the_text_between_its_tags_and_expands_no_entity(tmp_path):
    assert xml.parse(written(tmp_path, "<a>one<b>two</b>three<!-- no --></a>"), silent).text == "one\ntwo\nthree"
    assert xml.parse(written(tmp_path, "<a>not closed"), silent).text == "<a>not closed"
    parsed = xml.parse(written(tmp_path, sample_files.entity_bomb()), silent)
    assert FACT in parsed.text
    assert len(parsed.text) < 2000


@pytest.mark.parametrize("is_html", [False, True])
def test_an_e_mail_has_headers_body_and_the_names_of_what_is_attached(tmp_path, is_html):
    parsed = eml.parse(sample_files.eml(tmp_path / "a.eml", html=is_html), silent)
    assert parsed.title == "Über Mühlen"
    assert "From: ada@example.org" in parsed.text
    assert FACT in parsed.text
    assert "evil" not in parsed.text
    assert parsed.text.endswith("Attachments: plan.pdf")


def mail(subject, body):
    message = EmailMessage()
    message["From"], message["Subject"] = "ada@example.org", subject
    message.set_content(body)
    return message


def test_attached_texts_and_forwarded_messages_are_read_under_their_names(tmp_path):
    inner = mail("Harvest", "The forwarded barley.")
    inner.add_attachment("the deepest oats", filename="oats.txt")
    message = mail("Mills", "The body.")
    message.add_alternative("<p>The body as a page.</p>", subtype="html")
    message.add_attachment("rye in a note", filename="notes.txt")
    message.add_attachment("<p>wheat in a page</p>", subtype="html", filename="page.html")
    message.add_attachment(b"\0\1\2\3" * 50, maintype="text", subtype="plain", filename="no text.txt")
    message.add_attachment(b"...", maintype="application", subtype="pdf")
    message.add_attachment(inner)
    parsed = eml.parse(written(tmp_path, message.as_bytes()), silent)
    blocks = [(block.level, parsed.text[block.start : block.end]) for block in parsed.blocks]
    assert blocks == [
        (0, "From: ada@example.org\nSubject: Mills"), (0, "The body."), (0, "Attachments: no text.txt, application/pdf"),
        (1, "notes.txt"), (0, "rye in a note"), (1, "page.html"), (0, "wheat in a page"),
        (1, "Forwarded message: Harvest"), (0, "From: ada@example.org\nSubject: Harvest"), (0, "The forwarded barley."),
        (2, "oats.txt"), (0, "the deepest oats"),
    ]  # fmt: skip


def test_messages_forwarded_too_often_are_named_only(tmp_path):
    message = mail("0", "body 0")
    for number in range(1, eml.MAX_DEPTH + 2):
        outer = mail(str(number), f"body {number}")
        outer.add_attachment(message)
        message = outer
    text = eml.parse(written(tmp_path, message.as_bytes()), silent).text
    assert "body 1" in text
    assert "body 0" not in text
    assert text.endswith("Attachments: Forwarded message: 0")


def test_an_e_mail_of_too_many_parts_is_read_up_to_the_bound_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(eml, "MAX_PARTS", 2)
    message = mail("Mills", "The body.")
    for number in range(4):
        message.add_attachment(f"text {number}", filename=f"{number}.txt")
    parsed = eml.parse(written(tmp_path, message.as_bytes()), silent)
    assert "text 1" in parsed.text
    assert "text 2" not in parsed.text
    assert parsed.warnings == ("the e-mail has more than 2 parts: the others were left out",)


def test_an_e_mail_nested_without_end_is_a_failure(tmp_path):
    nested = "".join(f"Content-Type: multipart/mixed; boundary=b{n}\n\n--b{n}\n" for n in range(1500))
    with pytest.raises(ParseFailed, match="nested too deep"):
        eml.parse(written(tmp_path, nested), silent)


def test_what_has_no_headers_is_no_e_mail(tmp_path):
    with pytest.raises(ParseFailed, match="e-mail"):
        eml.parse(written(tmp_path, "\n\njust text"), silent)
