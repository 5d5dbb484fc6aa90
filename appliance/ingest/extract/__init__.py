"""One file a format: untrusted bytes to text by page. Imported only by the extract zygote, never by the daemon.

A file is read when its name's suffix, its first bytes and its parser agree. Light on imports: everything here is mapped
into the children that read untrusted bytes.
"""

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps, Settings
from appliance.ingest.extract import (
    delimited,
    docx,
    html,
    image,
    mail,
    markdown,
    ods,
    pdf,
    pptx,
    tar,
    text,
    xls,
    xlsx,
    zipped,
)
from appliance.ingest.extract.reading import Member, Row
from appliance.ingest.formats import FORMATS, format_of

Parsed = tuple[str, str, tuple[str, ...], tuple[Row, ...], tuple[Member, ...]]

_READERS = (text, markdown, html, pdf, image, docx, pptx, xlsx, ods, xls, delimited, mail, zipped, tar)
_MODULES = {module.__name__.rpartition(".")[2]: module for module in _READERS}

_MAGIC = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90\x00", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a WEBP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"{\\rtf", "a rich text document"),
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
)
# What else such content may be called: modules, or media types. What is not here may be called nothing.
_AGREES = {
    "a PDF": ("pdf",),
    "an HTML page": ("html",),
    "a PNG picture": ("image/png",),
    "a JPEG picture": ("image/jpeg",),
    "a GIF picture": ("image/gif",),
    "a BMP picture": ("image/bmp",),
    "a WEBP picture": ("image/webp",),
    "a TIFF picture": ("image/tiff",),
    "a ZIP archive": ("zipped", "docx", "pptx", "xlsx", "ods"),
    "a TAR archive": ("application/x-tar",),
    "a gzip archive": ("application/gzip",),
    "an xz archive": ("application/x-xz",),
    "a bzip2 archive": ("application/x-bzip2",),
    "an old Office document": ("xls", "docx", "pptx", "xlsx"),  # new ones with a password are old ones outside
}
_TAR_MAGIC, _TAR_MAGIC_AT = b"ustar", 257
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 22
_ZIP_COMMENT_BYTES = 0xFFFF
_NO_CONTAINERS = ("text", "markdown", "html", "image")  # in which no PDF has a place
_PDF_BEGINS_WITHIN = _PDF_ENDS_WITHIN = 1024  # bytes, as PDF readers have it


class Reader:
    """All formats, within caps. Made in the zygote, before it forks."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        suffixes = {form: suffix for suffix, form in FORMATS.items()}
        self.warm_documents = tuple(
            (suffix, data) for form, suffix in suffixes.items() for data in _MODULES[form.module].WARM_DOCUMENTS
        )

    def parse(self, data: bytes, suffix: str) -> Parsed:
        """Media type, parser with its version, text by page, the blocks that the parser saw, and the files in it.

        Raises DocumentRefused: UNKNOWN_TYPE, TYPE_MISMATCH, POLYGLOT, EMPTY, TOO_MANY_PAGES, and what the format's
        module names.
        """
        form = format_of(suffix)
        module = _MODULES[form.module]
        if not data:
            raise DocumentRefused("EMPTY", "The file has no bytes.")
        seen = _sniff(data)
        if seen and not {form.module, form.media_type} & set(_AGREES.get(seen, ())):
            raise DocumentRefused("TYPE_MISMATCH", f"The name ends in {suffix}, the content begins as {seen}.")
        if also := _also(data, seen, form.module):
            raise DocumentRefused("POLYGLOT", f"The name ends in {suffix}, and it can be read as {also} as well.")
        found = module.read(data, self._caps)
        if len(found.pages) > self._caps.pages:
            problem = f"It has {len(found.pages)} pages; {self._caps.pages} are allowed."
            raise DocumentRefused("TOO_MANY_PAGES", problem)
        if not found.members and not any(page.strip() for page in found.pages):
            raise DocumentRefused("EMPTY", "There is no text in it.")
        return form.media_type, *found


def reader(settings: Settings) -> Reader:
    """What the zygote forks its children with."""
    return Reader(Caps.from_settings(settings))


def _sniff(data: bytes) -> str:
    head = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if data[:2] == b"BM" and data[6:10] == bytes(4):  # the first two alone may be text
        return "a BMP picture"
    if data.startswith(_TAR_MAGIC, _TAR_MAGIC_AT):
        return "a TAR archive"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic.lower())), "")


def _also(data: bytes, seen: str, module: str) -> str:
    """What else a file is: a ZIP archive is read from its end, and a PDF may begin after other things."""
    at = data.rfind(_ZIP_END, max(0, len(data) - _ZIP_END_BYTES - _ZIP_COMMENT_BYTES))
    comment = int.from_bytes(data[at + 20 : at + _ZIP_END_BYTES], "little")
    if module in _AGREES["a ZIP archive"]:  # whose readers are strict
        return ""
    if 0 <= at == len(data) - _ZIP_END_BYTES - comment:
        return "a ZIP archive"
    if module in _NO_CONTAINERS and b"%PDF-" in data[:_PDF_BEGINS_WITHIN] and b"%%EOF" in data[-_PDF_ENDS_WITHIN:]:
        return "a PDF"
    return ""
