"""Which segments to write anew, as a plan over their sizes. Pure.

Size-tiered, as in Bigtable's and Cassandra's compactions: segments of about the same size are put together once there
are FAN of them, so that a passage is rewritten about log4(passages) times. A segment of which a fifth is dead is
rewritten alone. Dead are passages of deleted documents, and of documents whose readers are no longer what the segment
says, which a rewrite puts right.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_PASSAGES = 262_144
"""More than this in one segment makes building its graph, and its rewriting, too long."""

DEAD_RATIO = 0.2
FAN = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """A segment as compaction sees it. live_passages: without those of deleted documents; changed_passages: how many
    of the live ones are of documents whose readers changed."""

    number: int
    passages: int
    live_passages: int
    changed_passages: int = 0

    @property
    def dead_passages(self) -> int:
        return self.passages - self.live_passages + self.changed_passages

    @property
    def tier(self) -> int:
        return self.live_passages.bit_length() // (FAN.bit_length() - 1)


Groups = tuple[tuple[int, ...], ...]


def asked(segments: Sequence[Shape], max_passages: int = MAX_PASSAGES) -> Groups:
    """Groups of segment numbers, each to become one segment, or none: nothing dead stays, and few are left."""
    wanted = [one for one in segments if one.dead_passages or 2 * one.live_passages <= max_passages]
    groups = _filled(wanted, max_passages)
    return _numbers(group for group in groups if len(group) > 1 or group[0].dead_passages)


def due(segments: Sequence[Shape], max_passages: int = MAX_PASSAGES) -> Groups:
    """The groups that gain enough to be rewritten unasked."""
    tiers: defaultdict[int, list[Shape]] = defaultdict(list)
    for segment in segments:
        if 2 * segment.live_passages <= max_passages:
            tiers[segment.tier].append(segment)
    full = (tier for tier in tiers.values() if len(tier) >= FAN)
    merged = [group for tier in full for group in _filled(tier, max_passages) if len(group) > 1]
    taken = {segment.number for group in merged for segment in group}
    dying = [[one] for one in segments if one.dead_passages > DEAD_RATIO * one.passages and one.number not in taken]
    return _numbers([*merged, *dying])


def _filled(segments: Sequence[Shape], max_passages: int) -> Iterator[list[Shape]]:
    """The oldest first, as many together as fit into one."""
    group: list[Shape] = []
    for segment in sorted(segments, key=lambda one: one.number):
        if group and sum(one.live_passages for one in group) + segment.live_passages > max_passages:
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _numbers(groups: Iterator[list[Shape]] | list[list[Shape]]) -> Groups:
    return tuple(tuple(segment.number for segment in group) for group in groups)
