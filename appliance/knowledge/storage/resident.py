"""What is decrypted and kept in memory, bounded for the whole library, whichever collections it belongs to.

Two bounds: `hot` holds what searches need of a segment ready to use (int8 vectors, graph, postings, owners), loaded at
the first use; `chunks` holds decrypted pieces of files that are read by range (text, float16 rows). In both, what was
not used lately goes first: values stand in a line, and one at its front that was used since it joined goes to the end
once more (CLOCK; Corbató, "A paging experiment with the Multics system", 1968). So a use is a mark, and needs no lock.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Key = tuple[bytes, str | int]
"""The file that a value is made of, and which part of it."""


class Kept(Generic[T]):
    """A value and whether it is still kept: `value` is None once it was let go. Who uses it says so in `used`."""

    __slots__ = ("size_bytes", "used", "value")

    def __init__(self, value: T, size_bytes: int) -> None:
        self.value: T | None = value
        self.size_bytes = size_bytes
        self.used = False


class Resident:
    """Values by key, those used lately kept, bounded in bytes. Safe to use from many threads.

    Who holds a value keeps it, whether or not it is still kept here. A value that alone is larger than the bound is
    kept until another is asked for.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._held: dict[Key, Kept[Any]] = {}
        self._loading: dict[Key, Lock] = {}
        self._gone: deque[bytes] = deque()
        self._lock = Lock()

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def get(self, key: Key, size_bytes: int, load: Callable[[], T]) -> T:
        """The value of that key, from `load` where it is not kept; of many threads that ask at once one loads it.

        Raises what `load` raises, and keeps nothing then.
        """
        return self.keep(key, size_bytes, load)[0]

    def keep(self, key: Key, size_bytes: int, load: Callable[[], T]) -> tuple[T, Kept[T]]:
        """As `get`, and where it is found for as long as it is kept, for who asks often."""
        with self._lock:
            if found := self._find(key):
                return found
            loading = self._loading.setdefault(key, Lock())
        with loading:
            with self._lock:
                if found := self._find(key):
                    return found
            try:
                kept = Kept(value := load(), size_bytes)
                with self._lock:
                    self._admit(key, kept)
                return value, kept
            finally:
                with self._lock:
                    if self._loading.get(key) is loading:
                        del self._loading[key]

    def _find(self, key: Key) -> tuple[Any, Kept[Any]] | None:
        if (kept := self._held.get(key)) is None:
            return None
        kept.used = True
        return kept.value, kept

    def holds(self, key: Key) -> bool:
        with self._lock:
            return key in self._held

    def forget(self, file_id: bytes) -> None:
        """Let go of all that is made of a file. Never waits: a file may be collected while this thread is in here."""
        self._gone.append(file_id)
        if self._lock.acquire(blocking=False):
            try:
                self._drop_gone()
            finally:
                self._lock.release()

    def _drop_gone(self) -> None:
        while self._gone:
            file_id = self._gone.popleft()
            for key in [key for key in self._held if key[0] == file_id]:
                self._let_go(key)

    def _admit(self, key: Key, kept: Kept[Any]) -> None:
        self._drop_gone()
        self._let_go(key)  # two threads may have loaded it, one after a failure
        while self._held and self._used_bytes + kept.size_bytes > self._capacity_bytes:
            first = next(iter(self._held))
            if self._held[first].used:
                again = self._held[first] = self._held.pop(first)
                again.used = False
            else:
                self._let_go(first)
        self._held[key] = kept
        self._used_bytes += kept.size_bytes

    def _let_go(self, key: Key) -> None:
        if (kept := self._held.pop(key, None)) is not None:
            self._used_bytes -= kept.size_bytes
            kept.value = None


@dataclass(frozen=True, slots=True)
class Memory:
    """Both bounds; one of these serves the whole process."""

    hot: Resident
    chunks: Resident

    @classmethod
    def of(cls, hot_bytes: int, chunk_bytes: int) -> "Memory":
        return cls(Resident(hot_bytes), Resident(chunk_bytes))
