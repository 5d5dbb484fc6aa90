"""Which sequences hold which blocks of computed tokens, so that a shared prefix is computed once.

A block is 64 tokens; its key is an HMAC-SHA-256 chain over (salt, all tokens up to the block's end), so a key names the
whole prefix, and prefixes are never found across salts (no timing side channel between tenants). Blocks are counted by
physical identity: a block that three sequences hold occupies its cells once (vLLM's block table, PagedAttention,
Kwon et al. 2023, over llama.cpp's unified cache, where holding is `seq_cp`).
"""

import hmac
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK_TOKENS = 64
Tokens = NDArray[np.int32]


def chain(tokens: Tokens, salt: bytes, after: Sequence[bytes] = ()) -> list[bytes]:
    """Keys of the whole blocks of `tokens`, one a block; `after` are those already known of the same tokens."""
    keys = list(after)
    for start in range(len(keys) * BLOCK_TOKENS, len(tokens) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        above = keys[-1] if keys else b""
        block = tokens[start : start + BLOCK_TOKENS].astype("<i4").tobytes()
        keys.append(hmac.digest(salt, above + block, "sha256"))
    return keys


class Block:
    """64 cells of the cache, and the sequences that hold them."""

    __slots__ = ("holders", "key")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.holders: set[int] = set()


class PrefixIndex:
    """The blocks of every sequence, running or idle. Idle ones are kept only to be shared from, and may be evicted."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, Block] = {}
        self._of: dict[int, list[Block]] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._block_count = 0

    @property
    def cells(self) -> int:
        """Cells that all blocks occupy."""
        return self._block_count * BLOCK_TOKENS

    @property
    def idle(self) -> int:
        """How many sequences are idle."""
        return len(self._idle)

    @property
    def idle_cells(self) -> int:
        """Cells that evicting every idle sequence would free."""
        idle = {block for sequence in self._idle for block in self._of[sequence]}
        return sum(block.holders <= self._idle.keys() for block in idle) * BLOCK_TOKENS

    def count(self, sequence: int) -> int:
        """How many blocks the sequence holds."""
        return len(self._of.get(sequence, ()))

    def match(self, keys: Sequence[bytes]) -> tuple[int, int]:
        """The longest known prefix of `keys`: (a sequence that holds it, its number of blocks); (-1, 0) for none."""
        count = 0
        while count < len(keys) and keys[count] in self._by_key:
            count += 1
        return (min(self._by_key[keys[count - 1]].holders), count) if count else (-1, 0)

    def share(self, source: int, target: int, count: int) -> None:
        """`target`, which holds nothing, holds the first `count` blocks of `source` too."""
        shared = self._of[source][:count]
        for block in shared:
            block.holders.add(target)
        self._of[target] = list(shared)
        if source in self._idle:
            self._idle.move_to_end(source)

    def insert(self, sequence: int, key: bytes) -> None:
        """The sequence has computed its next block."""
        block = Block(key)
        block.holders.add(sequence)
        self._by_key.setdefault(key, block)
        self._of.setdefault(sequence, []).append(block)
        self._block_count += 1

    def retire(self, sequence: int) -> bool:
        """The sequence has ended. True: it stays, idle. False: others hold all that is worth keeping, so it went."""
        mine = self._of.get(sequence, ())
        if all(len(block.holders) > 1 or self._by_key.get(block.key) is not block for block in mine):
            self.drop(sequence)
            return False
        self._idle[sequence] = None
        return True

    def evict(self) -> int:
        """Drop the idle sequence that was longest unused, and name it; -1 if none is idle."""
        if not self._idle:
            return -1
        oldest = next(iter(self._idle))
        self.drop(oldest)
        return oldest

    def drop(self, sequence: int) -> None:
        """The sequence holds nothing any more."""
        self._idle.pop(sequence, None)
        for block in self._of.pop(sequence, ()):
            block.holders.discard(sequence)
            if not block.holders:
                self._block_count -= 1
                if self._by_key.get(block.key) is block:
                    del self._by_key[block.key]
