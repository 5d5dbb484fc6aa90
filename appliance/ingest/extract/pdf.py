"""PDF by pdfium, page by page; pypdf is the second opinion on what pdfium cannot read.

Lines that were broken only because the page ended there are joined again, so that a sentence is found and quoted whole.
"""

import logging
from importlib.metadata import version
from io import BytesIO
from itertools import pairwise

import pypdf
import pypdfium2
from pypdfium2 import raw

from appliance.errors import DocumentRefused
from appliance.ingest.extract.text import clean

MEDIA_TYPE = "application/pdf"
PDFIUM = f"pdfium {pypdfium2.PDFIUM_INFO.build}"
PYPDF = f"pypdf {version('pypdf')}"

_FULL_LINE_SHARE = 0.7
_FULL_LINE_CHARACTERS = 40  # a page of short lines is a form or a list
_HYPHENATED = "\ufffe"  # pdfium joins a word that was broken at a line's end, and leaves this where the hyphen was


def read(data: bytes, max_pages: int) -> tuple[str, tuple[str, ...]]:
    """Which parser read it, and its pages.

    Raises DocumentRefused: TYPE_MISMATCH, PDF_ENCRYPTED, PDF_BROKEN, TOO_MANY_PAGES.
    """
    if b"%PDF-" not in data[:1024]:
        raise DocumentRefused("TYPE_MISMATCH", "The name says PDF, the content does not begin as one.")
    try:
        parser, texts = PDFIUM, _by_pdfium(data, max_pages)
    except pypdfium2.PdfiumError as error:
        if error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise DocumentRefused("PDF_ENCRYPTED", "It is protected by a password; store a copy without one.") from None
        parser, texts = PYPDF, _by_pypdf(data, max_pages)
    return parser, tuple(joined_lines(clean(text.replace(_HYPHENATED, ""))) for text in texts)


def joined_lines(text: str) -> str:
    """A line as long as the page's longer ones was wrapped: the next line goes on with its sentence."""
    lines = text.split("\n")
    lengths = sorted(len(line) for line in lines if line)
    if not lengths:
        return ""
    full = max(_FULL_LINE_CHARACTERS, _FULL_LINE_SHARE * lengths[int(0.9 * (len(lengths) - 1))])
    out = [lines[0]]
    for before, line in pairwise(lines):
        wrapped = line and len(before) >= full and not before.endswith((".", ":", "!", "?")) and not _begins_item(line)
        out.append((" " if wrapped else "\n") + line.strip())
    return "".join(out)


def _begins_item(line: str) -> bool:
    first = line.split(maxsplit=1)[0] if line.strip() else ""
    return first in {"-", "*", "•", "–", "—", "◦", "▪"} or (first[:-1].isdigit() and first[-1] in ".)")


def _by_pdfium(data: bytes, max_pages: int) -> list[str]:
    """Text inside each page's box, in the order of the content. Raises pypdfium2.PdfiumError."""
    document = pypdfium2.PdfDocument(data)
    try:
        _check_count(len(document), max_pages)
        texts = []
        for page in document:
            text_page = page.get_textpage()
            texts.append(text_page.get_text_bounded())
            text_page.close()
            page.close()
        return texts
    finally:
        document.close()


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
