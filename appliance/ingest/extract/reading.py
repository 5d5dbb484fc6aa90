"""What a format's module gives: `read(data, caps) -> Read`. Text in pages, its structure, the files in it."""

from typing import NamedTuple

Row = tuple[str, int, int, int, int]
"""A block of the page's text: kind (a value of `types.BlockKind`), level of a heading, else 0, page, start, end."""

Mark = tuple[str, int, int, int]
"""A block of raw text: kind, level, start, end."""

Content = bytes | memoryview
"""A view where it spares a copy: what unpacks to much is in the child's memory once."""

Member = tuple[str, Content, str]
"""A file in a container: its path there, its bytes, and '' or why it was left out, then without bytes."""


PAGE_CPU_SECONDS = 0.05
"""By which each page of a long file extends the clock; a full one takes about 0.01."""


class Read(NamedTuple):
    """parser: with its version. pages: text by page. blocks: in order, inside their page, without overlap.

    members: each becomes a file of its own on the road through ingest. A container without text has no pages.
    """

    parser: str
    pages: tuple[str, ...] = ()
    blocks: tuple[Row, ...] = ()
    members: tuple[Member, ...] = ()
