"""One file a format: untrusted bytes to text by page. Imported only by the extract zygote, never by the daemon.

A file is read when its name's suffix, its first bytes and its parser agree. Light on imports: everything here is mapped
into the children that read untrusted bytes.
"""

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps, Settings
from appliance.ingest.extract import html, markdown, pdf, text
from appliance.ingest.extract.reading import Member, Row
from appliance.ingest.formats import FORMATS, format_of

Parsed = tuple[str, str, tuple[str, ...], tuple[Row, ...], tuple[Member, ...]]

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


class Reader:
    """All formats, within caps. Made in the zygote, before it forks."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self.warm_documents = tuple(
            (suffix, data) for suffix, form in FORMATS.items() for data in _MODULES[form.module].WARM_DOCUMENTS
        )

    def parse(self, data: bytes, suffix: str) -> Parsed:
        """Media type, parser with its version, text by page, the blocks that the parser saw, and the files in it.

        Raises DocumentRefused: UNKNOWN_TYPE, TYPE_MISMATCH, EMPTY, TOO_MANY_PAGES, and what the format's module names.
        """
        form = format_of(suffix)
        module = _MODULES[form.module]
        if not data:
            raise DocumentRefused("EMPTY", "The file has no bytes.")
        seen = _sniff(data)
        if seen and _FORMAT_MAGIC.get(seen) is not module:
            raise DocumentRefused("TYPE_MISMATCH", f"The name ends in {suffix}, the content begins as {seen}.")
        found = module.read(data, self._caps)
        if len(found.pages) > self._caps.pages:
            problem = f"It has {len(found.pages)} pages; {self._caps.pages} are allowed."
            raise DocumentRefused("TOO_MANY_PAGES", problem)
        if not found.members and not any(page.strip() for page in found.pages):
            raise DocumentRefused("EMPTY", "There is no text in it; pages that are scanned images are not read.")
        return form.media_type, *found


def reader(settings: Settings) -> Reader:
    """What the zygote forks its children with."""
    return Reader(Caps.from_settings(settings))


def _sniff(data: bytes) -> str:
    head = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for magic, kind in _MAGIC if head.startswith(magic.lower())), "")
