"""Pages of 64 tokens: which sequences hold which, so that a shared prefix is computed, and kept, once.

A page's key is an HMAC-SHA-256 chain over (the tenant's salt, model, adapter, all tokens up to its end): it names the
whole prefix, and nobody without the salt can find it (no timing side channel between tenants). This is vLLM's block
table (PagedAttention, Kwon et al. 2023) over llama.cpp's unified cache, where holding is `seq_cp`, by physical
identity. Copy on write is by whole pages: a sequence that diverges computes the page where it does so anew, into cells
of its own; a page that others hold is never written again.

    free ─reserve─► used by a running sequence ─retire─► cached, held by idle ones ─evict, least recent first─► free
"""

import hmac
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PAGE_TOKENS = 64
Tokens = NDArray[np.int32]


def root(salt: bytes, model: bytes, adapter: str) -> bytes:
    """What the keys of a tenant's prefixes for one model and adapter are chained under. 32 bytes."""
    model_key = hmac.digest(salt, b"model\x00" + model, "sha256")
    return hmac.digest(model_key, b"adapter\x00" + adapter.encode(), "sha256")


def chain(tokens: Tokens, under: bytes, after: Sequence[bytes] = ()) -> list[bytes]:
    """Keys of the whole pages of `tokens`, one a page. under: a `root`. after: known keys of the same tokens."""
    keys = list(after)
    for start in range(len(keys) * PAGE_TOKENS, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
        above = keys[-1] if keys else b""
        page = tokens[start : start + PAGE_TOKENS].astype("<i4").tobytes()
        keys.append(hmac.digest(under, above + page, "sha256"))
    return keys


class Copy(NamedTuple):
    """The first `tokens` of `source` belong to `target` too."""

    source: int
    target: int
    tokens: int


class Trim(NamedTuple):
    """Only the first `tokens` of `sequence` stay."""

    sequence: int
    tokens: int


class Save(NamedTuple):
    """Page number `page` of `sequence` is to be kept off the device under its key."""

    sequence: int
    page: int
    key: bytes


class Restore(NamedTuple):
    """What was saved under `key` becomes page number `page` of `sequence`, which runs `request`."""

    request: int
    sequence: int
    page: int
    key: bytes


Move = Copy | Trim | Save | Restore


class Page:
    """64 computed cells. running: how many of its holders run."""

    __slots__ = ("holders", "index", "key", "running", "saved")

    def __init__(self, key: bytes, index: int, saved: bool) -> None:
        self.key, self.index, self.saved = key, index, saved
        self.holders: set[int] = set()
        self.running = 0


class Placement(NamedTuple):
    """A sequence whose first `shared` pages are there already."""

    sequence: int
    shared: int


class Pages:
    """Every page of the device: free, used (held or reserved by a running sequence) or cached (held by idle ones).

    Idle sequences are kept only to be shared from. What is decided here is told to the cache by `moves`, in order.
    """

    def __init__(
        self, total: int, sequence_ids: int, *, most_cached: int, saved: Callable[[bytes], bool] | None = None
    ) -> None:
        """most_cached: pages that idle sequences may keep, the last one's aside. saved: whether the tiers below hold a
        key; None where there are none."""
        self.total, self.free, self.used, self.cached = total, total, 0, 0
        self._most_cached, self._is_saved = most_cached, saved
        self._ids = list(range(sequence_ids))
        self._by_key: dict[bytes, Page] = {}
        self._tables: dict[int, list[Page]] = {}
        self._reserved: dict[int, int] = {}  # of running sequences: pages that hold no values yet
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._unsaved: deque[Page] = deque()
        self._moves: list[Move] = []

    @property
    def pending(self) -> bool:
        """Is there a move to be made, or a page to be saved?"""
        return bool(self._moves or self._unsaved)

    def take_moves(self, saves: int) -> list[Move]:
        """What the cache is to do now, with so many saves at most of pages that have time."""
        while self._unsaved and saves > 0:
            page = self._unsaved.popleft()
            if page.holders and not page.saved:
                self._save(page)
                saves -= 1
        moves, self._moves = self._moves, []
        return moves

    def count(self, sequence: int) -> int:
        """How many whole pages the sequence holds."""
        return len(self._tables[sequence])

    def match(self, keys: Sequence[bytes]) -> int:
        """How many leading `keys` the device holds."""
        count = 0
        while count < len(keys) and keys[count] in self._by_key:
            count += 1
        return count

    def room(self, keys: Sequence[bytes], without: Sequence[int]) -> int:
        """How many pages one that begins with `keys` could have if the running sequences `without` retired: all but
        those of others, unless it shares them."""
        leaving = Counter(page for sequence in without for page in self._tables[sequence])
        left = sum(self._reserved[sequence] for sequence in without)
        left += sum(page.running == holders for page, holders in leaving.items())
        shared = (self._by_key[key] for key in keys[: self.match(keys)])
        return self.total - self.used + left + sum(page.running > leaving[page] for page in shared)

    def reserve(self, keys: Sequence[bytes], pages: int) -> Placement | None:
        """A sequence with room for `pages` in all, that shares what is there of `keys`; None where they are taken."""
        if not self._ids and not self._evict_sequence():
            return None
        count = self.match(keys)
        source = min(self._by_key[keys[count - 1]].holders) if count else -1
        shared = self._tables[source][:count] if count else []
        idle = sum(not page.running for page in shared)
        needed = pages - count
        if needed > self.free + self.cached - idle:
            return None
        target = self._ids.pop()
        for page in shared:
            page.holders.add(target)
            page.running += 1
        self.cached -= idle
        self.used += idle
        if count:
            self._moves.append(Copy(source, target, count * PAGE_TOKENS))
            if source in self._idle:
                self._idle.move_to_end(source)
        while self.free < needed:
            self._evict_page()
        self.free -= needed
        self.used += needed
        self._tables[target], self._reserved[target] = shared, needed
        return Placement(target, count)

    def complete(self, sequence: int, key: bytes, *, restored: bool = False) -> None:
        """The next reserved page of the sequence holds values."""
        table = self._tables[sequence]
        saved = restored or (self._is_saved is not None and self._is_saved(key))
        page = Page(key, len(table), saved)
        page.holders.add(sequence)
        page.running = 1
        table.append(page)
        self._reserved[sequence] -= 1
        if self._by_key.setdefault(key, page) is page and self._is_saved is not None and not saved:
            self._unsaved.append(page)

    def restore(self, request: int, sequence: int, page: int, key: bytes) -> None:
        self._moves.append(Restore(request, sequence, page, key))

    def trim(self, sequence: int, tokens: int) -> None:
        """Only so many tokens of a running sequence hold; the pages that they fill stay."""
        self._moves.append(Trim(sequence, tokens))

    def retire(self, sequence: int) -> None:
        """The sequence has ended: its pages stay, idle, unless all of them can be found elsewhere or not at all."""
        reserved = self._reserved.pop(sequence)
        self.free += reserved
        self.used -= reserved
        table = self._tables[sequence]
        for page in table:
            page.running -= 1
            if not page.running:
                self.used -= 1
                self.cached += 1
        if any(len(page.holders) == 1 and self._by_key.get(page.key) is page for page in table):
            self._idle[sequence] = None
            self._moves.append(Trim(sequence, len(table) * PAGE_TOKENS))
        else:
            self._drop(sequence)
        while self.cached > self._most_cached and len(self._idle) > 1:
            self._evict_page()

    def _evict_sequence(self) -> bool:
        """Drop the idle sequence that was longest unused; False where none is idle."""
        if not self._idle:
            return False
        self._drop(next(iter(self._idle)))
        return True

    def _evict_page(self) -> None:
        """The idle sequence that was longest unused loses its last page, which others may still hold."""
        sequence = next(iter(self._idle))
        table = self._tables[sequence]
        self._let_go(sequence, table.pop())
        if table:
            self._moves.append(Trim(sequence, len(table) * PAGE_TOKENS))
        else:
            self._drop(sequence)

    def _drop(self, sequence: int) -> None:
        table = self._tables.pop(sequence)
        while table:
            self._let_go(sequence, table.pop())
        self._idle.pop(sequence, None)
        self._moves.append(Trim(sequence, 0))
        self._ids.append(sequence)

    def _let_go(self, sequence: int, page: Page) -> None:
        if len(page.holders) == 1:
            canonical = self._by_key.get(page.key) is page
            if canonical and self._is_saved is not None and not self._is_saved(page.key):  # or not any more
                self._save(page)
            if canonical:
                del self._by_key[page.key]
            self.cached -= 1
            self.free += 1
        page.holders.discard(sequence)

    def _save(self, page: Page) -> None:
        page.saved = True
        self._moves.append(Save(min(page.holders), page.index, page.key))
