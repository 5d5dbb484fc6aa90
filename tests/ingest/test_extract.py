"""What each format gives, read in this process: the bytes here are ours."""

import codecs
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from appliance.errors import DocumentRefused
from appliance.ingest import extract
from appliance.ingest.caps import Caps
from tests import pdf_files
from tests.picture_files import drawn, encoded

SAMPLES = Path(__file__).parents[2] / "appliance" / "cli" / "samples" / "documents"


def pages(data: bytes | str, suffix: str, max_pages: int = 100) -> tuple[str, ...]:
    return extract.Reader(Caps(pages=max_pages)).parse(data.encode() if isinstance(data, str) else data, suffix)[2]


def blocks(data: bytes | str, suffix: str) -> list[tuple[str, int, str]]:
    """Kind, level and text of each block; in order, inside its page, without overlap."""
    _, _, found, rows, _ = extract.Reader(Caps()).parse(data.encode() if isinstance(data, str) else data, suffix)
    last = (1, 0)
    for _, _, page, start, end in rows:
        assert last <= (page, start)
        assert start < end <= len(found[page - 1])
        last = (page, end)
    return [(kind, level, found[page - 1][start:end]) for kind, level, page, start, end in rows]


def reason(data: bytes, suffix: str, max_pages: int = 100) -> str:
    with pytest.raises(DocumentRefused) as refused:
        extract.Reader(Caps(pages=max_pages)).parse(data, suffix)
    return refused.value.file_reason


def test_what_the_daemon_imports_holds_no_parser() -> None:
    loaded = "import sys, appliance.app; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, check=True, text=True).stdout.split()
    assert "appliance.ingest.formats" in modules
    assert {"appliance.ingest.extract", "pypdfium2", "pypdf", "PIL", "selectolax", "markdown_it"}.isdisjoint(modules)


# --- type ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".exe", "", ".\u202efdp", ".doc"])
def test_an_unknown_ending_is_refused(suffix: str) -> None:
    assert reason(b"text", suffix) == "UNKNOWN_TYPE"


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (b"plain text", ".pdf"),
        (pdf_files.text_pdf(), ".txt"),
        (pdf_files.text_pdf(), ".html"),
        (b"PK\x03\x04rest", ".txt"),
        (b"\x7fELF", ".md"),
        (b"\x89PNG\r\n\x1a\n", ".html"),
        (b"<!DOCTYPE html><p>x", ".txt"),
        (b"\xef\xbb\xbf  <html>", ".md"),
        (b"no tag at all", ".html"),
        (b"{\\rtf1 x}", ".txt"),
    ],
)
def test_ending_and_content_must_agree(data: bytes, suffix: str) -> None:
    assert reason(data, suffix) == "TYPE_MISMATCH"


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (b"MZ\x90\x00\x03", ".txt"),
        (b"\xca\xfe\xba\xbe", ".md"),
        (encoded(drawn(["x"]), "JPEG"), ".png"),
        (encoded(drawn(["x"]), "PNG"), ".jpg"),
        (encoded(drawn(["x"]), "BMP"), ".gif"),
        (encoded(drawn(["x"]), "WEBP"), ".bmp"),
        (encoded(drawn(["x"]), "TIFF"), ".txt"),
        (b"plain text", ".png"),
        (pdf_files.text_pdf(), ".tiff"),
        (b"7z\xbc\xaf\x27\x1c", ".log"),
    ],
)
def test_a_program_or_picture_by_another_name_is_refused(data: bytes, suffix: str) -> None:
    assert reason(data, suffix) == "TYPE_MISMATCH"


def zipped() -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("Evil.class", b"\xca\xfe\xba\xbe")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (pdf_files.text_pdf() + zipped(), ".pdf"),
        (encoded(drawn(["x"]), "GIF") + zipped(), ".gif"),
        (encoded(drawn(["x"]), "PNG") + zipped(), ".png"),
        (b"<p>Harmless.</p>" + zipped(), ".html"),
        (b"Harmless.\n" + zipped(), ".txt"),
        (b"<p>Harmless.<!--" + pdf_files.text_pdf(), ".html"),
        (b"GIF89a" + pdf_files.text_pdf(), ".gif"),
    ],
)
def test_a_file_that_is_two_things_is_refused(data: bytes, suffix: str) -> None:
    assert reason(data, suffix) == "POLYGLOT"


def test_a_zip_that_stores_a_pdf_as_it_is_is_no_polyglot() -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.pdf", pdf_files.text_pdf())
    assert [name for name, *_ in extract.Reader(Caps()).parse(out.getvalue(), ".zip")[4]] == ["a.pdf"]


def test_a_pdf_with_a_zip_embedded_in_it_is_no_polyglot() -> None:
    data = pdf_files.attaching_pdf({"a.zip": zipped()})
    assert [name for name, *_ in extract.Reader(Caps()).parse(data, ".pdf")[4]] == ["a.zip"]


@pytest.mark.parametrize("suffix", [".log", ".rst", ".json", ".xml", ".yaml", ".yml"])
def test_what_is_written_for_machines_is_read_as_text(suffix: str) -> None:
    assert pages('<a b="1"> {"c": 2} </a>\n', suffix) == ('<a b="1"> {"c": 2} </a>',)


@pytest.mark.parametrize("suffix", [".txt", ".md", ".html", ".pdf"])
def test_an_empty_file_is_empty(suffix: str) -> None:
    assert reason(b"", suffix) == "EMPTY"


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (b" \n\t\x00\n", ".txt"),
        (b"<p> </p><script>x</script>", ".html"),
        (pdf_files.image_pdf(), ".pdf"),
        (b"[a]: b", ".md"),
    ],
)
def test_a_file_without_text_is_empty(data: bytes, suffix: str) -> None:
    assert reason(data, suffix) == "EMPTY"


def test_type_and_parser_are_told() -> None:
    media_type, parser, *_ = extract.Reader(Caps()).parse(pdf_files.text_pdf(), ".pdf")
    assert media_type == "application/pdf"
    assert parser.startswith("pdfium ")
    assert extract.Reader(Caps()).parse(b"x", ".txt")[:1] == ("text/plain",)


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        "Grüße, 世界 🙂".encode(),
        codecs.BOM_UTF8 + "Grüße, 世界 🙂".encode(),
        codecs.BOM_UTF16_LE + "Grüße, 世界 🙂".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "Grüße, 世界 🙂".encode("utf-16-be"),
    ],
)
def test_text_is_read_by_its_byte_order_mark(data: bytes) -> None:
    assert pages(data, ".txt") == ("Grüße, 世界 🙂",)


@pytest.mark.parametrize(
    ("data", "byte"),
    [
        ("Grüße, Füße, Mühe".encode() + b"\xffdef", 22),
        (codecs.BOM_UTF8 + b"a\xc3", 4),
        (codecs.BOM_UTF16_LE + b"a\x00b", 4),
        (codecs.BOM_UTF32_LE + b"a\0\0\0b", 8),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_what_was_meant_to_be_unicode_and_is_not_is_refused_by_the_byte(data: bytes, byte: int, suffix: str) -> None:
    with pytest.raises(DocumentRefused, match=f"Byte {byte} is not UTF-") as refused:
        extract.Reader(Caps()).parse(data, suffix)
    assert refused.value.file_reason == "NOT_UTF8"


def test_text_is_cleaned_of_what_no_reader_sees() -> None:
    assert pages("a\r\nb\rc\x85d\u2028e\x0bf \t\n\n", ".txt") == ("a\nb\nc\nd\ne\nf",)
    assert pages("\x1b[1;31mred\x1b[0m, not [0m\x1b", ".log") == ("red, not [0m",)
    assert pages("n\x00u\x1bl\ufeff so\u00adft z\u200bw\ufffe\x9b", ".txt") == ("nul soft zw",)
    assert pages("e\u0301 \u202etab\tstays", ".txt") == ("é \u202etab\tstays",)


def test_very_many_spaces_in_a_line_cost_no_more_than_letters() -> None:
    assert len(pages(b"a" + b" " * 2_000_000 + b"b" + b"\t " * 1_000_000, ".txt")[0]) == 2_000_002


def test_a_form_feed_starts_a_page() -> None:
    assert pages("one\n\fstill \n\f\fthree\f", ".txt") == ("one", "still", "", "three")


def test_more_pages_than_allowed_are_refused() -> None:
    assert pages("a\fb", ".txt", max_pages=2) == ("a", "b")
    assert reason(b"a\fb\fc", ".txt", max_pages=2) == "TOO_MANY_PAGES"
    assert reason(pdf_files.text_pdf(), ".pdf", max_pages=2) == "TOO_MANY_PAGES"


# --- Markdown --------------------------------------------------------------------------------------------------------


def test_markdown_reads_as_it_is_shown() -> None:
    source = (
        "# Badges &amp; keys\n\nA *badge* expires\nafter `90` days; see [the list](list.md) or ![a map](map.png).\n\n"
        "3. third\n4. fourth\n   - inner\n\n> quoted\n\n```sh\nrun  this\n```\n\n| a | b |\n|---|---|\n| c | d |\n\n"
        "<div>raw <b>block</b></div>\n\nEnd<br>here."
    )
    assert pages(source, ".md") == (
        "Badges & keys\n\nA badge expires after 90 days; see the list or a map.\n\n3. third\n4. fourth\n  - inner\n\n"
        "quoted\n\nrun  this\n\na\tb\nc\td\n\nraw block\n\nEndhere.",
    )


def test_markdown_tells_its_headings_lists_tables_and_code() -> None:
    source = (
        "\n\n# Ba\u0308dges\u200b\n\nOne.  \nTwo.\n\nKeys\n----\n\n- a\n  1. b\n\n     ```\n     in\n     ```\n- c\n\n"
        "```sh\nrun\n\n  this\n```\n\n    indented\n\n> ### Deep\n\n| a | b |\n|---|---|\n| c | d |\n\nThe end.\n"
    )
    assert blocks(source, ".md") == [
        ("heading", 1, "Bädges"),
        ("heading", 2, "Keys"),
        ("list", 0, "- a\n  1. b\nin\n\n- c"),
        ("code", 0, "run\n\n  this"),
        ("code", 0, "indented"),
        ("heading", 3, "Deep"),
        ("table", 0, "a\tb\nc\td"),
    ]


@pytest.mark.parametrize("source", ["# ", "```\n\n```", "#\n\ntext", "| |\n|-|\n| |\n\nx", "\u200b# x"])
def test_an_empty_block_of_markdown_is_none(source: str) -> None:
    assert blocks(source + "\n\nend", ".md") == []


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_stands_before_markdown_is_text_and_no_heading(newline: str) -> None:
    source = newline.join(["---", "title: Keys", "tags:", "- gate", "---", "# Gate", "text", "", "---", "a: b", "---"])
    assert pages(source.encode(), ".md")[0].startswith("title: Keys\ntags:\n- gate\n\nGate\n\ntext")
    assert blocks(source.encode(), ".md") == [("heading", 1, "Gate"), ("heading", 2, "a: b")]
    assert blocks(b"---\n\nno: yaml\n---\n", ".md") == [("heading", 2, "no: yaml")]


def test_deeply_nested_markdown_ends() -> None:
    assert pages(">" * 90 + " deep", ".md") == ("deep",)
    assert reason(b">" * 5000 + b" deep", ".md") == "EMPTY"


# --- HTML ------------------------------------------------------------------------------------------------------------


def test_html_reads_as_a_browser_shows_it() -> None:
    source = (
        "<!doctype html><html><head><title> The &uuml;ber\n title </title><style>p{}</style></head><body>"
        "<h1>Rules</h1><p>One\n  <b>two</b>three<br>four &lt;5&gt;</p><script>evil()</script><noscript>x</noscript>"
        "<ul><li>a<li>b<ul><li>c</ul></ul><table><tr><th>h<th>i</tr><tr><td>j<td>k</tr></table>"
        "<pre>  keep\n    this</pre><!-- no --><template>no</template><div>x</div><div>y</div></body></html>"
    )
    assert pages(source, ".html") == (
        "The über title\n\nRules\n\nOne twothree\nfour <5>\n\n- a\n- b\n  - c\n\nh\ti\nj\tk\n\n"
        "  keep\n    this\n\nx\ny",
    )


def test_a_title_that_the_page_repeats_is_read_once() -> None:
    assert pages("<title>Rules</title><h1>Rules</h1><p>One.", ".html") == ("Rules\n\nOne.",)


def test_html_in_a_declared_encoding_is_read() -> None:
    assert pages("<meta charset='iso-8859-1'><p>Grüße".encode("cp1252"), ".html") == ("Grüße",)
    russian = '<meta http-equiv="content-type" content="text/html; charset=windows-1251"><p>Пропуск'
    assert pages(russian.encode("cp1251"), ".html") == ("Пропуск",)


def test_html_in_no_known_encoding_is_refused() -> None:
    assert reason(b"<p>" + bytes(range(128, 256)) * 3, ".html") == "NOT_TEXT"
    assert reason("<p>Grüße, Füße, Mühe".encode() + b"\xff", ".html") == "NOT_UTF8"


def test_html_tells_its_headings_lists_tables_and_code() -> None:
    source = (
        "<title>Ba\u0308dges</title><h2>Ke\u0301ys\u200b</h2><p>One.<br><br><br><br>Two.<ul><li>a<ul><li>b</ul><li>c</ul>"
        "<table><tr><th>h<th>i<tr><td>j<td><ul><li>k</ul></table><pre>\n\n\n  x\n\n\n\n y\n\n</pre><h6>End</h6>z"
    )
    assert blocks(source, ".html") == [
        ("heading", 1, "Bädges"),
        ("heading", 2, "Kéys"),
        ("list", 0, "- a\n  - b\n- c"),
        ("table", 0, "h\ti\nj\t- k"),
        ("code", 0, "  x\n\n y"),
        ("heading", 6, "End"),
    ]
    assert "\n\n\n" not in pages(source, ".html")[0]


def test_a_table_or_list_that_only_places_other_blocks_is_no_block() -> None:
    source = "<table><tr><td><h1>A</h1>one<td><ul><li><h2>B</h2>two<pre>c</pre></ul></table><ul><li>d</ul>"
    assert blocks(source, ".html") == [
        ("heading", 1, "A"),
        ("heading", 2, "B"),
        ("code", 0, "c"),
        ("list", 0, "- d"),
    ]


@pytest.mark.parametrize(
    ("cells", "rows"),
    [
        (
            "<tr><th><p>Key</p><th><div>Holder</div><tr><td><p>Gate<br>two</p><td><ul><li>Li</ul>",
            "Key\tHolder\nGate two\t- Li",
        ),
        ("<tr><td><td>alone<tr><td>x<td>", "\talone\nx"),
        ("<tr><th rowspan=2>X<th colspan=2>Y<th>Z<tr><td>1<td>2<td>3", "X\tY\t\tZ\n\t1\t2\t3"),
        ("<caption>Cap</caption><tbody><tr><td>a<td>b<script>c</script>", "a\tb"),
        ("<tr><td colspan=99999999 rowspan=-1>a<td colspan=x>b", "a\tb"),
    ],
)
def test_a_row_of_html_is_a_line_whatever_stands_in_its_cells(cells: str, rows: str) -> None:
    assert blocks(f"<p>Before</p><table>{cells}</table>after".encode(), ".html") == [("table", 0, rows)]


@pytest.mark.parametrize(
    "hidden",
    [
        "<p hidden>no</p>",
        "<div style='color:red; DISPLAY : none'>no<p>no</div>",
        "<span style=visibility:hidden>no</span>",
        "<table hidden><tr><td>no<td>no</table>",
        "<table><tr style=display:none><td>no<td>no</table>",
    ],
)
def test_what_a_page_hides_is_not_read(hidden: str) -> None:
    assert pages(f"<p>Before</p>{hidden}<p>after".encode(), ".html") == ("Before\n\nafter",)


@pytest.mark.parametrize("table", ["<tr><td>a<tr><td>b", "<tr><td><table><tr><td>a</table><td><p>b</p>"])
def test_a_table_that_places_text_is_read_cell_by_cell(table: str) -> None:
    source = f"<table>{table}</table>".encode()
    assert blocks(source, ".html") == []
    assert pages(source, ".html")[0].split() == ["a", "b"]
    assert "\t" not in pages(source, ".html")[0]


def test_items_of_html_have_the_labels_that_they_show() -> None:
    source = b"<ol start=3><li><p>three</p><li><p>four</p><ul><li>in</ul></ol><ul><li><ul><li>deep</ul></ul>"
    assert pages(source, ".html") == ("3. three\n\n4. four\n\n  - in\n\n-\n  - deep",)


@pytest.mark.parametrize("tag", ["h1", "ul", "table", "pre", "ol><li", "table><tr><td"])
def test_deeply_nested_blocks_of_html_end(tag: str) -> None:
    assert len(blocks(f"<{tag}>" * 5_000 + "deep", ".html")) <= 1


def test_deeply_nested_html_ends() -> None:
    assert pages("<div>" * 9_000 + "deep", ".html") == ("deep",)


@pytest.mark.parametrize("nest", ["<div>", "<ul><li>", "<DIV class=x>", "<span></p>", "<b><p>", "<table><tr><td>"])
@pytest.mark.parametrize("suffix", [".html", ".md"])
def test_a_hostile_nest_is_refused_before_it_is_parsed(nest: str, suffix: str) -> None:
    assert reason(f"<div>\n{nest * 100_000}deep\n".encode(), suffix) == "HTML_TOO_DEEP"


def test_elements_that_need_no_end_are_no_nest() -> None:
    assert pages("<p>a<br>" * 20_000, ".html")[0].count("a") == 20_000
    assert len(blocks("<ul>" + "<li>a" * 20_000, ".html")) == 1


def test_html_without_a_declared_charset_is_read_by_what_it_is() -> None:
    source = "<p>Schlüssel werden persönlich übergeben und im blauen Buch quittiert.".encode("cp1252")
    _, parser, found, *_ = extract.Reader(Caps()).parse(source, ".html")
    assert found == ("Schlüssel werden persönlich übergeben und im blauen Buch quittiert.",)
    assert parser.endswith("; windows-1252")


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_samples_are_read_and_the_manual_has_four_pages() -> None:
    read = {path.name: pages(path.read_bytes(), path.suffix) for path in SAMPLES.iterdir()}
    assert len(read) == 6
    assert len(read["maintenance-manual.pdf"]) == 4
    assert "52 hours" in read["maintenance-manual.pdf"][2].replace("\n", " ")
