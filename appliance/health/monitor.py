"""Holds what has been found, and tells who watches: health is the worst visible finding."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from appliance.health import host
from appliance.health.findings import Declared
from appliance.types import Finding, HealthReport, Severity

WATCH_HOST_SECONDS = 5.0
log = structlog.get_logger()

Key = tuple[str, str, str]
"""Code, tenant, subject."""


@dataclass(frozen=True, slots=True)
class Raised:
    """A finding as it was raised. `visible_at_seconds`: on the monitor's clock."""

    declared: Declared
    finding: Finding
    visible_at_seconds: float


class Monitor:
    """The box's findings. Raise and clear from any thread; watch from any event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._raised: dict[Key, Raised] = {}
        self._watchers: set[Callable[[], None]] = set()

    def raise_(self, declared: Declared, subject: str = "", detail: str = "", tenant: str = "") -> None:
        """Say that something is so; saying it again keeps its age and renews the detail. tenant: whose the subject is,
        '' of the box."""
        key = (declared.code, tenant, subject)
        with self._lock:
            old = self._raised.get(key)
            if old is not None and old.finding.detail == detail:
                return
            self._raised[key] = _raise(declared, tenant, subject, detail, old, self._clock())
        if old is None:
            log.warning("health.raised", code=declared.code, subject=subject, tenant=tenant)
        self._changed()

    def clear(self, declared: Declared, subject: str = "", tenant: str = "") -> None:
        """Say that it is so no longer; nothing happens where it was not."""
        with self._lock:
            old = self._raised.pop((declared.code, tenant, subject), None)
        if old is not None:
            log.info("health.cleared", code=declared.code, subject=subject, tenant=tenant)
            self._changed()

    def set(self, declared: Declared, details: Mapping[str, str]) -> None:
        """Make the subjects of one kind exactly these, with their details."""
        self.set_of_tenants(declared, {("", subject): detail for subject, detail in details.items()})

    def set_of_tenants(self, declared: Declared, details: Mapping[tuple[str, str], str]) -> None:
        """As `set`, by tenant and subject."""
        with self._lock:
            gone = [key[1:] for key in self._raised if key[0] == declared.code and key[1:] not in details]
        for tenant, subject in gone:
            self.clear(declared, subject, tenant)
        for (tenant, subject), detail in details.items():
            self.raise_(declared, subject, detail, tenant)

    def raised(self) -> frozenset[Declared]:
        """The kinds that are raised, visible or not yet."""
        with self._lock:
            return frozenset(raised.declared for raised in self._raised.values())

    def report(self, tenant: str | None = None) -> HealthReport:
        """The findings that are visible now, worst first, then oldest first.

        tenant: whom it is for: of what is another's it is told that there is such a finding, once a kind.
        """
        now = self._clock()
        with self._lock:
            raised = [one for one in self._raised.values() if one.visible_at_seconds <= now]
        visible = list(_shown_to(tenant, raised))
        visible.sort(key=lambda finding: (-finding.severity.value, finding.since, finding.code, finding.subject))
        worst = visible[0].severity if visible else Severity.OK
        return HealthReport(worst, tuple(visible))

    async def watch(self, tenant: str | None = None) -> AsyncIterator[HealthReport]:
        """The present report, then each one that differs; what changes while nobody looks is told as one change.

        tenant: as in `report`.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the watcher's loop has closed
                loop.call_soon_threadsafe(changed.set)

        with self._lock:
            self._watchers.add(wake)
        try:
            last = None
            while True:
                changed.clear()
                report = self.report(tenant)
                if report != last:
                    last = report
                    yield report
                await self._wait(changed)
        finally:
            with self._lock:
                self._watchers.discard(wake)

    async def watch_host(self, data_dir: Path, every_seconds: float = WATCH_HOST_SECONDS) -> None:
        """Sample the machine until cancelled, and raise and clear what that gives. A failed sample changes nothing."""
        while True:
            try:
                taken = await asyncio.to_thread(host.sample, data_dir)
            except OSError as error:
                log.warning("health.no_sample", error=error.strerror)
            else:
                for declared, details in host.judge(taken, str(data_dir), self.raised()).items():
                    self.set(declared, details)
            await asyncio.sleep(every_seconds)

    async def _wait(self, changed: asyncio.Event) -> None:
        """Until something changed or the next raised finding becomes visible."""
        now = self._clock()
        with self._lock:
            due = [r.visible_at_seconds - now for r in self._raised.values() if r.visible_at_seconds > now]
        try:
            await asyncio.wait_for(changed.wait(), min(due, default=None))
        except TimeoutError:
            return

    def _changed(self) -> None:
        with self._lock:
            watchers = tuple(self._watchers)
        for wake in watchers:
            wake()


def _shown_to(tenant: str | None, raised: Iterable[Raised]) -> Iterator[Finding]:
    """tenant: None for who may see all of it."""
    of_others: dict[Declared, Finding] = {}
    for one in raised:
        finding, declared = one.finding, one.declared
        if tenant is None or finding.tenant in ("", tenant):
            yield finding
        elif declared not in of_others or finding.since < of_others[declared].since:
            title = declared.title.format(subject=declared.of_others)
            of_others[declared] = replace(finding, subject="", title=title, detail="", tenant="")
    yield from of_others.values()


def _raise(
    declared: Declared, tenant: str, subject: str, detail: str, old: Raised | None, now_seconds: float
) -> Raised:
    finding = Finding(
        code=declared.code,
        severity=declared.severity,
        subject=subject,
        title=declared.title.format(subject=subject),
        remedy=declared.remedy,
        since=old.finding.since if old else datetime.now(UTC),
        detail=detail,
        impacts_serving=declared.impacts_serving,
        tenant=tenant,
    )
    return Raised(declared, finding, old.visible_at_seconds if old else now_seconds + declared.visible_after_seconds)
