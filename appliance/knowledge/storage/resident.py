"""What is decrypted and kept in memory, bounded for the whole library, whichever collections it belongs to.

Two bounds: `hot` holds what searches need of a segment ready to use (int8 vectors, graph, postings, owners), loaded at
the first use; `chunks` holds decrypted pieces of files that are read by range (text, float16 rows). In both, what was
not used for longest goes first.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")
Key = tuple[bytes, str | int]
"""The file that a value is made of, and which part of it."""


class Resident:
    """Values by key, the last used kept, bounded in bytes. Safe to use from many threads.

    Who holds a value keeps it, whether or not it is still kept here. A value that alone is larger than the bound is
    kept until another is asked for.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._used_bytes = 0
        self._held: OrderedDict[Key, tuple[Any, int]] = OrderedDict()
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
        with self._lock:
            if (held := self._held.get(key)) is not None:
                self._held.move_to_end(key)
                return held[0]  # type: ignore[no-any-return]
            loading = self._loading.setdefault(key, Lock())
        with loading:
            with self._lock:
                if (held := self._held.get(key)) is not None:
                    return held[0]  # type: ignore[no-any-return]
            try:
                value = load()
                with self._lock:
                    self._keep(key, value, size_bytes)
                return value
            finally:
                with self._lock:
                    if self._loading.get(key) is loading:
                        del self._loading[key]

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
                _, size_bytes = self._held.pop(key)
                self._used_bytes -= size_bytes

    def _keep(self, key: Key, value: object, size_bytes: int) -> None:
        self._drop_gone()
        _, replaced_bytes = self._held.pop(key, (None, 0))  # two threads may have loaded it, one after a failure
        self._used_bytes -= replaced_bytes
        self._held[key] = (value, size_bytes)
        self._used_bytes += size_bytes
        while self._used_bytes > self._capacity_bytes and len(self._held) > 1:
            _, (_, dropped_bytes) = self._held.popitem(last=False)
            self._used_bytes -= dropped_bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """Both bounds; one of these serves the whole process."""

    hot: Resident
    chunks: Resident

    @classmethod
    def of(cls, hot_bytes: int, chunk_bytes: int) -> "Memory":
        return cls(Resident(hot_bytes), Resident(chunk_bytes))
