"""Documents that are in the log and in no segment yet, in memory, as immutable blocks.

Adding returns another memtable, so whoever holds one keeps seeing what was there: a reader pins it by holding it.
Blocks of one document are merged by eights, and these again, so that a passage is indexed about log8(documents) times
and a search visits few blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from appliance.knowledge.catalog import MEMTABLE
from appliance.knowledge.index import vectors
from appliance.knowledge.index.inversion import Row
from appliance.knowledge.index.postings import Postings
from appliance.knowledge.storage.record import Entry
from appliance.types import PLACE, Bools, Floats, Span

_FAN_BITS = 3
_FAN = 1 << _FAN_BITS
_FEW = 4  # below a quarter of the rows, to gather them costs less than to read them all


class Block:
    """Some documents, searchable; a `search.Unit`. The ordinal of a document counts from the memtable's first."""

    number = MEMTABLE

    def __init__(self, entries: tuple[Entry, ...], first_ordinal: int, level: int) -> None:
        self.entries = entries
        self.first_ordinal = first_ordinal
        self.level = level
        counts = [len(entry.spans) for entry in entries]
        self.documents = len(entries)
        self.rows = sum(counts)
        self.owners: NDArray[np.uint32] = np.repeat(np.arange(len(entries), dtype=np.uint32), counts)
        self._firsts = np.cumsum(counts) - counts
        self._places = np.array(
            [
                (bytes.fromhex(entry.document.id), span.page, span.start, span.end, 0, 0)
                for entry in entries
                for span in entry.spans
            ],
            PLACE,
        )
        self._vectors = np.concatenate([entry.vectors for entry in entries])
        self.postings = Postings.build([Row(text) for entry in entries for text in entry.passages()])

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

    def passage(self, row: int) -> tuple[Span, str]:
        entry = self.entries[int(self.owners[row])]
        span = entry.spans[row - int(self._firsts[self.owners[row]])]
        return span, entry.pages[span.page - 1][span.start : span.end]


@dataclass(frozen=True)
class Memtable:
    blocks: tuple[Block, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Memtable":
        """All of them in one block, as after a replay."""
        found = tuple(entries)
        return cls((Block(found, 0, level=len(found).bit_length() // _FAN_BITS),) if found else ())

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """In the order of their ordinals, with those that were deleted since."""
        return tuple(entry for block in self.blocks for entry in block.entries)

    @property
    def documents(self) -> int:
        return sum(block.documents for block in self.blocks)

    @property
    def passages(self) -> int:
        return sum(block.rows for block in self.blocks)

    def with_entry(self, entry: Entry) -> "Memtable":
        """This memtable and one more document; its ordinal is `documents` of this one."""
        blocks = [*self.blocks, Block((entry,), self.documents, level=0)]
        while len(blocks) >= _FAN and blocks[-_FAN].level == blocks[-1].level:
            merged = tuple(entry for block in blocks[-_FAN:] for entry in block.entries)
            blocks[-_FAN:] = [Block(merged, blocks[-_FAN].first_ordinal, blocks[-1].level + 1)]
        return Memtable(tuple(blocks))

    def entry(self, ordinal: int) -> Entry:
        return next(
            block.entries[ordinal - block.first_ordinal]
            for block in self.blocks
            if ordinal < block.first_ordinal + block.documents
        )
