"""Pictures to text: six formats, pages, orientation, columns and tables; and what no picture may do."""

import pytest
from PIL import Image

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import Reader
from tests import pdf_files
from tests.picture_files import Placed, drawn, empty_png, encoded, photographed, resized

LINES = ("The porter rings the ward before", "the lift is called, and then goes", "back to the desk.")
TEXT = "The porter rings the ward before\nthe lift is called, and then goes\nback to the desk."


def pages(data: bytes, suffix: str, caps: Caps | None = None) -> tuple[str, ...]:
    return Reader(caps or Caps()).parse(data, suffix)[2]


def reason(data: bytes, suffix: str, caps: Caps | None = None) -> str:
    with pytest.raises(DocumentRefused) as refused:
        Reader(caps or Caps()).parse(data, suffix)
    return refused.value.file_reason


@pytest.mark.parametrize(
    ("form", "suffix"),
    [("PNG", ".png"), ("JPEG", ".jpg"), ("GIF", ".gif"), ("BMP", ".bmp"), ("WEBP", ".webp"), ("TIFF", ".tif")],
)
def test_text_in_a_picture_is_read(form: str, suffix: str) -> None:
    media_type, parser, found, *_ = Reader(Caps()).parse(encoded(drawn(LINES), form), suffix)
    assert found == (TEXT,)
    assert media_type.startswith("image/")
    assert parser.startswith("pillow ")
    assert parser.endswith(" eng")


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_colours_do_not_matter(mode: str) -> None:
    image = drawn(LINES)
    image = (
        Image.eval(image, lambda value: value).convert("I;16").point(lambda value: value * 257)
        if mode == "I;16"
        else image
    )
    assert pages(encoded(image.convert(mode) if mode != "I;16" else image, "TIFF"), ".tiff") == (TEXT,)


def test_what_is_transparent_is_paper() -> None:
    image = Image.new("RGBA", (1100, 300), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), mask=Image.eval(drawn(LINES, (1100, 300)), lambda value: 255 - value))
    assert pages(encoded(image, "PNG"), ".png") == (TEXT,)


def test_frames_of_a_tiff_are_pages_and_more_than_allowed_are_refused() -> None:
    first, *rest = (drawn([f"This is page {number}"], (900, 200)).convert("1") for number in (1, 2, 3))
    data = encoded(first, "TIFF", save_all=True, append_images=rest, compression="group4")
    assert pages(data, ".tiff") == ("This is page 1", "This is page 2", "This is page 3")
    assert reason(data, ".tiff", Caps(pages=2)) == "TOO_MANY_PAGES"


def test_a_photograph_is_turned_as_its_camera_was_held() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(drawn(LINES).rotate(90, expand=True), "JPEG", exif=exif)
    assert pages(data, ".jpeg") == (TEXT,)


def test_columns_and_tables_of_a_picture_are_read_as_those_of_a_pdf() -> None:
    left = [(60, 60 + 60 * row, line) for row, line in enumerate((*LINES, "He sits there until six."))]
    right = [(800, y, line.upper().capitalize()) for _, y, line in left]
    [page] = pages(encoded(drawn([*left, *right], (1500, 400), 34), "PNG"), ".png")
    assert page.index("until six") < page.index("The porter", 5)
    cells: list[Placed] = [
        (100 + 350 * column, 60 + 60 * row, cell)
        for row, cells in enumerate(
            (("Ward", "Opens", "Closes"), ("North", "06:00", "20:00"), ("South", "07:00", "22:00"))
        )
        for column, cell in enumerate(cells)
    ]
    _, _, [table], rows, _ = Reader(Caps()).parse(encoded(drawn(cells), "PNG"), ".png")
    assert table == "Ward\tOpens\tCloses\nNorth\t06:00\t20:00\nSouth\t07:00\t22:00"
    assert [kind for kind, *_ in rows] == ["table"]


def test_a_word_that_a_line_cuts_is_whole() -> None:
    assert pages(encoded(drawn(["Keys are kept at the recep-", "tion of the house."]), "PNG"), ".png") == (
        "Keys are kept at the reception of the house.",
    )


def test_other_languages_are_read_where_they_are_set() -> None:
    data = encoded(photographed(pdf_files.text_pdf(("Grüße aus Köln: Schlüssel müssen übergeben werden.",))), "PNG")
    assert pages(data, ".png", Caps(languages="eng+deu")) == ("Grüße aus Köln: Schlüssel müssen übergeben werden.",)


def test_without_tesseract_or_its_language_pictures_are_refused_with_the_remedy() -> None:
    for languages in ("xyz", "eng+xyz", ""):
        with pytest.raises(DocumentRefused, match=r"tesseract|languages") as refused:
            pages(encoded(drawn(LINES), "PNG"), ".png", Caps(languages=languages))
        assert refused.value.file_reason == "OCR_UNAVAILABLE"
        assert "install libtesseract5" in str(refused.value)


def test_a_picture_beyond_the_budget_is_refused_by_name() -> None:
    assert reason(encoded(drawn(LINES), "PNG"), ".png", Caps(ocr_cpu_seconds=0)) == "OCR_TOO_SLOW"


def test_a_picture_without_text_is_empty() -> None:
    assert reason(encoded(drawn([]), "PNG"), ".png") == "EMPTY"


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        (empty_png(100_000, 100_000, 1), ".png"),
        (resized(encoded(drawn(LINES), "GIF"), "GIF", 65_535, 65_535), ".gif"),
        (resized(encoded(drawn(LINES), "BMP"), "BMP", 100_000, 100_000), ".bmp"),
        (resized(encoded(drawn(LINES), "JPEG"), "JPEG", 65_500, 65_500), ".jpg"),
        (resized(encoded(drawn(LINES), "TIFF"), "TIFF", 100_000, 100_000), ".tiff"),
        (resized(encoded(drawn(LINES), "WEBP", lossless=True), "WEBP", 16_383, 16_383), ".webp"),
    ],
)
def test_a_picture_that_promises_too_many_pixels_is_refused_before_it_is_decoded(data: bytes, suffix: str) -> None:
    assert reason(data, suffix) == "IMAGE_TOO_LARGE"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("kept", [8, 30, 200])
def test_a_cut_picture_is_refused_by_name(form: str, kept: int) -> None:
    suffix = {"JPEG": ".jpg"}.get(form, f".{form.lower()}")
    assert reason(encoded(drawn(LINES), form)[:kept], suffix) in ("IMAGE_BROKEN", "IMAGE_TOO_LARGE", "EMPTY")
