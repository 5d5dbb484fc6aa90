"""Documents to pieces: the passages that are embedded, indexed, found and cited.

A piece lies in one section of one page and is about as long as the embedder reads, by its own tokens. It begins and
ends where its kind of text allows: running text between sentences, a list between items, code between lines; a table
is whole where it fits, else cut between rows, and its header is read again before each part. Headings and the line
that leads into a list stay with what follows. Titles count as read text: each piece is embedded under the path of its
headings. Pages are tokenized once, and everything after that is linear in the text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from appliance.knowledge.chunk.blocks import ITEM, TABLE_RULE, structure
from appliance.knowledge.chunk.sentences import sentences
from appliance.ports import Embedder
from appliance.types import Block, BlockKind, Ints, Span

SEPARATOR = " › "

_SHARE_OF_HEADING = 4  # titles may take a quarter of what the embedder reads,
_SHARE_OF_REPEATED = 4  # and so may a table's header
_CHARACTERS_A_TOKEN = 12  # at most, on average over a piece: more is no text that the tokenizer knows
_MARKS = re.compile(r"^[ \t]*#{1,6}[ \t]+|[ \t]+#+[ \t]*$")


@dataclass(frozen=True, slots=True)
class Piece:
    """A passage in its surroundings.

    span: the stored range, exactly what is shown and cited. section: [start, end) of its section on the same page.
    heading: the titles above it, as "A › B". repeated: what must be read before it, such as a cut table's header.
    """

    span: Span
    section: tuple[int, int]
    heading: str
    repeated: str

    def read(self, page: str) -> str:
        """What is embedded, given the text of its page: heading, what is repeated, and its own text."""
        return "\n".join(part for part in (self.heading, self.repeated, page[self.span.start : self.span.end]) if part)


def pieces(
    pages: Sequence[str], blocks: Sequence[Block], embedder: Embedder, overlap_tokens: int = 0
) -> list[Piece]:
    """The pieces of a document, in order; every character that is not white space lies in at least one of them.

    blocks: what its parser saw, in order and without overlap. overlap_tokens: so much of running text, in whole
    sentences, begins the next piece as well.
    """
    on_page: list[list[Block]] = [[] for _ in pages]
    for block in blocks:
        on_page[block.page - 1].append(block)
    path = _Path(embedder.max_tokens // _SHARE_OF_HEADING)
    found: list[Piece] = []
    for number, ends in enumerate(embedder.token_ends(pages), 1):
        page = _Page(pages[number - 1], ends)
        for section in _sections(structure(page.text, number, on_page[number - 1])):
            for block in section:
                if block.kind is BlockKind.HEADING:
                    path.enter(block.level, page, block)
            heading, cost = path.read()
            packed = list(_packed(list(_units(page, section, embedder.max_tokens - cost)), page, overlap_tokens))
    return found


class _Unit(NamedTuple):
    """What is not cut: a sentence, an item, a row, a line, a table that fits. Costs are tokens.

    flows: it may be read again at the start of the next piece. leads: it stays with what follows. repeated: [start,
    end) of what must be read before it where a piece begins with it.
    """

    start: int
    end: int
    cost: int
    flows: bool = False
    leads: bool = False
    repeated: tuple[int, int] = (0, 0)
