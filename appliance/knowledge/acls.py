"""Distinct sets of readers, by number: documents that the same may read share one, so that to ask which documents a
caller may read is to ask for a few numbers."""

from collections.abc import Iterable


class Acls:
    """Not safe to use from many threads: its catalogue is locked."""

    def __init__(self) -> None:
        self._sets: list[frozenset[str] | None] = []
        self._numbers: dict[frozenset[str], int] = {}
        self._by_reader: dict[str, set[int]] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, readers: frozenset[str]) -> int:
        """The number of that set, a new one where none has it yet."""
        if (known := self._numbers.get(readers)) is not None:
            return known
        if self._free:
            number = self._free.pop()
            self._sets[number] = readers
        else:
            number = len(self._sets)
            self._sets.append(readers)
        self._numbers[readers] = number
        for reader in readers:
            self._by_reader.setdefault(reader, set()).add(number)
        return number

    def readers(self, number: int) -> frozenset[str]:
        found = self._sets[number]
        assert found is not None, "a document has an access list that was let go"
        return found

    def copy(self) -> "Acls":
        """For `readers` alone: as they are now, whatever becomes of these."""
        copied = Acls()
        copied._sets = list(self._sets)
        return copied

    def readable(self, groups: Iterable[str]) -> list[int]:
        """The numbers of the sets that hold any of the groups."""
        return sorted({number for group in groups for number in self._by_reader.get(group, ())})

    def keep_only(self, used: frozenset[int]) -> None:
        """Let go of the sets that no document has any more."""
        for readers, number in list(self._numbers.items()):
            if number not in used:
                del self._numbers[readers]
                self._sets[number] = None
                self._free.append(number)
                for reader in readers:
                    numbers = self._by_reader[reader]
                    numbers.discard(number)
                    if not numbers:
                        del self._by_reader[reader]
