"""The kinds of file that are read, by the ending of a name. No parsers here: the daemon knows this module too."""

from typing import NamedTuple

from appliance.errors import DocumentRefused


class Format(NamedTuple):
    """module: of `appliance.ingest.extract`."""

    module: str
    media_type: str

    @property
    def name(self) -> str:
        """What people call it."""
        return _NAMES.get(self.media_type, self.module)


_NAMES = {
    "application/zip": "zip",
    "application/gzip": "gzip",
    "application/x-xz": "xz",
    "application/x-bzip2": "bzip2",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
}
"""Of those that are not called as the module that reads them."""


_TEXT, _MARKDOWN = Format("text", "text/plain"), Format("markdown", "text/markdown")
_HTML, _PDF = Format("html", "text/html"), Format("pdf", "application/pdf")
_JPEG, _TIFF = Format("image", "image/jpeg"), Format("image", "image/tiff")
_OPEN_XML = "application/vnd.openxmlformats-officedocument"
_DOCX = Format("docx", f"{_OPEN_XML}.wordprocessingml.document")
_PPTX = Format("pptx", f"{_OPEN_XML}.presentationml.presentation")
_XLSX = Format("xlsx", f"{_OPEN_XML}.spreadsheetml.sheet")
_GZIP, _XZ, _BZIP2 = (Format("tar", f"application/{kind}") for kind in ("gzip", "x-xz", "x-bzip2"))

FORMATS = {
    ".txt": _TEXT,
    ".text": _TEXT,
    ".log": _TEXT,
    ".rst": _TEXT,
    ".yaml": _TEXT,
    ".yml": _TEXT,
    ".json": Format("text", "application/json"),
    ".xml": Format("text", "application/xml"),
    ".md": _MARKDOWN,
    ".markdown": _MARKDOWN,
    ".html": _HTML,
    ".htm": _HTML,
    ".pdf": _PDF,
    ".png": Format("image", "image/png"),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".gif": Format("image", "image/gif"),
    ".bmp": Format("image", "image/bmp"),
    ".webp": Format("image", "image/webp"),
    **dict.fromkeys((".docx", ".docm", ".dotx", ".dotm"), _DOCX),
    **dict.fromkeys((".pptx", ".pptm", ".ppsx", ".ppsm", ".potx", ".potm"), _PPTX),
    **dict.fromkeys((".xlsx", ".xlsm", ".xltx", ".xltm"), _XLSX),
    ".xls": Format("xls", "application/vnd.ms-excel"),
    ".ods": Format("ods", "application/vnd.oasis.opendocument.spreadsheet"),
    ".csv": Format("delimited", "text/csv"),
    ".tsv": Format("delimited", "text/tab-separated-values"),
    ".eml": Format("mail", "message/rfc822"),
    ".zip": Format("zipped", "application/zip"),
    ".tar": Format("tar", "application/x-tar"),
    **dict.fromkeys((".gz", ".tgz"), _GZIP),
    **dict.fromkeys((".xz", ".txz"), _XZ),
    **dict.fromkeys((".bz2", ".tbz2"), _BZIP2),
}


READ = "PDF, Word, PowerPoint, Excel and ODS, HTML, Markdown, plain text, CSV, e-mail, images, ZIP and TAR"


def format_of(suffix: str) -> Format:
    """Who reads files of that ending, in lower case. Raises DocumentRefused: UNKNOWN_TYPE."""
    if suffix not in FORMATS:
        named = f"{suffix} files are" if suffix.isprintable() and suffix else "A file without a known ending is"
        raise DocumentRefused("UNKNOWN_TYPE", f"{named} not read. What is: {READ}.")
    return FORMATS[suffix]
