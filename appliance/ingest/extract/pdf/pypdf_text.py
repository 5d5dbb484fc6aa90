"""The second opinion: a PDF's text by pypdf, without the places of its words."""

import logging
from io import BytesIO

import pypdf

from appliance.errors import DocumentRefused
from appliance.ingest.extract.layout.shapes import Line, Piece

PARSER = f"pypdf {pypdf.__version__}"
logging.getLogger("pypdf").setLevel(logging.CRITICAL)


class SecondOpinion:
    """An open document. Its pages are numbered from 0."""

    def __init__(self, data: bytes) -> None:
        """Raises DocumentRefused: PDF_ENCRYPTED, PDF_BROKEN."""
        try:
            self._reader = pypdf.PdfReader(BytesIO(data), strict=False)
            if self._reader.is_encrypted:
                raise DocumentRefused("PDF_ENCRYPTED", "It is protected by a password; store a copy without one.")
            self.page_count = len(self._reader.pages)
        except (DocumentRefused, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - pypdf raises whatever a broken file leads it to
            raise _broken(error) from None
        if not self.page_count:
            raise DocumentRefused("PDF_BROKEN", "It has no pages.")

    def text(self, number: int) -> str:
        """Raises DocumentRefused: PDF_BROKEN."""
        try:
            return self._reader.pages[number].extract_text()
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            raise _broken(error) from None


def pieces(text: str) -> list[Piece]:
    """Its paragraphs: pypdf knows no places."""
    found = [part.strip("\n") for part in text.replace("\r", "").split("\n\n")]
    return [Piece(tuple(Line(line, 0.0, 0.0, 0.0) for line in part.split("\n"))) for part in found if part.strip()]


def _broken(error: Exception) -> DocumentRefused:
    return DocumentRefused("PDF_BROKEN", f"Neither pdfium nor pypdf can read it ({type(error).__name__}).")
