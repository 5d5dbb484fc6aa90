"""Office files as the libraries write them that people make them with."""

from datetime import date, datetime
from io import BytesIO

import docx
import openpyxl
import pptx
import xlwt
from docx.enum.text import WD_BREAK
from pptx.util import Inches


def docx_sample() -> bytes:
    document = docx.Document()
    document.core_properties.title = "Not in the text"
    document.add_heading("Handbook", 0)
    document.add_heading("Keys", 1)
    document.add_paragraph("Keys are handed over in person.")
    for text in ("gate", "door"):
        document.add_paragraph(text, style="List Bullet")
    for text in ("sign", "return"):
        document.add_paragraph(text, style="List Number")
    table = document.add_table(2, 3)
    for at, text in enumerate(("Key", "Holder", "Since")):
        table.cell(0, at).text = text
    table.cell(1, 0).merge(table.cell(1, 1)).text = "both"
    table.cell(1, 2).text = "2026"
    document.add_paragraph("End of page one").add_run().add_break(WD_BREAK.PAGE)
    document.add_paragraph("Page two.")
    document.sections[0].header.paragraphs[0].text = "Internal"
    out = BytesIO()
    document.save(out)
    return out.getvalue()


def pptx_sample() -> bytes:
    deck = pptx.Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[0])
    first.shapes.title.text, first.placeholders[1].text = "Keys", "An introduction"
    second = deck.slides.add_slide(deck.slide_layouts[1])
    second.shapes.title.text = "Rules"
    frame = second.placeholders[1].text_frame
    frame.text = "Hand over in person"
    deeper = frame.add_paragraph()
    deeper.text, deeper.level = "never by mail", 1
    table = second.shapes.add_table(2, 2, Inches(1), Inches(1), Inches(3), Inches(2)).table
    for at, text in enumerate(("Key", "Holder", "gate", "Ada")):
        table.cell(at // 2, at % 2).text = text
    second.notes_slide.notes_text_frame.text = "Tell the story of the lost key."
    hidden = deck.slides.add_slide(deck.slide_layouts[6])
    hidden._element.set("show", "0")
    group = hidden.shapes.add_group_shape()
    box = group.shapes.add_textbox(Inches(1), Inches(1), Inches(2), Inches(1))
    box.text_frame.text = "In a group"
    out = BytesIO()
    deck.save(out)
    return out.getvalue()


def xlsx_sample() -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Keys"
    sheet["B2"] = "All keys, 2026"
    for at, row in enumerate(
        [
            ("Key", "Holder", "Since", "Share", "Out"),
            ("gate", "Ada", date(2026, 3, 1), 0.25, True),
            ("door", "Li", datetime(2026, 3, 2, 14, 30), 0.5, False),  # noqa: DTZ001 - cells know no zone
        ],
        4,
    ):
        for column, value in enumerate(row, 2):
            sheet.cell(at, column, value)
    sheet["E5"].number_format = sheet["E6"].number_format = "0%"
    sheet.merge_cells("B8:C8")
    sheet["B8"] = "Total"
    sheet["E8"] = 2
    hidden = book.create_sheet("Hidden")
    hidden.sheet_state = "hidden"
    hidden["A1"], hidden["A2"] = "one column", "is text"
    book.create_sheet("Empty")
    out = BytesIO()
    book.save(out)
    return out.getvalue()


def xls_sample() -> bytes:
    book = xlwt.Workbook()
    sheet = book.add_sheet("Keys")
    day = xlwt.XFStyle()
    day.num_format_str = "yyyy-mm-dd"
    for row, cells in enumerate([("Key", "Since", "Count", "Out"), ("gate", date(2026, 3, 1), 2.5, True)]):
        for column, value in enumerate(cells):
            sheet.write(row, column, value, day if isinstance(value, date) else xlwt.XFStyle())
    sheet.write(1, 4, "=1+1")
    book.add_sheet("Empty")
    out = BytesIO()
    book.save(out)
    return out.getvalue()
