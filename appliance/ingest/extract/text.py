"""Plain text in whatever character set it is. A form feed starts a new page."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import accumulate, pairwise

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import charset
from appliance.ingest.extract.reading import Mark, Read, Row

PARSER = f"text 1/unicode {unicodedata.unidata_version}"
WARM_DOCUMENTS = (
    b"Warm.\n",
    b"\xef\xbb\xbfWarm.",
    *(
        f"{mark}Wärm.".encode(f"utf-{bits}-{end}")
        for mark in ("\ufeff", "")
        for bits in (16, 32)
        for end in ("le", "be")
    ),
    "Schlüssel werden persönlich übergeben.".encode("cp1252"),
    "Ключи передаются лично и никогда по почте.".encode("koi8-r"),
    "鍵は手渡しで渡され、受付の台帳に署名されます。".encode("cp932"),
    bytes(range(256)),
)

_NEWLINE = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# Colours of a terminal (ECMA-48), controls, soft hyphens, zero-width spaces, stray byte order marks, noncharacters:
# nothing a reader sees.
_INVISIBLE = re.compile(
    "\x1b\\[[0-?]{0,30}[@-~]|[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\ufeff\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)


def read(data: bytes, caps: Caps) -> Read:
    """Parser with the character set, pages, and no blocks.

    Raises DocumentRefused: NOT_UTF8, NOT_TEXT, TOO_MANY_PAGES.
    """
    whole, encoding = charset.decode(data)
    if (count := whole.count("\f") + 1) > caps.pages:
        raise DocumentRefused("TOO_MANY_PAGES", f"It has {count} pages; {caps.pages} are allowed.")
    pages = tuple(clean(page) for page in whole.removesuffix("\f").split("\f"))
    return Read(parser_with(PARSER, encoding), pages)


def parser_with(parser: str, encoding: str) -> str:
    """A parser's name with the character set, where that is not UTF-8."""
    return parser if encoding == "utf-8" else f"{parser}; {encoding}"


def clean(text: str) -> str:
    """As a reader sees it: NFC, newlines as \\n, nothing invisible, no blank ends. Tabs stay."""
    return _clean_lines(text).strip("\n")


def clean_marked(text: str, marks: Sequence[Mark], page: int) -> tuple[str, list[Row]]:
    """A page as `clean` has it, and where in it the marked lines went, without empty ones around them.

    marks: in order, without overlap; each begins at a line's start and ends at one, or at the text's end.
    """
    borders = [0, *(border for _, _, *mark in marks for border in mark), len(text)]
    parts = [_clean_lines(text[start:end]) for start, end in pairwise(borders)]
    starts = list(accumulate(map(len, parts), initial=0))
    whole = "".join(parts)
    shift = len(whole) - len(whole.lstrip("\n"))
    rows: list[Row] = []
    for (kind, level, *_), part, start in zip(marks, parts[1::2], starts[1:-1:2], strict=True):
        if part.strip():
            kept = part.lstrip("\n")
            first = start + len(part) - len(kept) - shift
            rows.append((kind, level, page, first, first + len(kept.rstrip())))
    return whole.strip("\n"), rows


def _clean_lines(text: str) -> str:
    """Whole lines, each by itself: no character is composed across a newline, so parts join as the whole would be."""
    lines = _INVISIBLE.sub("", _NEWLINE.sub("\n", text)).split("\n")
    return unicodedata.normalize("NFC", "\n".join(line.rstrip(" \t") for line in lines))
