"""PDFs made on the spot, good and bad."""

import zlib
from collections.abc import Sequence
from io import BytesIO

from pypdf import PdfReader, PdfWriter

from appliance.cli.samples.make_pdf import assemble, write_pdf

PAGES = (
    "# Night shift\nThe porter rings the ward before the lift is called.",
    "# Keys\nKeys are handed over in person (never by post) and signed for in the blue book at reception.",
    "# Fire\nNobody goes back for a bag.",
)


def text_pdf(pages: Sequence[str] = PAGES) -> bytes:
    return write_pdf(pages)


def encrypted_pdf(algorithm: str, password: str = "secret") -> bytes:
    """algorithm: RC4-128, AES-128 or AES-256."""
    writer = PdfWriter(clone_from=PdfReader(BytesIO(text_pdf())))
    writer.encrypt(user_password=password, owner_password="owner", algorithm=algorithm)
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


def image_pdf() -> bytes:
    """A page with a drawing and no text."""
    return _one_page(b"0 0 100 100 re f")


def bomb_pdf(mebibytes: int) -> bytes:
    """A few kilobytes that unpack to one page of so many mebibytes of text operators."""
    show = b"(All work and no play makes a dull document. ) Tj T*\n"
    return _one_page(b"BT /F1 9 Tf 12 TL 20 800 Td\n" + show * ((mebibytes << 20) // len(show)) + b"ET")


def nested_pdf(depth: int) -> bytes:
    """Arrays in arrays, where a recursive parser runs out of stack."""
    return _one_page(b"BT ET", b"/Deep " + b"[" * depth + b"]" * depth)


def circular_pdf() -> bytes:
    """A page tree that has itself as a child."""
    return assemble([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"], b"/Root 1 0 R")


def unreferenced_pdf() -> bytes:
    """Text in a file whose cross-reference table is lost: what a careful reader still reads."""
    whole = text_pdf()
    return whole[: whole.index(b"xref\n")] + whole[whole.index(b"trailer") : whole.index(b"startxref")]


def _one_page(content: bytes, more: bytes = b"") -> bytes:
    stream = zlib.compress(zlib.compress(content, 9), 9)
    return assemble(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 5 0 R/Resources<</Font<</F1 4 0 R>>>>%s>>"
            % more,
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
            b"<</Filter[/FlateDecode/FlateDecode]/Length %d>>stream\n%s\nendstream" % (len(stream), stream),
        ],
        b"/Root 1 0 R",
    )
