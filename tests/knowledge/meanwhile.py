"""What others do while a segment is written, in its midst and in a fixed order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest

from appliance.knowledge.storage.manifest import SegmentEntry
from appliance.knowledge.storage.store import Store

PATIENCE_SECONDS = 60.0
"""For what must not wait: where it does, the test fails in the end and does not hang."""


def in_another_thread(work: Callable[[], object]) -> None:
    """Run it to its end, and raise what it raises. AssertionError where it waits for a lock that is held here."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), "it waits for the seal"
    if raised:
        raise raised[0]


@contextmanager
def changing(before: Callable[[], object], behind: Callable[[], object]) -> Iterator[None]:
    """Another thread does the one before the first segment's bytes are written and the other behind that, before the
    segment is part of the collection."""
    real, done = Store.write_segment, Event()

    def write_segment(store: Store, *arguments: Any, **options: Any) -> SegmentEntry:
        if done.is_set():
            return real(store, *arguments, **options)
        done.set()
        in_another_thread(before)
        written = real(store, *arguments, **options)
        in_another_thread(behind)
        return written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write_segment", write_segment)
        yield


class Held:
    """A seal that stands still, once it has begun, until it is let go; `calls`: how many have begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, written: bool) -> None:
        """written: whether the segment is on the disk by then."""
        self._real, self._written = Store.write_segment, written
        self.begun, self._go_on = Event(), Event()
        self.calls = 0
        monkeypatch.setattr(Store, "write_segment", self._patched())

    def _patched(self) -> Callable[..., SegmentEntry]:
        def write_segment(store: Store, *arguments: Any, **options: Any) -> SegmentEntry:
            self.calls += 1
            entry = self._real(store, *arguments, **options) if self._written else None
            self.begun.set()
            assert self._go_on.wait(PATIENCE_SECONDS)
            return entry or self._real(store, *arguments, **options)

        return write_segment

    @contextmanager
    def during(self, seal: Callable[[], object]) -> Iterator[None]:
        """The context runs while the seal stands still; then the seal ends, and what it raised is raised."""
        raised: list[BaseException] = []

        def run() -> None:
            try:
                seal()
            except BaseException as error:
                raised.append(error)

        thread = Thread(target=run, daemon=True)
        thread.start()
        try:
            assert self.begun.wait(PATIENCE_SECONDS)
            yield
        finally:
            self._go_on.set()
            thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
        if raised:
            raise raised[0]
