"""Real small files of every format, and hostile ones, made where a test needs them."""

import zipfile
from email.message import EmailMessage
from io import BytesIO
from pathlib import Path

import docx
import openpyxl
import pptx
import pypdf
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate, Table

FACT = "The mill race carries water to the wheel."


class _Outlined(SimpleDocTemplate):
    """Adds a bookmark for every heading."""

    def afterFlowable(self, flowable):
        if isinstance(flowable, Paragraph) and flowable.style.name == "Heading1":
            title = flowable.getPlainText()
            self.canv.bookmarkPage(title)
            self.canv.addOutlineEntry(title, title, 0)


def pdf(path: Path, chapters: int = 2) -> Path:
    """A PDF with bookmarked chapters, a page each."""
    styles = getSampleStyleSheet()
    flow = []
    for chapter in range(1, chapters + 1):
        flow += [
            Paragraph(f"Chapter {chapter}", styles["Heading1"]),
            Paragraph(f"{FACT} " * 6, styles["BodyText"]),
            Paragraph(f"A second paragraph of chapter {chapter}.", styles["BodyText"]),
            Table([["wheel", "power"], [f"W{chapter}", f"{chapter} kW"]]),
            PageBreak(),
        ]
    _Outlined(str(path), title="Mills", invariant=1).build(flow)
    return path


def changed_pdf(path: Path, before: Path) -> Path:
    """The PDF with one more page, which is written behind it, as editors do."""
    writer = pypdf.PdfWriter(before, incremental=True)
    writer.add_blank_page()
    writer.write(path)
    return path


def pdf_without_text(path: Path) -> Path:
    """What a scanner makes, as far as text goes."""
    canvas = Canvas(str(path))
    canvas.rect(10, 10, 100, 100, fill=1)
    canvas.save()
    return path


def encrypted_pdf(path: Path) -> Path:
    """A PDF that needs a password."""
    writer = pypdf.PdfWriter(clone_from=pdf(path.with_suffix(".plain.pdf")))
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(path)
    return path


def docx_file(path: Path) -> Path:
    """Headings, a list, a table."""
    document = docx.Document()
    document.core_properties.title = "Mills"
    document.add_heading("Water", 1)
    document.add_paragraph(FACT)
    document.add_heading("Wheels", 2)
    document.add_paragraph("overshot", style="List Bullet")
    document.add_paragraph("undershot", style="List Number")
    table = document.add_table(2, 2)
    for cell, text in zip((cell for row in table.rows for cell in row.cells), ("wheel", "power", "W1", "3 kW"), strict=True):
        cell.text = text
    document.add_paragraph("The end.")
    document.save(path)
    return path


def pptx_file(path: Path) -> Path:
    """Two slides: one with a body and notes, one with a table."""
    presentation = pptx.Presentation()
    first = presentation.slides.add_slide(presentation.slide_layouts[1])
    first.shapes.title.text = "Water"
    first.placeholders[1].text = FACT
    first.notes_slide.notes_text_frame.text = "Speak slowly."
    second = presentation.slides.add_slide(presentation.slide_layouts[5])
    second.shapes.title.text = "Wheels"
    table = second.shapes.add_table(1, 2, 0, 0, 914400, 914400).table
    table.cell(0, 0).text, table.cell(0, 1).text = "W1", "3 kW"
    presentation.save(path)
    return path


def xlsx_file(path: Path, rows: int = 3) -> Path:
    """Two sheets: one with a header, one without."""
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    sheet.title = "Wheels"
    sheet.append(["Name", "Power", "Built"])
    for number in range(1, rows + 1):
        sheet.append([f"W{number}", number * 1.5, 1800 + number])
    workbook.create_sheet("Loose").append([1, "lonely"])
    workbook.save(path)
    return path


def epub(path: Path) -> Path:
    """Two chapters, the second listed first in the archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("b.xhtml", "<html><body><h1>Two</h1><p>The end.</p></body></html>")
        archive.writestr("text/a b.xhtml", f"<html><head><title>x</title></head><body><h1>One</h1><p>{FACT}</p></body></html>")
        archive.writestr(
            "META-INF/container.xml",
            '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
            '<rootfile full-path="book.opf"/></rootfiles></container>',
        )
        archive.writestr(
            "book.opf",
            '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
            "<dc:title>Mills</dc:title></metadata><manifest>"
            '<item id="a" href="text/a%20b.xhtml" media-type="application/xhtml+xml"/>'
            '<item id="b" href="b.xhtml" media-type="application/xhtml+xml"/></manifest>'
            '<spine><itemref idref="a"/><itemref idref="b"/></spine></package>',
        )
    return path


def eml(path: Path, html: bool = False) -> Path:
    """A message with an attachment."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ada@example.org", "bob@example.org", "Über Mühlen"
    if html:
        message.set_content(f"<p>{FACT}</p><script>evil()</script>", subtype="html")
    else:
        message.set_content(f"Dear Bob,\n\n{FACT}\n")
    message.add_attachment(b"...", maintype="application", subtype="pdf", filename="plan.pdf")
    path.write_bytes(message.as_bytes())
    return path


def zip_bomb(path: Path, name: str = "word/document.xml", megabytes: int = 300) -> Path:
    """A small archive whose one part unpacks to very much."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w", force_zip64=True) as part:
        for _ in range(megabytes):
            part.write(b"\0" * (1 << 20))
    return path


def lying_zip_bomb(path: Path) -> Path:
    """An archive whose directory says that its part is small."""
    zip_bomb(path, megabytes=64)
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def entity_bomb() -> str:
    """XML that expands to three gigabytes where entities are expanded."""
    entities = "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 10))
    return f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY l0 "lol">{entities}]><a>&l9;{FACT}</a>'


def docx_with(path: Path, document_xml: str) -> Path:
    """A DOCX with just this as its text."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", document_xml)
    return path


def sparse_xlsx(path: Path) -> Path:
    """A spreadsheet with two cells as far apart as they can be."""
    workbook = openpyxl.Workbook()
    workbook.active["A1"] = FACT
    workbook.active.cell(1_048_576, 16_384, "far")
    buffer = BytesIO()
    workbook.save(buffer)
    path.write_bytes(buffer.getvalue())
    return path
