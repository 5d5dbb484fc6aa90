"""Documents that are in the log and in no segment yet, in memory, as immutable blocks.

Adding returns another memtable, so whoever holds one keeps seeing what was there: a reader pins it by holding it, and
what is sealed goes on being searched here until its segment takes its place.
Blocks of one document are merged by eights, and these again, so that a passage is indexed about log8(documents) times
and a search visits few blocks. The words of small blocks are indexed by the first search that comes: while documents
pour in, most blocks are merged before one does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from appliance.knowledge.catalog import MEMTABLE, Row
from appliance.knowledge.chunk import Piece
from appliance.knowledge.index import vectors
from appliance.knowledge.index.postings import Postings
from appliance.knowledge.sealed import words
from appliance.knowledge.storage.record import Entry
from appliance.types import PLACE, Bools, Floats, Span

_FAN_BITS = 3
_FAN = 1 << _FAN_BITS
_INDEXED_LEVEL = 2
_TOGETHER = _FAN**_INDEXED_LEVEL
_FEW = 4  # below a quarter of the rows, to gather them costs less than to read them all


class Block:
    """Some documents, searchable; a `search.Unit`. The ordinal of a document counts from the memtable's first."""

    number = MEMTABLE

    def __init__(self, entries: tuple[Entry, ...], first_ordinal: int, level: int) -> None:
        self.entries = entries
        self.first_ordinal = first_ordinal
        self.level = level
        counts = [len(entry.pieces) for entry in entries]
        self.documents = len(entries)
        self.rows = sum(counts)
        self.owners: NDArray[np.uint32] = np.repeat(np.arange(len(entries), dtype=np.uint32), counts)
        self._firsts = np.cumsum(counts) - counts
        self._vectors = np.concatenate([entry.vectors for entry in entries])
        self._places = np.array(
            [
                (document, piece.span.page, piece.span.start, piece.span.end, *piece.section)
                for entry in entries
                for document in [bytes.fromhex(entry.document.id)]
                for piece in entry.pieces
            ],
            PLACE,
        )
        if level >= _INDEXED_LEVEL:
            self.postings  # noqa: B018  (so that no search waits for many documents)

    @cached_property
    def postings(self) -> Postings:
        return Postings.build([row for entry in self.entries for row in words(entry)])

    def nearest(self, query: Floats, allowed: Bools, k: int) -> tuple[NDArray[np.uint32], Floats]:
        """The k best allowed rows by cosine, best first; exact."""
        rows = np.flatnonzero(allowed).astype(np.uint32)
        if len(rows) * _FEW > self.rows:
            return vectors.exact(self._vectors, query, allowed, k)
        best, scores = vectors.exact(self._vectors[rows], query, None, k)
        return rows[best], scores

    def vectors(self, rows: NDArray[np.uint32]) -> Floats:
        """Of some rows, float32 [len(rows), dimension]."""
        return self._vectors[rows]

    def places(self, rows: NDArray[np.uint32]) -> NDArray[np.void]:
        """Where some rows stand, as `search.Unit` says."""
        return self._places[rows]

    def document_id(self, owner: int) -> str:
        return self.entries[owner].document.id

    def piece(self, row: int) -> Piece:
        return self._of(row)[1]

    def passage(self, row: int) -> tuple[Span, str]:
        """A passage's place in its document, and its text."""
        entry, piece = self._of(row)
        return piece.span, entry.pages[piece.span.page - 1][piece.span.start : piece.span.end]

    def around(self, row: int, document: Row | None, characters: int) -> tuple[str, int]:
        """What a passage stands in, as `search.Unit` says."""
        entry, piece = self._of(row)
        page = entry.pages[piece.span.page - 1]
        first, last = (0, len(page)) if document else piece.section
        start = max(first, piece.span.start - characters)
        return page[start : min(last, piece.span.end + characters)], piece.span.start - start

    def _of(self, row: int) -> tuple[Entry, Piece]:
        owner = int(self.owners[row])
        return self.entries[owner], self.entries[owner].pieces[row - int(self._firsts[owner])]


@dataclass(frozen=True)
class Memtable:
    """frozen: how many of the first blocks are being sealed, and so neither grow nor are merged. Ordinals go on from
    block to block, also when the first blocks are gone."""

    blocks: tuple[Block, ...] = ()
    frozen: int = 0

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Memtable":
        """All of them in one block, as after a replay."""
        found = tuple(entries)
        return cls((Block(found, 0, level=len(found).bit_length() // _FAN_BITS),) if found else ())

    @cached_property
    def entries(self) -> Mapping[int, Entry]:
        """By ordinal, ascending, with those that were deleted since."""
        return {
            ordinal: entry for block in self.blocks for ordinal, entry in enumerate(block.entries, block.first_ordinal)
        }

    @property
    def end(self) -> int:
        """The ordinal of the next document."""
        return self.blocks[-1].first_ordinal + self.blocks[-1].documents if self.blocks else 0

    @property
    def passages(self) -> int:
        return sum(block.rows for block in self.blocks)

    @property
    def open_passages(self) -> int:
        """Of what is not being sealed."""
        return sum(block.rows for block in self.blocks[self.frozen :])

    def with_entries(self, entries: Iterable[Entry]) -> "Memtable":
        """This memtable and more documents, their ordinals from `end` of this one on."""
        blocks, end, left = list(self.blocks), self.end, tuple(entries)
        while left:
            open_, level = blocks[self.frozen :], 0
            if len(left) >= _TOGETHER and (not open_ or open_[-1].level >= _INDEXED_LEVEL):
                level = _INDEXED_LEVEL  # what these would be merged to one by one
            some, left = left[: _FAN**level], left[_FAN**level :]
            self._add(blocks, some, end, level)
            end += len(some)
        return replace(self, blocks=tuple(blocks))

    def _add(self, blocks: list[Block], entries: tuple[Entry, ...], ordinal: int, level: int) -> None:
        merged, first = entries, ordinal
        while len(blocks) - self.frozen >= _FAN - 1 and all(block.level == level for block in blocks[1 - _FAN :]):
            merged = tuple(one for block in blocks[1 - _FAN :] for one in block.entries) + merged
            first, level = blocks[1 - _FAN].first_ordinal, level + 1
            del blocks[1 - _FAN :]
        blocks.append(Block(merged, first, level))

    def freeze(self) -> "Memtable":
        """All that is there is being sealed."""
        return replace(self, frozen=len(self.blocks))

    def thaw(self) -> "Memtable":
        """Nothing is being sealed any more: it failed."""
        return replace(self, frozen=0)

    def rest(self) -> "Memtable":
        """Without what was being sealed."""
        return Memtable(self.blocks[self.frozen :])

    def entry(self, ordinal: int) -> Entry:
        return next(
            block.entries[ordinal - block.first_ordinal]
            for block in self.blocks
            if ordinal < block.first_ordinal + block.documents
        )
