"""What pages of PDFs give: order, headings, tables, lists, fields, notes, embedded files; which parser is believed."""

from pathlib import Path
from typing import NoReturn

import pytest

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import Reader, pdf
from tests import pdf_files, picture_files

FOREIGN = Path(__file__).parents[3] / "shared" / "data" / "pdf"
foreign = pytest.mark.skipif(not FOREIGN.is_dir(), reason=f"{FOREIGN} is not there")

LEFT = (
    "The porter rings the ward first,",
    "and only after that is the lift",
    "called to the floor, since it is",
    "slow and most calls are urgent.",
)
RIGHT = (
    "Keys are handed over in person,",
    "never by post, and are signed for",
    "in the blue book that lies at the",
    "reception, day and night alike.",
)
WARDS = (
    ("Ward", "Opens", "Closes"),
    ("North", "06:00", "20:00"),
    ("South", "", "22:00"),
    ("West wing", "08:30", "18:00"),
)
WARD_LINES = "Ward\tOpens\tCloses\nNorth\t06:00\t20:00\nSouth\t\t22:00\nWest wing\t08:30\t18:00"


def pages(data: bytes, caps: Caps | None = None) -> tuple[str, ...]:
    return Reader(caps or Caps()).parse(data, ".pdf")[2]


def parser(data: bytes, caps: Caps | None = None) -> str:
    return Reader(caps or Caps()).parse(data, ".pdf")[1]


def blocks(data: bytes) -> list[tuple[str, int, str]]:
    _, _, found, rows, _ = Reader(Caps()).parse(data, ".pdf")
    return [(kind, level, found[page - 1][start:end]) for kind, level, page, start, end in rows]


def reason(data: bytes, caps: Caps | None = None) -> str:
    with pytest.raises(DocumentRefused) as refused:
        Reader(caps or Caps()).parse(data, ".pdf")
    return refused.value.file_reason


def test_pdf_gives_text_by_page() -> None:
    assert pages(pdf_files.text_pdf()) == (
        "Night shift\n\nThe porter rings the ward before the lift is called.",
        "Keys\n\nKeys are handed over in person (never by post) and signed for in the blue book at\nreception.",
        "Fire\n\nNobody goes back for a bag.",
    )


def test_pdf_tells_as_headings_what_is_set_larger() -> None:
    assert blocks(pdf_files.text_pdf()) == [
        ("heading", 1, "Night shift"),
        ("heading", 1, "Keys"),
        ("heading", 1, "Fire"),
    ]
    assert blocks(pdf_files.text_pdf(("One size.\nNo heading.",))) == []


def test_a_pdf_that_lost_its_table_of_objects_is_read_all_the_same() -> None:
    assert pages(pdf_files.unreferenced_pdf())[2].startswith("Fire")


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_a_pdf_with_a_password_says_so(algorithm: str) -> None:
    assert reason(pdf_files.encrypted_pdf(algorithm)) == "PDF_ENCRYPTED"


def test_a_pdf_that_anyone_may_open_is_read() -> None:
    assert pages(pdf_files.encrypted_pdf("AES-256", password=""))[2].startswith("Fire")


@pytest.mark.parametrize(
    "data",
    [
        b"%PDF-1.7\nnothing follows",
        pdf_files.text_pdf()[:600],
        pdf_files.circular_pdf(),
        b"%PDF-1.4\n" + bytes(range(256)) * 20,
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 9 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    ],
)
def test_a_broken_pdf_says_so(data: bytes) -> None:
    assert reason(data) == "PDF_BROKEN"


# --- order -----------------------------------------------------------------------------------------------------------


def test_columns_are_read_one_after_the_other_however_they_were_written() -> None:
    [page] = pages(pdf_files.columns_pdf(LEFT, RIGHT))
    title, left, right, below = page.split("\n\n")
    assert title == "A title over both of the columns of this page"
    assert left.split("\n") == list(LEFT)
    assert right.split("\n") == list(RIGHT)
    assert below.startswith("One line goes across")


@pytest.mark.parametrize("quarters", range(4))
def test_a_turned_page_is_read_from_its_first_line(quarters: int) -> None:
    assert pages(pdf_files.turned_pdf(quarters)) == ("Read me first of all\nand me after that\nand me last",)


def test_a_paragraph_ends_where_the_lines_stand_further_apart() -> None:
    lines = [(60, 700, 11, "One."), (60, 686, 11, "Two."), (60, 672, 11, "Three."), (60, 640, 11, "Four.")]
    assert pages(pdf_files.lines_pdf(lines)) == ("One.\nTwo.\nThree.\n\nFour.",)


def test_words_on_one_height_are_one_line_whatever_their_order_in_the_file() -> None:
    assert pages(pdf_files.lines_pdf([(200, 700, 11, "Doe"), (60, 700, 11, "Name:")])) == ("Name: Doe",)


def test_headers_and_footers_are_kept_apart_from_the_text() -> None:
    bodies = ("The sentence that begins on the first page", "goes on at the second one,", "and ends on the third.")
    whole = pages(pdf_files.running_pdf("Night rules of the house", bodies))
    assert whole == tuple(
        f"Night rules of the house\n\n{body}\n\nPage {number} of 3" for number, body in enumerate(bodies, 1)
    )


def test_text_outside_the_page_is_not_read() -> None:
    assert pages(pdf_files.lines_pdf([(60, 700, 11, "Inside."), (60, 900, 11, "Outside.")])) == ("Inside.",)


# --- structure -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ruled", [True, False])
def test_a_table_is_rows_of_cells_with_lines_or_without(ruled: bool) -> None:
    data = pdf_files.table_pdf(WARDS, ruled=ruled)
    assert blocks(data) == [("table", 0, WARD_LINES)]
    assert pages(data)[0].startswith("The table says when each ward is open, and it is short.\n\nWard\t")
    assert pages(data)[0].endswith("18:00\n\nThat was the table, and here the text goes on for a little.")


def test_what_the_outline_names_is_a_heading_of_its_depth() -> None:
    assert blocks(pdf_files.outlined_pdf()) == [("heading", 1, "1 Wards"), ("heading", 2, "1.1 Lifts")]


def test_size_makes_headings_of_several_levels() -> None:
    lines = [
        (60, 780, 22, "Rules"),
        (60, 750, 16, "Keys"),
        (60, 730, 11, "Keys are signed for by two people at a time."),
    ]
    assert blocks(pdf_files.lines_pdf(lines)) == [("heading", 1, "Rules"), ("heading", 2, "Keys")]


def test_items_are_a_list_with_the_lines_that_belong_to_them() -> None:
    lines = ["Before the shift:", "1. Count the keys, and sign", "for each in the book.", "2. Ring the ward.", "3. Go."]
    data = pdf_files.lines_pdf([(60, 700 - 14 * row, 11, line) for row, line in enumerate(lines)])
    assert blocks(data) == [("list", 0, "\n".join(lines[1:]))]


def test_numbers_with_a_wide_gap_behind_them_are_no_table() -> None:
    lines = [(x, 700 - 14 * row, 11, text) for row in range(4) for x, text in ((60, f"{row}."), (90, "An item of it."))]
    assert [kind for kind, _, _ in blocks(pdf_files.lines_pdf(lines))] == ["list"]


# --- what is not on the lines ----------------------------------------------------------------------------------------


def test_fields_notes_and_links_follow_the_page_and_passwords_and_scripts_do_not() -> None:
    assert pages(pdf_files.form_pdf()) == (
        "Please fill in.\n\nName: Ada King\nAgrees: Yes\n\nAsk the porter.\n\nhttps://wards.example/night",
    )


def test_what_a_pdf_would_do_is_neither_done_nor_said() -> None:
    _, _, found, _, members = Reader(Caps()).parse(pdf_files.acting_pdf(), ".pdf")
    assert found == ("Only this is said.",)
    assert members == ()


def test_embedded_files_are_members_and_paths_that_lead_out_are_left_out() -> None:
    files = {"list.csv": b"a,b\n", "../../etc/passwd": b"root"}
    members = Reader(Caps()).parse(pdf_files.attaching_pdf(files), ".pdf")[4]
    assert sorted(members) == [("../../etc/passwd", b"", "MEMBER_OUTSIDE"), ("list.csv", b"a,b\n", "")]


def test_too_many_or_too_large_embedded_files_are_refused() -> None:
    two = pdf_files.attaching_pdf({"a": b"1", "b": b"2"})
    assert reason(two, Caps(members=1)) == "TOO_MANY_MEMBERS"
    large = pdf_files.attaching_pdf({"a": bytes(2 << 20)})
    assert reason(large, Caps(member_bytes=1 << 20, ratio=10_000)) == "ARCHIVE_TOO_LARGE"
    assert reason(pdf_files.attached_bomb_pdf(4)) == "ZIP_BOMB"


# --- letters ---------------------------------------------------------------------------------------------------------


def test_ligatures_are_read_as_their_letters() -> None:
    assert pages(pdf_files.glyphs_pdf("ﬁne oﬃce")) == ("fine office",)


def test_letters_that_run_to_the_left_are_read_in_their_order() -> None:
    assert pages(pdf_files.glyphs_pdf("ﻡﻼﺳ")) == ("سلام",)  # as they stand on the page, from the left


def test_where_pdfium_finds_no_text_pypdf_is_believed() -> None:
    data = pdf_files.lines_pdf([(60, 700, 0, "Keys are signed for.")])  # letters of no size
    assert pages(data) == ("Keys are signed for.",)
    assert " + pypdf " in parser(data)
    assert "pypdf" not in parser(pdf_files.text_pdf())


def test_letters_without_meaning_are_no_text() -> None:
    assert reason(pdf_files.glyphs_pdf("\ue000\ue001\ue002\ue003"), Caps(languages="")) == "OCR_UNAVAILABLE"


# --- scanned pages ---------------------------------------------------------------------------------------------------


SCANNED = (
    "The porter rings the ward before",
    "the lift is called, and then goes",
    "back to the desk at the recep-",
    "tion.",
)


def scan() -> bytes:
    image = picture_files.drawn(SCANNED, (1240, 1754))
    return pdf_files.picture_pdf(image.tobytes(), *image.size)


def test_a_scanned_page_is_recognised_and_says_by_what() -> None:
    assert pages(scan()) == (
        "The porter rings the ward before\nthe lift is called, and then goes\nback to the desk at the reception.",
    )
    assert " + tesseract 5" in parser(scan())


def test_a_scan_with_a_stamp_is_recognised_too() -> None:
    image = picture_files.drawn(SCANNED, (1240, 1754))
    stamped = pdf_files.picture_pdf(image.tobytes(), *image.size, text=b"BT /F1 9 Tf 400 20 Td (Copy 7) Tj ET")
    assert "rings the ward" in pages(stamped)[0]


def test_a_scan_without_tesseract_is_refused_with_the_remedy_and_text_is_read() -> None:
    with pytest.raises(DocumentRefused, match="install libtesseract5") as refused:
        Reader(Caps(languages="xyz")).parse(scan(), ".pdf")
    assert refused.value.file_reason == "OCR_UNAVAILABLE"
    assert pages(pdf_files.text_pdf(), Caps(languages="xyz"))[2].startswith("Fire")


def test_pages_that_the_budget_leaves_out_are_named() -> None:
    image = picture_files.drawn(SCANNED, (1240, 1754))
    mixed = pdf_files.joined(pdf_files.text_pdf(("A page of text.",)), *[scan()] * 3)
    assert parser(mixed, Caps(ocr_cpu_seconds=0)).endswith("; not read: pages 2-4")
    assert pages(mixed, Caps(ocr_cpu_seconds=0)) == ("A page of text.", "", "", "")
    assert reason(pdf_files.picture_pdf(image.tobytes(), *image.size), Caps(ocr_cpu_seconds=0)) == "OCR_TOO_SLOW"


def test_a_page_that_no_reader_can_open_is_named() -> None:
    assert pages(pdf_files.half_broken_pdf("A page of text.")) == ("A page of text.", "")
    assert parser(pdf_files.half_broken_pdf("A page of text.")).endswith("; not read: pages 2")


def test_a_second_opinion_that_cannot_be_had_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bytes] = []

    def refuse(data: bytes) -> NoReturn:
        opened.append(data)
        raise DocumentRefused("PDF_BROKEN", "It cannot be read.")

    monkeypatch.setattr(pdf, "SecondOpinion", refuse)
    unreadable = pdf_files.joined(*[pdf_files.glyphs_pdf("\ue001\ue002\ue003")] * 5)
    assert reason(unreadable, Caps(languages="")) == "OCR_UNAVAILABLE"
    assert len(opened) == 1


def test_a_picture_with_too_many_pixels_is_not_decoded() -> None:
    assert reason(pdf_files.picture_pdf(bytes(1000), 100_000, 100_000, bits=1)) == "IMAGE_TOO_LARGE"


# --- of many makers --------------------------------------------------------------------------------------------------


@foreign
def test_a_page_of_two_columns_by_latex_is_read_column_by_column() -> None:
    first, second, third = pages((FOREIGN / "multicolumn.pdf").read_bytes())
    for page, halves in (
        (first, ("Donec nonummy", "pellentesque ante.")),
        (second, ("faucibus orci", "luctus et ultrices")),
    ):
        assert "\n\n".join(halves) in page
    assert "Czech Republic\t10.7\t78,866\tPrague\tCzech\n" in third
    assert third.endswith("\n\n3")


@foreign
@pytest.mark.parametrize("name", ["habibi.pdf", "habibi-rotated.pdf", "habibi-oneline-cmap.pdf"])
def test_arabic_that_pdfium_garbles_is_read_by_pypdf(name: str) -> None:
    data = (FOREIGN / name).read_bytes()
    assert set(pages(data)) == {"حَبيبي habibi حَبيبي"}
    assert " + pypdf " in parser(data)


@foreign
def test_notes_attachments_fields_and_links_of_other_makers_are_read() -> None:
    assert "Highlight comment" in pages((FOREIGN / "annotated_pdf.pdf").read_bytes())[0]
    assert "First Name: Alice" in pages((FOREIGN / "libreoffice-form.pdf").read_bytes())[0]
    assert "https://martin-thoma.com/" in pages((FOREIGN / "libre-office-link.pdf").read_bytes())[0]
    [(name, content, problem)] = Reader(Caps()).parse((FOREIGN / "with-attachment.pdf").read_bytes(), ".pdf")[4]
    assert (name, content[:4], problem) == ("image.png", b"\x89PNG", "")


@foreign
def test_pdfs_of_many_makers_are_read_or_refused_with_a_reason() -> None:
    found = {}
    for path in sorted(FOREIGN.glob("*.pdf")):
        try:
            found[path.name] = " ".join(pages(path.read_bytes()))
        except DocumentRefused as refusal:
            found[path.name] = refusal.file_reason
    assert found["libreoffice-writer-password.pdf"] == "PDF_ENCRYPTED"
    assert found["grayscale-image.pdf"] == "EMPTY"
    assert found["output_with_metadata_pymupdf.pdf"] == "Hello, World!"
    assert "vestibulum ut" in found["multicolumn.pdf"]
    assert "adipiscing" in found["multicolumn.pdf"]
    assert sum(text not in ("EMPTY", "PDF_ENCRYPTED") for text in found.values()) >= 20
