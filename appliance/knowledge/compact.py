"""Which segments to write anew: those that hold deleted documents, and small ones, which are put together. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_DUE_DELETED_SHARE = 0.2
_DUE_SMALL_SEGMENTS = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """A segment as compaction sees it. live_passages: without those of deleted documents."""

    number: int
    passages: int
    live_passages: int


def due(group: Sequence[Shape]) -> bool:
    """Whether a group gains enough to be rewritten unasked: a fifth of it is deleted, or it is many small segments."""
    passages = sum(member.passages for member in group)
    deleted = passages - sum(member.live_passages for member in group)
    return deleted > _DUE_DELETED_SHARE * passages or len(group) >= _DUE_SMALL_SEGMENTS


def gains(group: Sequence[Shape]) -> bool:
    """Whether a group gains anything at all."""
    return len(group) > 1 or any(member.live_passages < member.passages for member in group)


def plan(
    segments: Sequence[Shape], full_passages: int, worth_it: Callable[[Sequence[Shape]], bool] = gains
) -> tuple[tuple[int, ...], ...]:
    """Groups of segment numbers, each to become one segment of about `full_passages` at most, or none.

    A segment that is full and holds nothing deleted is left alone, and so is a group that is not `worth_it`.
    """
    groups: list[list[Shape]] = [[]]
    for segment in sorted(segments, key=lambda segment: segment.number):
        whole = segment.live_passages == segment.passages
        if whole and segment.passages * 2 > full_passages:
            continue
        if sum(member.live_passages for member in groups[-1]) + segment.live_passages > full_passages:
            groups.append([])
        groups[-1].append(segment)
    return tuple(tuple(member.number for member in group) for group in groups if worth_it(group))
