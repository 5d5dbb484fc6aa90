"""PDF by pdfium, page by page; pypdf is the second opinion on what pdfium cannot read."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from itertools import groupby

import pypdf
import pypdfium2
from pypdfium2 import raw

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract.reading import Mark, Read, Row
from appliance.ingest.extract.text import clean_marked

PDFIUM = f"pdfium {pypdfium2.PDFIUM_INFO.build}"
PYPDF = f"pypdf {version('pypdf')}"


# What pdfium writes where it joined a word that a line's end had cut, and where it measures it; `clean` drops both.
_HYPHEN, _HYPHEN_MEASURED = "\x02", "\ufffe"

_LINE = re.compile(r"[^\n]+\n?")
_LEADERS = re.compile(r"(?:\. ?){4}")  # of a table of contents
_HEADING_SCALE = 1.15  # times as tall as most of the text
_HEADING_CHARACTERS = 120
_HEADING_LINES = 3
_MAX_LEVEL = 6


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a page, [start, end) of its raw text, and how tall its first letter's line is, in half points."""

    start: int
    end: int
    height: int


@dataclass(frozen=True, slots=True)
class _Page:
    """Raw text, and its lines where their heights are known."""

    text: str
    lines: tuple[_Line, ...] = ()


def read(data: bytes, caps: Caps) -> Read:
    """Which parser read it, its pages, and as blocks the lines that are set larger than most: its headings.

    Raises DocumentRefused: TYPE_MISMATCH, PDF_ENCRYPTED, PDF_BROKEN, TOO_MANY_PAGES.
    """
    if b"%PDF-" not in data[:1024]:
        raise DocumentRefused("TYPE_MISMATCH", "The name says PDF, the content does not begin as one.")
    try:
        parser, raw_pages = PDFIUM, _by_pdfium(data, caps.pages)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise DocumentRefused("PDF_ENCRYPTED", "It is protected by a password; store a copy without one.") from None
        parser, raw_pages = PYPDF, [_Page(text) for text in _by_pypdf(data, caps.pages)]
    pages: list[str] = []
    blocks: list[Row] = []
    for number, (page, marks) in enumerate(zip(raw_pages, _headings(raw_pages), strict=True), 1):
        text, rows = clean_marked(page.text, marks, number)
        pages.append(text)
        blocks += rows
    return Read(parser, tuple(pages), tuple(blocks))


def _by_pdfium(data: bytes, max_pages: int) -> list[_Page]:
    """Text inside each page's box, in the order of the content. Raises pypdfium2.PdfiumError."""
    document = pypdfium2.PdfDocument(data)
    try:
        _check_count(len(document), max_pages)
        pages = []
        for page in document:
            text_page = page.get_textpage()
            text = text_page.get_text_bounded()
            pages.append(_Page(text, tuple(_lines(text, text_page))))
            text_page.close()
            page.close()
        return pages
    finally:
        document.close()


def _lines(text: str, text_page: pypdfium2.PdfTextPage) -> Iterator[_Line]:
    """Each line with its height; none where the text's characters are not one for one those that pdfium measures."""
    measured = text_page.get_text_range().replace(_HYPHEN_MEASURED, _HYPHEN)
    if text_page.count_chars() != len(text) or text != measured:
        return
    box = raw.FS_RECTF()
    for match in _LINE.finditer(text):
        if raw.FPDFText_GetLooseCharBox(text_page, match.start(), box):
            yield _Line(match.start(), match.end(), round(2 * (box.top - box.bottom)))


def _headings(pages: Sequence[_Page]) -> Iterator[list[Mark]]:
    """Of each page, the lines that are taller than most text of the document; the tallest kind has level 1."""
    characters: Counter[int] = Counter()
    for page in pages:
        for line in page.lines:
            characters[line.height] += line.end - line.start
    usual = max(characters, key=lambda height: (characters[height], height), default=0)
    larger = sorted((height for height in characters if height > _HEADING_SCALE * usual), reverse=True)
    levels = {height: min(level, _MAX_LEVEL) for level, height in enumerate(larger, 1)}
    for page in pages:
        yield [
            ("heading", levels[height], lines[0].start, lines[-1].end)
            for height, group in groupby(page.lines, key=lambda line: line.height)
            if height in levels and _is_heading(page.text, lines := tuple(group))
        ]


def _is_heading(text: str, lines: Sequence[_Line]) -> bool:
    title = text[lines[0].start : lines[-1].end].strip()
    short = len(lines) <= _HEADING_LINES and len(title) <= _HEADING_CHARACTERS
    return short and any(letter.isalpha() for letter in title) and not _LEADERS.search(title)


def _by_pypdf(data: bytes, max_pages: int) -> list[str]:
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = pypdf.PdfReader(BytesIO(data), strict=False)
        if reader.is_encrypted:
            raise DocumentRefused("PDF_ENCRYPTED", "It is protected by a password; store a copy without one.")
        _check_count(len(reader.pages), max_pages)
        texts = [page.extract_text() for page in reader.pages]
    except (DocumentRefused, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - pypdf raises whatever a broken file leads it to
        raise DocumentRefused("PDF_BROKEN", f"Neither pdfium nor pypdf can read it ({type(error).__name__}).") from None
    if not texts:
        raise DocumentRefused("PDF_BROKEN", "It has no pages.")
    return texts


def _check_count(count: int, max_pages: int) -> None:
    if count > max_pages:
        raise DocumentRefused("TOO_MANY_PAGES", f"It has {count} pages; {max_pages} are allowed.")


def _warm_document(stream: str) -> bytes:
    """The smallest PDF with one page of text; pdfium rebuilds the missing cross-reference table."""
    return (
        "%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        "3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Contents 4 0 R"
        "/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>>>>>>>endobj\n"
        f"4 0 obj<</Length {len(stream)}>>stream\n{stream}\nendstream endobj\n"
        "trailer<</Root 1 0 R/Size 5>>\n%%EOF\n"
    ).encode()


WARM_DOCUMENTS = (_warm_document("BT /F1 12 Tf 20 100 Td (Warm.) Tj ET"), b"%PDF-1.4\nno PDF at all")
