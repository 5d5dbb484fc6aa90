"""The kinds of file that are read, by the ending of a name. No parsers here: the daemon knows this module too."""

from appliance.errors import DocumentRefused

FORMATS = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
}


def format_of(suffix: str) -> str:
    """The module of `appliance.ingest.extract` that reads such files. Raises DocumentRefused: UNKNOWN_TYPE."""
    if suffix not in FORMATS:
        named = f"{suffix} files are" if suffix.isprintable() and suffix else "A file without a known ending is"
        raise DocumentRefused("UNKNOWN_TYPE", f"{named} not read; these are: {', '.join(FORMATS)}.")
    return FORMATS[suffix]
