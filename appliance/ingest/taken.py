"""Which files were committed to a collection, by digest: so that a watch does not bring back what was deleted.

What an ingestion committed is read once, when it has ended; of the few that have not, each time. A digest is cut to 16
bytes: 2^64 files would have to be made for two that begin alike, and then one of them is not taken in by itself.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

from appliance.ingest.ledger import Item
from appliance.types import FileState

_BYTES = 16


@dataclass
class TakenIndex:
    """Of the ended ingestions of one collection. ingestions: those that it counts, by id. To be changed by one thread
    at a time; safe to look into meanwhile."""

    digests: set[bytes] = field(default_factory=set)
    ingestions: set[str] = field(default_factory=set)

    def remember(self, sha256s: Iterable[str]) -> None:
        """What forgotten ingestions committed."""
        self.digests.update(map(_cut, sha256s))

    def count(self, ingestion: str, items: Iterable[Item]) -> None:
        """One that has ended, later than those that are counted."""
        self.ingestions.add(ingestion)
        for item in _committed(items):
            self.digests.discard(_cut(item.replaced))
            self.digests.add(_cut(item.outcome.sha256))

    def beside(self, unended: Iterable[Sequence[Item]]) -> "Taken":
        """With what those committed by now that have not ended, which stay uncounted."""
        taken = Taken(self)
        for items in unended:
            for item in _committed(items):
                taken.note(item)
        return taken


class Taken(Container[str]):
    """sha256 of the files that were committed to a collection and not replaced since."""

    def __init__(self, ended: TakenIndex) -> None:
        self._ended = ended
        self._fresh, self._gone = set[bytes](), set[bytes]()

    def __contains__(self, sha256: object) -> bool:
        digest = _cut(str(sha256))
        return digest in self._fresh or (digest in self._ended.digests and digest not in self._gone)

    def note(self, item: Item) -> None:
        """A file that was committed after those before it."""
        replaced, digest = _cut(item.replaced), _cut(item.outcome.sha256)
        self._fresh.discard(replaced)
        self._gone.add(replaced)
        self._fresh.add(digest)


def _committed(items: Iterable[Item]) -> Iterable[Item]:
    return (item for item in items if item.outcome.state is FileState.COMMITTED)


def _cut(sha256: str) -> bytes:
    return bytes.fromhex(sha256)[:_BYTES]
