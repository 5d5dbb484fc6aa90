"""Which segments to write anew: those that hold deleted documents, and small ones, which are put together. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """A segment as compaction sees it. live_passages: without those of deleted documents."""

    number: int
    passages: int
    live_passages: int


def plan(segments: Sequence[Shape], full_passages: int) -> tuple[tuple[int, ...], ...]:
    """Groups of segment numbers, each to become one segment of about `full_passages` at most, or none.

    A segment that is full and holds nothing deleted is left alone, and so is a small one with no other to join.
    """
    groups: list[list[Shape]] = [[]]
    for segment in sorted(segments, key=lambda segment: segment.number):
        whole = segment.live_passages == segment.passages
        if whole and segment.passages * 2 > full_passages:
            continue
        if sum(member.live_passages for member in groups[-1]) + segment.live_passages > full_passages:
            groups.append([])
        groups[-1].append(segment)
    return tuple(tuple(member.number for member in group) for group in groups if _is_worth_it(group))


def _is_worth_it(group: Sequence[Shape]) -> bool:
    return len(group) > 1 or any(member.live_passages < member.passages for member in group)
