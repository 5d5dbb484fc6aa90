"""PDF by pdfium, page by page; pypdf is the second opinion on what pdfium cannot read."""

import logging
from importlib.metadata import version
from io import BytesIO

import pypdf
import pypdfium2
from pypdfium2 import raw

from appliance.errors import DocumentRefused
from appliance.ingest.extract.text import clean

MEDIA_TYPE = "application/pdf"
PDFIUM = f"pdfium {pypdfium2.PDFIUM_INFO.build}"
PYPDF = f"pypdf {version('pypdf')}"


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
    return parser, tuple(clean(text) for text in texts)


def _by_pdfium(data: bytes, max_pages: int) -> list[str]:
    """Text inside each page's box, in the order of the content. Raises pypdfium2.PdfiumError."""
    document = pypdfium2.PdfDocument(data)
    try:
        _check_count(len(document), max_pages)
        texts = []
        for page in document:
            text_page = page.get_textpage()
            # U+FFFE, which clean() drops, stands where pdfium joined a word that a line's end had cut.
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
