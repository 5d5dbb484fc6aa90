"""PPTX: what python-pptx writes, and shapes that it cannot make."""

import zipfile
from io import BytesIO

from appliance.ingest.caps import Caps
from tests.office_files import COMPATIBILITY, PPTX, RELATIONS, P, package, relations, slides, zipped
from tests.office_samples import pptx_sample
from tests.reads import blocks, pages, reason


def shape(paragraphs: str, placeholder: str = "") -> str:
    return f"<p:sp><p:nvSpPr><p:nvPr>{placeholder}</p:nvPr></p:nvSpPr><p:txBody>{paragraphs}</p:txBody></p:sp>"


def line(text: str, properties: str = "", level: int = 0) -> str:
    return f'<a:p><a:pPr lvl="{level}">{properties}</a:pPr><a:r><a:t>{text}</a:t></a:r></a:p>'


def test_a_slide_is_a_page_with_title_bullets_table_and_notes() -> None:
    data = pptx_sample()
    assert pages(data, ".pptx") == (
        "Keys\n\nAn introduction",
        "Rules\n\n- Hand over in person\n  - never by mail\n\nKey\tHolder\ngate\tAda\n\n"
        "Notes: Tell the story of the lost key.",
        "In a group",
    )
    assert blocks(data, ".pptx") == [
        ("heading", 1, "Keys"),
        ("heading", 1, "Rules"),
        ("list", 0, "- Hand over in person\n  - never by mail"),
        ("table", 0, "Key\tHolder\ngate\tAda"),
    ]


def test_the_title_comes_first_and_the_slide_number_not_at_all() -> None:
    tree = (
        shape(line("beside"))
        + shape(line("Keys"), '<p:ph type="title"/>')
        + shape("<a:p><a:fld><a:t>7</a:t></a:fld></a:p>", '<p:ph type="sldNum" idx="12"/>')
    )
    assert pages(slides(tree), ".pptx") == ("Keys\n\nbeside",)


def test_bullets_are_those_that_the_slide_shows() -> None:
    body = line("plain", "<a:buNone/>") + line("one", "<a:buAutoNum/>") + line("sub", "<a:buAutoNum/>", 1)
    tree = shape(body + line("two", "<a:buAutoNum/>") + line("dot"), '<p:ph type="body" idx="1"/>')
    assert pages(slides(tree + shape(line("box", '<a:buChar char="•"/>'))), ".pptx") == (
        "plain\n\n1. one\n  1. sub\n2. two\n- dot\n- box",
    )


def test_line_breaks_fields_and_merged_cells_are_read() -> None:
    text = "<a:p><a:r><a:t>a</a:t></a:r><a:br/><a:fld><a:t>b</a:t></a:fld></a:p>"
    rows = (
        f'<a:tr><a:tc gridSpan="2"><a:txBody>{line("H")}</a:txBody></a:tc><a:tc hMerge="1"><a:txBody/></a:tc></a:tr>'
        f"<a:tr><a:tc><a:txBody>{line('x')}</a:txBody></a:tc><a:tc><a:txBody>{line('y')}</a:txBody></a:tc></a:tr>"
    )
    frame = f"<p:graphicFrame><a:graphic><a:tbl>{rows}</a:tbl></a:graphic></p:graphicFrame>"
    assert pages(slides(shape(text) + frame), ".pptx") == ("a\nb\n\nH\nx\ty",)


def test_of_alternatives_the_first_is_read() -> None:
    choice = f"<mc:Choice>{shape(line('new'))}</mc:Choice><mc:Fallback>{shape(line('old'))}</mc:Fallback>"
    tree = f'<mc:AlternateContent xmlns:mc="{COMPATIBILITY}">{choice}</mc:AlternateContent>'
    assert pages(slides(tree), ".pptx") == ("new",)


def test_an_empty_slide_keeps_its_number() -> None:
    assert pages(slides(shape(line("one")), "", shape(line("three"))), ".pptx") == ("one", "", "three")


def test_too_many_slides_and_too_deep_groups_are_refused() -> None:
    assert reason(slides(*[shape(line("x"))] * 11), ".pptx", Caps(pages=10)) == "TOO_MANY_PAGES"
    assert reason(slides("<p:grpSp>" * 5000 + "</p:grpSp>" * 5000), ".pptx") == "TOO_DEEP"


def test_a_slide_that_lies_outside_or_is_missing_is_left_out() -> None:
    listed = "<p:sldIdLst><p:sldId r:id='slide1'/><p:sldId r:id='slide2'/><p:sldId r:id='no'/></p:sldIdLst>"
    main = f'<p:presentation xmlns:p="{P}" xmlns:r="{RELATIONS}">{listed}</p:presentation>'
    data = package(PPTX, "ppt/presentation.xml", main)
    found = relations({"slide1": "../../../etc/passwd", "slide2": "file:///etc/passwd"})
    found = found.replace('Target="file', 'TargetMode="External" Target="file')
    with zipfile.ZipFile(BytesIO(data)) as archive:
        parts: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    assert reason(zipped({**parts, "ppt/_rels/presentation.xml.rels": found}), ".pptx") == "EMPTY"
