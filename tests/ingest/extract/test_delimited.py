"""CSV and TSV, in the shapes that programs write them."""

import pytest

from appliance.ingest.caps import Caps
from tests.reads import blocks, pages, reason

TABLE = "Key\tHolder\tNote\ngate\tAda\t1\ndoor\tLi\t2"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_table_is_read_whatever_divides_it(delimiter: str, newline: str) -> None:
    rows = [["Key", "Holder", "Note"], ["gate", "Ada", "1"], ["door", "Li", "2"]]
    data = newline.join(delimiter.join(row) for row in rows).encode()
    for suffix in (".csv", ".tsv"):
        assert blocks(data, suffix) == [("table", 0, TABLE)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "windows-1252"])
def test_the_charset_is_found(encoding: str) -> None:
    text = "Schlüssel;Inhaberin\nHaustür;Frau Müller\nRückgebäude;Herr Größmann\n"
    assert pages(text.encode(encoding), ".csv")[0].startswith("Schlüssel\tInhaberin\nHaustür\tFrau Müller")


def test_a_comma_in_quotes_divides_nothing_and_a_line_in_quotes_is_one_row() -> None:
    data = b'name,note\n"Lovelace, Ada","two\nlines, and ""quotes"""\nLi,"5"" pipe"\n'
    assert pages(data, ".csv") == ('name\tnote\nLovelace, Ada\ttwo lines, and "quotes"\nLi\t5" pipe',)


def test_what_excel_says_of_the_delimiter_is_believed_and_not_text() -> None:
    assert pages(b"sep=|\r\na,b|c\r\nd,e|f\r\n", ".csv") == ("a,b\tc\nd,e\tf",)


def test_a_row_of_another_width_is_kept() -> None:
    assert pages(b"a,b,c\n1,2\n3,4,5,6\n7,8,9\n", ".csv") == ("a\tb\tc\n1\t2\n3\t4\t5\t6\n7\t8\t9",)


def test_lines_above_the_header_are_its_title() -> None:
    data = b"Report of keys,,\nkey,holder,since\ngate,Ada,2026\n"
    assert blocks(data, ".csv") == [("table", 0, "key\tholder\tsince\ngate\tAda\t2026")]
    assert pages(data, ".csv")[0].startswith("Report of keys\n\nkey")


def test_one_column_is_text() -> None:
    assert pages(b"one\ntwo words\nthree\n", ".csv") == ("one\ntwo words\nthree",)


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1+1", "@SUM(A1)", '=HYPERLINK("http://x")', "=cmd|' /C calc'!A0"])
def test_what_begins_like_a_formula_is_text(text: str) -> None:
    quoted = '"' + text.replace('"', '""') + '"'
    assert pages(f"a,b\nx,{quoted}\n".encode(), ".csv") == (f"a\tb\nx\t{text}",)


def test_a_quote_that_is_never_closed_swallows_no_rows() -> None:
    rows = "".join(f"{n},word\n" for n in range(500))
    (page,) = pages(f'n,w\n1,"open\n{rows}'.encode(), ".csv")
    assert page.split("\n")[1:4] == ['1\t"open', "0\tword", "1\tword"]
    assert page.endswith("499\tword")


def test_zero_bytes_are_nothing() -> None:
    assert pages(b"a,b\nx\x00y,z\n", ".csv") == ("a\tb\nxy\tz",)


def test_a_line_of_ten_megabytes_is_read() -> None:
    (page,) = pages(b"x" * 10_000_000, ".csv")
    assert len(page) == 10_000_000
    (page,) = pages(b"a,b\n" + b"y" * 10_000_000 + b",z\n", ".csv")
    assert page.endswith("y\tz")


def test_too_many_cells_are_refused() -> None:
    assert reason(b"a,b\n" * 51, ".csv", Caps(cells=100)) == "TOO_MANY_CELLS"
    assert pages(b"a,b\n" * 50, ".csv", Caps(cells=100))


@pytest.mark.parametrize("data", [b",,,\n,,\n", b"\n\n", b'""\n'])
def test_a_table_without_text_is_empty(data: bytes) -> None:
    assert reason(data, ".csv") == "EMPTY"


def test_another_kind_of_file_is_refused() -> None:
    assert reason(b"PK\x03\x04", ".csv") == "TYPE_MISMATCH"
    assert reason(b"<html><table>", ".csv") == "TYPE_MISMATCH"
