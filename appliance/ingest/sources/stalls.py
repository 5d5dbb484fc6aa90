"""Blocking calls on places that may never answer: a dead share holds its thread for ever, and must hold no more.

Each call has a daemon thread of its own, for threads of a pool would be waited for when the process ends.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from appliance.errors import Cancelled, SourceGone

AT_ONCE = 4
T = TypeVar("T")
Beat = Callable[[], None]
"""Called by work that goes on: it is not stuck. Raises where nobody waits for its result any more."""


@dataclass(eq=False)
class _Call(Generic[T]):
    """value, error: how it ended."""

    beat_seconds: float
    abandoned: bool = False
    value: T | None = None
    error: BaseException | None = None

    def beat(self) -> None:
        if self.abandoned:
            raise Cancelled("Nobody waits for this any more.")
        self.beat_seconds = time.monotonic()


def _nothing() -> None:
    return None


def _resolve(ended: "asyncio.Future[None]") -> None:
    if not ended.done():
        ended.set_result(None)


class Calls:
    """The calls on one place, AT_ONCE at most. Belongs to one event loop.

    One that gives no sign for `patience_seconds` is given up, and until it returns no other is begun.
    """

    def __init__(self, place: str, patience_seconds: float) -> None:
        """place: printable, for errors."""
        self._place, self._patience_seconds = place, patience_seconds
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._changing = threading.Lock()
        self._running: set[_Call[object]] = set()
        self._releases: list[Callable[[], None]] = []

    @property
    def stuck(self) -> bool:
        """Whether a call was given up that has not returned yet."""
        now = time.monotonic()
        with self._changing:
            return any(now - call.beat_seconds > self._patience_seconds for call in self._running)

    @property
    def busy(self) -> bool:
        """Whether any call has not returned yet."""
        with self._changing:
            return bool(self._running)

    async def run(self, work: Callable[[Beat], T], release: Callable[[], None] = _nothing) -> T:
        """What `work` returns or raises. release: called once, when it has ended or will never begin.

        Raises SourceGone where it gives no sign in time, or an earlier one still does not.
        """
        began = False
        try:
            async with self._slots:
                if self.stuck:
                    raise self._gone()
                call: _Call[T] = _Call(time.monotonic())
                ended = self._begin(call, work, release)
                began = True
                return await self._wait(call, ended)
        finally:
            if not began:
                release()

    def close(self, release: Callable[[], None]) -> None:
        """Call `release` once no call runs: at once, or by the last that returns."""
        with self._changing:
            if self._running:
                self._releases.append(release)
                return
        release()

    def _begin(self, call: _Call[T], work: Callable[[Beat], T], release: Callable[[], None]) -> "asyncio.Future[None]":
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def body() -> None:
            try:
                call.value = work(call.beat)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised where the result is awaited
                call.error = error
            release()
            self._forget(call)
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_resolve, ended)

        with self._changing:
            self._running.add(call)  # type: ignore[arg-type]  # a set of calls whatever they return
        try:
            threading.Thread(target=body, name="source", daemon=True).start()
        except RuntimeError:  # the box has no thread left to give
            self._forget(call)
            raise SourceGone(f"{self._place} cannot be read now: the box runs too many threads.") from None
        return ended

    async def _wait(self, call: _Call[T], ended: "asyncio.Future[None]") -> T:
        try:
            while not ended.done():
                left = call.beat_seconds + self._patience_seconds - time.monotonic()
                if left < 0:
                    raise self._gone()
                await asyncio.wait([ended], timeout=left + 0.01)
        finally:
            call.abandoned = True
        if call.error is not None:
            raise call.error
        return call.value  # type: ignore[return-value]  # it ended without an error: it is a T

    def _forget(self, call: _Call[T]) -> None:
        with self._changing:
            self._running.discard(call)
            due = [] if self._running else self._releases
            self._releases = self._releases if self._running else []
        for release in due:
            release()

    def _gone(self) -> SourceGone:
        return SourceGone(f"{self._place} gave no answer for {self._patience_seconds:g} seconds.")
