"""One file a format: untrusted bytes to text by page. Imported only by the extract zygote, never by the daemon.

A file is read when its name's suffix, its first bytes and its parser agree. Light on imports: everything here is mapped
into the children that read untrusted bytes.
"""

from appliance.errors import DocumentRefused
from appliance.ingest.extract import html, markdown, pdf, text
from appliance.ingest.formats import FORMATS, format_of

_MODULES = {"text": text, "markdown": markdown, "html": html, "pdf": pdf}

_MAGIC = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90\x00", "a program"),
    (b"\x89PNG\r\n", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"{\\rtf", "a rich text document"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
)
_FORMAT_MAGIC = {"a PDF": pdf, "an HTML page": html}

WARM_DOCUMENTS = tuple((suffix, data) for suffix, name in FORMATS.items() for data in _MODULES[name].WARM_DOCUMENTS)


def parse(data: bytes, suffix: str, max_pages: int) -> tuple[str, str, tuple[str, ...], tuple[text.Row, ...]]:
    """Media type, parser with its version, text by page, and the blocks that the parser saw, in order.

    Raises DocumentRefused: UNKNOWN_TYPE, TYPE_MISMATCH, EMPTY, TOO_MANY_PAGES, NOT_UTF8, PDF_ENCRYPTED, PDF_BROKEN.
    """
    module = _MODULES[format_of(suffix)]
    if not data:
        raise DocumentRefused("EMPTY", "The file has no bytes.")
    seen = _sniff(data)
    if seen and _FORMAT_MAGIC.get(seen) is not module:
        raise DocumentRefused("TYPE_MISMATCH", f"The name ends in {suffix}, the content begins as {seen}.")
    parser, pages, blocks = module.read(data, max_pages)
    if len(pages) > max_pages:
        raise DocumentRefused("TOO_MANY_PAGES", f"It has {len(pages)} pages; {max_pages} are allowed.")
    if not any(page.strip() for page in pages):
        raise DocumentRefused("EMPTY", "There is no text in it; pages that are scanned images are not read.")
    return module.MEDIA_TYPE, parser, pages, blocks


def _sniff(data: bytes) -> str:
    head = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for magic, kind in _MAGIC if head.startswith(magic.lower())), "")
