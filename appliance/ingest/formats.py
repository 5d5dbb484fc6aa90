"""The kinds of file that are read, by the ending of a name. No parsers here: the daemon knows this module too."""

from typing import NamedTuple

from appliance.errors import DocumentRefused


class Format(NamedTuple):
    """module: of `appliance.ingest.extract`."""

    module: str
    media_type: str


_TEXT, _MARKDOWN = Format("text", "text/plain"), Format("markdown", "text/markdown")
_HTML, _PDF = Format("html", "text/html"), Format("pdf", "application/pdf")

FORMATS = {
    ".txt": _TEXT,
    ".text": _TEXT,
    ".md": _MARKDOWN,
    ".markdown": _MARKDOWN,
    ".html": _HTML,
    ".htm": _HTML,
    ".pdf": _PDF,
}


def format_of(suffix: str) -> Format:
    """Who reads files of that ending, in lower case. Raises DocumentRefused: UNKNOWN_TYPE."""
    if suffix not in FORMATS:
        named = f"{suffix} files are" if suffix.isprintable() and suffix else "A file without a known ending is"
        raise DocumentRefused("UNKNOWN_TYPE", f"{named} not read; these are: {', '.join(FORMATS)}.")
    return FORMATS[suffix]
