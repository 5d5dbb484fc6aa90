"""DOCX: what python-docx writes, and what Word writes that python-docx cannot."""

import pytest

from appliance.ingest.caps import Caps
from tests.office_files import paragraph, word
from tests.office_samples import docx_sample
from tests.reads import blocks, pages, reason

BREAK = '<w:r><w:br w:type="page"/></w:r>'
RENDERED = "<w:r><w:lastRenderedPageBreak/></w:r>"


def only_page(body: str, **parts: str) -> str:
    (page,) = pages(word(body, **parts), ".docx")
    return page


def field(kind: str) -> str:
    return f'<w:r><w:fldChar w:fldCharType="{kind}"/></w:r>'


def run(text: str, properties: str = "") -> str:
    return f"<w:r><w:rPr>{properties}</w:rPr><w:t>{text}</w:t></w:r>"


def cell(inside: str, properties: str = "") -> str:
    return f"<w:tc><w:tcPr>{properties}</w:tcPr>{inside}</w:tc>"


def test_a_document_keeps_its_structure_and_pages() -> None:
    data = docx_sample()
    assert pages(data, ".docx")[1] == "Page two.\n\nHeader: Internal"
    assert blocks(data, ".docx") == [
        ("heading", 1, "Handbook"),
        ("heading", 1, "Keys"),
        ("list", 0, "- gate\n- door\n1. sign\n2. return"),
        ("table", 0, "Key\tHolder\tSince\nboth\t\t2026"),
    ]
    assert "Not in the text" not in "".join(pages(data, ".docx"))


STYLES = """
<w:style w:type="paragraph" w:default="1" w:styleId="Standard"><w:name w:val="Normal"/></w:style>
<w:style w:type="paragraph" w:styleId="berschrift2"><w:name w:val="heading 2"/></w:style>
<w:style w:type="paragraph" w:styleId="Eigene"><w:name w:val="Eigene"/><w:basedOn w:val="berschrift2"/></w:style>
<w:style w:type="paragraph" w:styleId="Gliederung"><w:name w:val="Abschnitt"/>
  <w:pPr><w:outlineLvl w:val="3"/></w:pPr></w:style>
<w:style w:type="paragraph" w:styleId="Inhalt"><w:name w:val="TOC Heading"/><w:basedOn w:val="berschrift2"/>
  <w:pPr><w:outlineLvl w:val="9"/></w:pPr></w:style>
<w:style w:type="paragraph" w:styleId="Kreis"><w:name w:val="Kreis"/><w:basedOn w:val="Kreis"/></w:style>
"""


@pytest.mark.parametrize(
    ("properties", "level"),
    [
        ('<w:pStyle w:val="berschrift2"/>', 2),
        ('<w:pStyle w:val="Eigene"/>', 2),
        ('<w:pStyle w:val="Gliederung"/>', 4),
        ('<w:outlineLvl w:val="0"/>', 1),
        ('<w:pStyle w:val="Inhalt"/>', 0),
        ('<w:pStyle w:val="Kreis"/>', 0),
        ('<w:pStyle w:val="Missing"/>', 0),
        ('<w:outlineLvl w:val="9"/>', 0),
        ('<w:pStyle w:val="berschrift2"/><w:outlineLvl w:val="9"/>', 0),
        ("", 0),
    ],
)
def test_a_heading_is_known_in_every_language(properties: str, level: int) -> None:
    found = blocks(word(paragraph("Schlüssel", properties), styles=STYLES), ".docx")
    assert found == ([("heading", level, "Schlüssel")] if level else [])


NUMBERING = """
<w:abstractNum w:abstractNumId="0">
 <w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="%1."/></w:lvl>
 <w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="lowerLetter"/><w:lvlText w:val="%1.%2)"/></w:lvl>
 <w:lvl w:ilvl="2"><w:start w:val="4"/><w:numFmt w:val="upperRoman"/><w:lvlText w:val="%3"/></w:lvl></w:abstractNum>
<w:abstractNum w:abstractNumId="1">
 <w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/><w:lvlText w:val="&#xF0B7;"/></w:lvl></w:abstractNum>
<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>
<w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>
<w:num w:numId="3"><w:abstractNumId w:val="0"/>
 <w:lvlOverride w:ilvl="0"><w:startOverride w:val="7"/></w:lvlOverride></w:num>
"""


def item(text: str, number: int, depth: int = 0, more: str = "") -> str:
    return paragraph(text, f'{more}<w:numPr><w:ilvl w:val="{depth}"/><w:numId w:val="{number}"/></w:numPr>')


def test_lists_show_the_numbers_that_a_reader_sees() -> None:
    body = item("a", 1) + item("b", 1, 1) + item("c", 1, 1) + item("d", 1, 2) + item("e", 1) + item("f", 1, 1)
    assert only_page(body + item("g", 3) + item("h", 2), numbering=NUMBERING).split("\n") == [
        "1. a",
        "  1.a) b",
        "  1.b) c",
        "    IV d",
        "2. e",
        "  2.a) f",
        "7. g",
        "- h",
    ]


def test_a_numbered_heading_has_its_number() -> None:
    body = item("Keys", 1, more='<w:outlineLvl w:val="0"/>')
    assert blocks(word(body, numbering=NUMBERING), ".docx") == [("heading", 1, "1. Keys")]


def test_a_list_that_nothing_defines_has_bullets_and_a_number_of_none_is_no_list() -> None:
    assert only_page(item("a", 99) + item("b", 0)) == "- a\n\nb"


def test_insertions_are_read_and_deletions_are_not() -> None:
    body = (
        f"<w:p>{run('Keys ')}<w:del>{run('never ')}<w:r><w:delText>gone</w:delText></w:r></w:del>"
        f"<w:ins>{run('always')}</w:ins><w:moveFrom>{run(' moved')}</w:moveFrom>"
        f"<w:moveTo>{run(' here')}</w:moveTo></w:p>"
    )
    assert only_page(body) == "Keys always here"


def test_a_field_shows_its_result_and_not_its_instruction() -> None:
    instruction = "<w:r><w:instrText>HYPERLINK secret</w:instrText></w:r>"
    result = f"{field('separate')}{run('the list')}{field('end')}"
    body = f"<w:p>{run('See ')}{field('begin')}{instruction}{run('hidden')}{result}</w:p>"
    simple = f'<w:p><w:fldSimple w:instr="DATE">{run("today")}</w:fldSimple></w:p>'
    unclosed = f"<w:p>{field('begin')}{instruction}</w:p>{paragraph('goes on')}"
    assert only_page(body + simple + unclosed) == "See the list\n\ntoday\n\ngoes on"


def test_links_symbols_tabs_and_breaks_are_text_and_hidden_runs_are_not() -> None:
    switched_off = '<w:vanish w:val="0"/>'
    symbol = '<w:r><w:sym w:font="Symbol" w:char="F061"/></w:r><w:r><w:sym w:font="Wingdings" w:char="F0FC"/></w:r>'
    body = (
        f'<w:p><w:hyperlink w:anchor="x">{run("link")}</w:hyperlink><w:r><w:tab/><w:t>tab</w:t><w:br/><w:t>non</w:t>'
        f"<w:noBreakHyphen/><w:t>break</w:t></w:r>{symbol}{run('gone', '<w:vanish/>')}"
        f"{run('kept', switched_off)}</w:p>"
    )
    assert only_page(body) == "link\ttab\nnon-breakα✓kept"


def test_text_boxes_are_read_once() -> None:
    box = f"<w:txbxContent>{paragraph('in the box')}</w:txbxContent>"
    drawn = (
        f"<mc:AlternateContent><mc:Choice><w:drawing><wps:wsp>{box}</wps:wsp></w:drawing></mc:Choice>"
        f"<mc:Fallback><w:pict><v:shape>{box}</v:shape></w:pict></mc:Fallback></mc:AlternateContent>"
    )
    assert only_page(f"<w:p>{run('beside')}<w:r>{drawn}</w:r></w:p>") == "beside\n\nin the box"


def test_content_controls_and_formulas_are_read() -> None:
    control = (
        f"<w:sdt><w:sdtPr><w:alias w:val='no'/></w:sdtPr><w:sdtContent>{paragraph('inside')}</w:sdtContent></w:sdt>"
    )
    formula = "<w:p><m:oMath><m:r><m:t>x=1</m:t></m:r></m:oMath></w:p>"
    assert only_page(control + formula) == "inside\n\nx=1"


# --- tables


def test_merged_cells_stand_once_and_columns_stay_in_line() -> None:
    first = cell(paragraph("Name"), '<w:gridSpan w:val="2"/>') + cell(paragraph("Since"))
    second = cell(paragraph("A"), '<w:vMerge w:val="restart"/>') + cell(paragraph("B")) + cell(paragraph("C"))
    third = cell(paragraph("hidden"), "<w:vMerge/>") + cell(f"{paragraph('D')}{paragraph('E')}") + cell("<w:p/>")
    gone = f"<w:tr><w:trPr><w:del/></w:trPr>{cell(paragraph('X'))}{cell(paragraph('Y'))}</w:tr>"
    table = f"<w:tbl><w:tr>{first}</w:tr><w:tr>{second}</w:tr><w:tr>{third}</w:tr>{gone}</w:tbl>"
    assert blocks(word(table), ".docx") == [("table", 0, "Name\t\tSince\nA\tB\tC\n\tD E")]


def test_a_table_around_a_table_is_layout() -> None:
    inner = f"<w:tbl><w:tr>{cell(paragraph('a'))}{cell(paragraph('b'))}</w:tr></w:tbl>"
    outer = f"<w:tbl><w:tr>{cell(paragraph('left'))}{cell(inner + '<w:p/>')}</w:tr></w:tbl>"
    assert only_page(outer) == "left\n\na\tb"
    assert blocks(word(outer), ".docx") == [("table", 0, "a\tb")]


def test_a_table_over_two_pages_repeats_the_header_that_the_page_shows() -> None:
    header = f"<w:tr><w:trPr><w:tblHeader/></w:trPr>{cell(paragraph('Key'))}{cell(paragraph('Holder'))}</w:tr>"
    turned = f"<w:p>{RENDERED}{run('gate')}</w:p>"
    late = f"<w:tr>{cell(turned)}{cell(paragraph('Li'))}</w:tr>"
    table = f"<w:tbl>{header}<w:tr>{cell(paragraph('door'))}{cell(paragraph('Ada'))}</w:tr>{late}</w:tbl>"
    assert pages(word(table), ".docx") == ("Key\tHolder\ndoor\tAda", "Key\tHolder\ngate\tLi")


# --- pages


@pytest.mark.parametrize(
    "second",
    [
        f"<w:p>{RENDERED}{run('two')}</w:p>",
        f"<w:p>{BREAK}{run('two')}</w:p>",
        f"<w:p>{BREAK}</w:p><w:p>{RENDERED}{run('two')}</w:p>",
        f"<w:p><w:pPr><w:pageBreakBefore/></w:pPr>{RENDERED}{run('two')}</w:p>",
        f"<w:p><w:pPr><w:sectPr/></w:pPr></w:p><w:p>{RENDERED}{run('two')}</w:p><w:sectPr/>",
    ],
)
def test_a_page_turns_once_however_often_the_file_says_so(second: str) -> None:
    assert pages(word(paragraph("one") + second), ".docx") == ("one", "two")


def test_a_section_that_goes_on_turns_no_page_and_two_breaks_leave_one_empty() -> None:
    section = '<w:p><w:pPr><w:sectPr/></w:pPr></w:p>{}<w:sectPr><w:type w:val="continuous"/></w:sectPr>'
    assert pages(word(paragraph("one") + section.format(paragraph("same"))), ".docx") == ("one\n\nsame",)
    assert pages(word(f"<w:p>{run('one')}{BREAK}{BREAK}{run('three')}</w:p>"), ".docx") == ("one", "", "three")


def test_a_page_with_a_picture_alone_counts() -> None:
    picture = "<w:p><w:r><w:drawing/></w:r></w:p>"
    body = paragraph("one") + f"<w:p>{RENDERED}</w:p>{picture}<w:p>{RENDERED}{run('three')}</w:p>"
    assert pages(word(body), ".docx") == ("one", "", "three")


def test_too_many_pages_are_refused() -> None:
    assert reason(word(f"<w:p>{BREAK * 20}</w:p>"), ".docx", Caps(pages=10)) == "TOO_MANY_PAGES"


# --- notes


def test_a_footnote_stands_on_its_page_and_the_rest_at_the_end() -> None:
    def note(kind: str, number: int, text: str) -> str:
        return f'<w:{kind} w:id="{number}">{paragraph(text)}</w:{kind}>'

    def reference(kind: str, number: int) -> str:
        return f'<w:r><w:{kind}Reference w:id="{number}"/></w:r>'

    body = (
        f"<w:p>{run('first')}{reference('footnote', 5)}{reference('endnote', 2)}</w:p>"
        f"<w:p>{BREAK}{run('second')}{reference('footnote', 4)}{reference('footnote', 99)}</w:p>"
    )
    separator = f'<w:footnote w:type="separator" w:id="-1">{paragraph("no")}</w:footnote>'
    found = pages(
        word(
            body,
            footnotes=separator + note("footnote", 4, "later") + note("footnote", 5, "sooner"),
            endnotes=note("endnote", 2, "last"),
            comments=f'<w:comment w:author="Ada" w:id="0">{paragraph("why?")}</w:comment>',
            header1=paragraph("Internal"),
            header2=paragraph("Internal"),
            footer1=paragraph("Page 1"),
        ),
        ".docx",
    )
    assert found[0] == "first[^1][^e1]\n\n[^1]: sooner"
    assert found[1].split("\n\n") == [
        "second[^2]",
        "[^2]: later",
        "[^e1]: last",
        "Comment by Ada: why?",
        "Header: Internal",
        "Footer: Page 1",
    ]


# --- hostile


def nested_tables(depth: int) -> bytes:
    inside = cell(paragraph("a")) + cell("{}")
    opened, closed = f"<w:tbl><w:tr>{inside}</w:tr></w:tbl>".split("{}")
    return word(opened * depth + paragraph("deep") + closed * depth)


def test_nested_tables_are_read_to_a_depth_and_refused_beyond() -> None:
    assert "deep" in pages(nested_tables(20), ".docx")[0]
    assert reason(nested_tables(5000), ".docx") == "TOO_DEEP"


def test_fields_and_styles_without_end_end() -> None:
    styles = "".join(
        f'<w:style w:type="paragraph" w:styleId="s{n}"><w:name w:val="s{n}"/><w:basedOn w:val="s{n + 1}"/></w:style>'
        for n in range(5000)
    )
    body = "".join(paragraph("x", f'<w:pStyle w:val="s{n}"/>') + f"<w:p>{field('begin')}</w:p>" for n in range(5000))
    assert only_page(body, styles=styles).count("x") == 5000


def test_one_note_of_which_all_speak_is_there_once() -> None:
    reference = '<w:p><w:r><w:footnoteReference w:id="1"/></w:r></w:p>'
    page = only_page(reference * 500, footnotes=f'<w:footnote w:id="1">{paragraph("word " * 1000)}</w:footnote>')
    assert page.count("word word") < 1001


def test_a_document_without_a_body_is_empty() -> None:
    assert reason(word(""), ".docx") == "EMPTY"
