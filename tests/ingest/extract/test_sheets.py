"""XLSX, ODS and XLS: what their libraries write, and cells that no library would."""

from io import BytesIO

import openpyxl
import pytest

from appliance.ingest.caps import Caps
from tests.office_files import encrypted_package, ods, text_cell, workbook
from tests.office_samples import xls_sample, xlsx_sample
from tests.reads import blocks, pages, reason

FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1+1", '=HYPERLINK("http://x","y")', "=cmd|' /C calc'!A0")


def test_a_sheet_is_a_page_with_its_table_as_it_is_shown() -> None:
    data = xlsx_sample()
    table = (
        "Key\tHolder\tSince\tShare\tOut\n"
        "gate\tAda\t2026-03-01\t25%\tTRUE\n"
        "door\tLi\t2026-03-02 14:30:00\t50%\tFALSE\n"
        "Total\t\t\t2"
    )
    assert pages(data, ".xlsx") == (f"Keys\n\nAll keys, 2026\n\n{table}", "Hidden\n\none column\nis text", "Empty")
    assert blocks(data, ".xlsx") == [
        ("heading", 1, "Keys"),
        ("table", 0, table),
        ("heading", 1, "Hidden"),
        ("heading", 1, "Empty"),
    ]


def test_what_begins_like_a_formula_is_text() -> None:
    rows = "".join(f"<row>{text_cell('', 'x')}{text_cell('', text)}</row>" for text in FORMULAS)
    (page,) = pages(workbook(rows), ".xlsx")
    assert page.split("\n")[2:] == [f"x\t{text.strip()}" for text in FORMULAS]


def test_a_formula_shows_what_it_was_worth_and_is_not_worked_out() -> None:
    cells = '<c><f>1+1</f><v>5</v></c><c t="str"><f>A1</f><v>five</v></c><c t="e"><f>1/0</f><v>#DIV/0!</v></c>'
    assert pages(workbook(f"<row>{cells}<c><f>2+2</f></c></row>"), ".xlsx") == ("A\n\n5\tfive\t#DIV/0!",)


def test_a_library_that_stored_no_values_leaves_formulas_out() -> None:
    book = openpyxl.Workbook()
    book.active.append(["sum", "=1+1"])
    out = BytesIO()
    book.save(out)
    assert pages(out.getvalue(), ".xlsx") == ("Sheet\n\nsum",)


@pytest.mark.parametrize(
    ("format_id", "value", "shown"),
    [
        (0, "0.30000000000000004", "0.3"),
        (9, "0.5", "50%"),
        (14, "46000", "2025-12-09"),
        (22, "46000.5", "2025-12-09 12:00"),
    ],
)
def test_numbers_are_shown_by_their_style(format_id: int, value: str, shown: str) -> None:
    styles = f'<cellXfs><xf numFmtId="0"/><xf numFmtId="{format_id}"/></cellXfs>'
    row = f'<row>{text_cell("A1", "x")}<c r="B1" s="1"><v>{value}</v></c></row>'
    assert pages(workbook(row, styles=styles), ".xlsx") == (f"A\n\nx\t{shown}",)


def test_dates_count_from_where_the_workbook_says() -> None:
    styles = '<cellXfs><xf numFmtId="14"/></cellXfs>'
    row = f'<row>{text_cell("A1", "x")}<c r="B1" s="0"><v>1</v></c></row>'
    mac = workbook(row, styles=styles, properties='<workbookPr date1904="1"/>')
    assert pages(mac, ".xlsx") == ("A\n\nx\t1904-01-02",)


def test_shared_texts_are_joined_and_their_pronunciation_is_left_out() -> None:
    shared = ("<t>plain</t>", "<r><t>two </t></r><r><t>runs</t></r>", "<t>東京</t><rPh><t>トウキョウ</t></rPh>")
    cells = "".join(f'<c t="s"><v>{at}</v></c>' for at in (0, 1, 2, 3))
    assert pages(workbook(f"<row>{cells}</row>", shared=shared), ".xlsx") == ("A\n\nplain\ttwo runs\t東京",)


def test_a_lying_dimension_and_far_cells_cost_nothing() -> None:
    rows = f'<row r="1">{text_cell("A1", "near")}</row><row r="1048576">{text_cell("XFD1048576", "far")}</row>'
    data = workbook(f"</sheetData><dimension ref='A1:XFD1048576'/><sheetData>{rows}")
    assert pages(data, ".xlsx") == ("A\n\nnear\n\nfar",)


def test_cells_out_of_order_and_with_wild_references_are_kept() -> None:
    cells = text_cell("C1", "c") + text_cell("A1", "a") + text_cell("ZZZZZ9", "b") + text_cell("E1", "e")
    assert pages(workbook(f'<row r="x">{cells}</row>'), ".xlsx") == ("A\n\na\tb\tc\te",)


@pytest.mark.parametrize("value", ["abc", "nan", "inf", "1e999", "-1e400", "", "9" * 400])
def test_a_number_that_is_none_does_no_harm(value: str) -> None:
    assert pages(workbook(f"<row>{text_cell('', 'x')}<c><v>{value}</v></c></row>"), ".xlsx")[0].startswith("A\n\nx")


def test_too_many_cells_are_refused_in_all_sheets_together() -> None:
    rows = f"<row>{text_cell('', 'x') * 10}</row>" * 6
    assert reason(workbook(rows, rows), ".xlsx", Caps(cells=100)) == "TOO_MANY_CELLS"
    assert pages(workbook(rows, rows), ".xlsx", Caps(cells=120))


def test_figures_after_an_empty_row_belong_to_the_table_and_words_begin_a_new_one() -> None:
    def row(number: int, *cells: str) -> str:
        shown = (f"<c><v>{cell}</v></c>" if cell.isdigit() else text_cell("", cell) for cell in cells)
        return f'<row r="{number}">{"".join(shown)}</row>'

    goes_on = row(1, "Key", "Count") + row(2, "gate", "1") + row(4, "door", "2")
    assert blocks(workbook(goes_on), ".xlsx")[1:] == [("table", 0, "Key\tCount\ngate\t1\ndoor\t2")]
    two = row(1, "Key", "Count") + row(2, "gate", "1") + row(4, "Room", "Floor") + row(5, "hall", "3")
    assert blocks(workbook(two), ".xlsx")[1:] == [
        ("table", 0, "Key\tCount\ngate\t1"),
        ("table", 0, "Room\tFloor\nhall\t3"),
    ]


# --- ODS


def test_an_ods_is_read_as_it_is_shown() -> None:
    def cell(text: str, kind: str = "string") -> str:
        return f'<table:table-cell office:value-type="{kind}"><text:p>{text}</text:p></table:table-cell>'

    rows = (
        f"<table:table-row>{cell('Key')}{cell('Share')}{cell('Since')}</table:table-row>"
        f"<table:table-row>{cell('gate')}{cell('25 %', 'percentage')}{cell('01.03.2026', 'date')}</table:table-row>"
        '<table:table-row table:number-rows-repeated="1048000">'
        '<table:table-cell table:number-columns-repeated="16384"/></table:table-row>'
        "<table:table-row><table:table-cell><text:p>a<text:s text:c='2'/>b<text:span>c</text:span></text:p>"
        '</table:table-cell><table:table-cell office:value-type="float" office:value="7"/>'
        "<table:table-cell><office:annotation><text:p>unseen</text:p></office:annotation>"
        "<text:p>x</text:p><text:p>y</text:p></table:table-cell></table:table-row>"
    )
    data = ods(f'<table:table table:name="Keys">{rows}</table:table><table:table table:name="B"/>')
    table = "Key\tShare\tSince\ngate\t25 %\t01.03.2026\na bc\t7\tx y"
    assert pages(data, ".ods") == (f"Keys\n\n{table}", "B")
    assert blocks(data, ".ods") == [("heading", 1, "Keys"), ("table", 0, table), ("heading", 1, "B")]


@pytest.mark.parametrize(("columns", "rows"), [(16384, 1048576), (99999999, 1), (1, 99999999)])
def test_a_cell_that_is_repeated_without_end_is_refused(columns: int, rows: int) -> None:
    cell = f'<table:table-cell table:number-columns-repeated="{columns}"><text:p>x</text:p></table:table-cell>'
    row = f'<table:table-row table:number-rows-repeated="{rows}">{cell}</table:table-row>'
    assert reason(ods(f'<table:table table:name="A">{row}</table:table>'), ".ods") == "TOO_MANY_CELLS"


def test_a_repeated_cell_is_there_as_often_as_it_is_shown() -> None:
    cell = '<table:table-cell table:number-columns-repeated="3"><text:p>x</text:p></table:table-cell>'
    row = f'<table:table-row table:number-rows-repeated="2">{cell}</table:table-row>'
    assert pages(ods(f'<table:table table:name="A">{row}</table:table>'), ".ods") == ("A\n\nx\tx\tx\nx\tx\tx",)


def test_an_ods_with_a_password_or_of_another_kind_is_refused() -> None:
    manifest = "<m:file-entry><m:encryption-data/></m:file-entry>"
    assert reason(ods("", manifest=manifest), ".ods") == "DOCUMENT_ENCRYPTED"
    assert reason(ods("", mimetype="application/vnd.oasis.opendocument.text"), ".ods") == "TYPE_MISMATCH"


# --- XLS


def test_an_old_workbook_is_read() -> None:
    table = "Key\tSince\tCount\tOut\ngate\t2026-03-01\t2.5\tTRUE\t=1+1"
    assert pages(xls_sample(), ".xls") == (f"Keys\n\n{table}", "Empty")


def test_an_old_workbook_of_another_kind_cut_or_too_large_is_refused() -> None:
    data = xls_sample()
    assert reason(encrypted_package(), ".xls") == "TYPE_MISMATCH"
    assert reason(b"a\tb\n", ".xls") == "TYPE_MISMATCH"
    assert reason(data[: len(data) // 2], ".xls") in ("DOCUMENT_BROKEN", "TYPE_MISMATCH")
    assert reason(data, ".xls", Caps(cells=5)) == "TOO_MANY_CELLS"
