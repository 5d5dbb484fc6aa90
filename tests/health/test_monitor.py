import asyncio
import string
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from appliance.health.findings import (
    CATALOGUE,
    MODEL_FAILED,
    MODEL_REFUSED,
    MODEL_RESTARTING,
    SANDBOX_UNAVAILABLE,
    STORE_DAMAGED,
    Declared,
)
from appliance.health.monitor import Monitor
from appliance.types import HealthReport, Severity

OK = HealthReport(Severity.OK)
SOON = Declared("SOON", Severity.WARNING, "{subject} will be seen", "Wait.", visible_after_seconds=0.05)


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def codes(report: HealthReport) -> list[str]:
    return [finding.code for finding in report.findings]


async def following(reports: AsyncIterator[HealthReport]) -> HealthReport:
    async with asyncio.timeout(10):
        return await anext(reports)


@pytest.mark.parametrize("declared", CATALOGUE.values(), ids=lambda declared: declared.code)
def test_every_line_of_the_catalogue_can_be_shown(declared: Declared) -> None:
    assert CATALOGUE[declared.code] is declared
    assert declared.code == declared.code.upper()
    assert {name for _, name, _, _ in string.Formatter().parse(declared.title) if name} <= {"subject"}
    assert declared.remedy.endswith(".")
    assert not declared.title.endswith(".")
    assert declared.severity is not Severity.OK
    assert declared.visible_after_seconds >= 0


def test_a_box_with_nothing_to_say_is_well() -> None:
    assert Monitor().report() == OK


def test_a_finding_carries_what_its_line_and_the_moment_say() -> None:
    monitor = Monitor()
    monitor.raise_(MODEL_FAILED, "models/tiny", "It died 5 times.")
    [finding] = monitor.report().findings
    assert (finding.title, finding.detail) == ("models/tiny does not run and is not tried again", "It died 5 times.")
    assert (finding.remedy, finding.impacts_serving) == (MODEL_FAILED.remedy, True)


def test_health_is_the_worst_finding_and_the_worst_comes_first() -> None:
    monitor = Monitor()
    monitor.raise_(MODEL_REFUSED, "models/a")
    assert monitor.report().severity is Severity.WARNING
    monitor.raise_(SANDBOX_UNAVAILABLE)
    assert monitor.report().severity is Severity.CRITICAL
    assert codes(monitor.report()) == ["SANDBOX_UNAVAILABLE", "MODEL_REFUSED"]
    monitor.clear(SANDBOX_UNAVAILABLE)
    assert monitor.report().severity is Severity.WARNING
    monitor.clear(MODEL_REFUSED, "models/a")
    monitor.clear(MODEL_REFUSED, "models/a")
    assert monitor.report() == OK


def test_a_finding_shows_once_it_has_lasted_and_starts_anew_after_it_was_cleared() -> None:
    clock = Clock()
    monitor = Monitor(clock)
    monitor.raise_(MODEL_RESTARTING, "models/a")
    clock.seconds += 4.9
    assert monitor.report() == OK
    monitor.raise_(MODEL_RESTARTING, "models/a", "said again")
    clock.seconds += 0.1
    assert [finding.detail for finding in monitor.report().findings] == ["said again"]
    monitor.clear(MODEL_RESTARTING, "models/a")
    monitor.raise_(MODEL_RESTARTING, "models/a")
    assert monitor.report() == OK


def test_saying_it_again_renews_the_detail_and_keeps_the_age() -> None:
    monitor = Monitor()
    monitor.raise_(MODEL_REFUSED, "models/a", "first")
    [first] = monitor.report().findings
    monitor.raise_(MODEL_REFUSED, "models/a", "second")
    [second] = monitor.report().findings
    assert (second.since, second.detail) == (first.since, "second")


def test_setting_a_kind_leaves_exactly_its_subjects() -> None:
    monitor = Monitor()
    monitor.raise_(SANDBOX_UNAVAILABLE)
    monitor.set(MODEL_REFUSED, {"models/a": "1", "models/b": "2"})
    monitor.set(MODEL_REFUSED, {"models/b": "3", "models/c": "4"})
    found = {(finding.subject, finding.detail) for finding in monitor.report().findings}
    assert found == {("", ""), ("models/b", "3"), ("models/c", "4")}
    monitor.set(MODEL_REFUSED, {})
    assert monitor.raised() == {SANDBOX_UNAVAILABLE}


def test_what_is_a_tenants_own_is_named_to_that_tenant_alone() -> None:
    monitor = Monitor()
    places = {
        ("acme", "collections/board"): "/data/acme",
        ("acme", "collections/pay"): "",
        ("rival", "collections/x"): "/y",
    }
    monitor.set_of_tenants(STORE_DAMAGED, places)
    monitor.raise_(MODEL_FAILED, "models/tiny", "It died 5 times.")
    subjects = {
        tenant: [finding.subject for finding in monitor.report(tenant).findings]
        for tenant in ("acme", "rival", "third")
    }
    assert subjects == {
        "acme": ["collections/board", "collections/pay", "", "models/tiny"],
        "rival": ["", "collections/x", "models/tiny"],
        "third": ["", "models/tiny"],
    }
    report = monitor.report("third")
    assert report.severity is Severity.CRITICAL
    assert report.findings[0].title == "A collection of another tenant is damaged on disk and is not opened"
    assert not {"acme", "rival", "board"} & set(str(report).replace("/", " ").replace("'", " ").split())
    assert len(monitor.report().findings) == 4
    monitor.set_of_tenants(STORE_DAMAGED, {("rival", "collections/x"): "/y"})
    assert [finding.code for finding in monitor.report("acme").findings] == ["STORE_DAMAGED", "MODEL_FAILED"]
    monitor.set_of_tenants(STORE_DAMAGED, {})
    assert codes(monitor.report("third")) == ["MODEL_FAILED"]


def test_collections_of_one_name_in_two_tenants_are_two_findings() -> None:
    monitor = Monitor()
    monitor.set_of_tenants(STORE_DAMAGED, {("acme", "collections/a"): "1", ("rival", "collections/a"): "2"})
    assert [(one.tenant, one.detail) for one in monitor.report().findings] == [("acme", "1"), ("rival", "2")]
    monitor.clear(STORE_DAMAGED, "collections/a", "acme")
    assert [one.tenant for one in monitor.report().findings] == ["rival"]


async def test_a_watcher_of_a_tenant_sees_what_its_report_says() -> None:
    monitor = Monitor()
    async with aclosing(monitor.watch("acme")) as reports:  # type: ignore[type-var]
        assert await following(reports) == OK
        monitor.raise_(STORE_DAMAGED, "collections/x", "/y", "rival")
        assert [finding.subject for finding in (await following(reports)).findings] == [""]


async def test_a_watcher_sees_the_present_state_and_then_each_change() -> None:
    monitor = Monitor()
    monitor.raise_(MODEL_REFUSED, "models/a")
    async with aclosing(monitor.watch()) as reports:  # type: ignore[type-var]
        assert codes(await following(reports)) == ["MODEL_REFUSED"]
        monitor.clear(MODEL_REFUSED, "models/a")
        assert await following(reports) == OK


async def test_changes_that_nobody_looked_at_are_told_as_one() -> None:
    monitor = Monitor()
    async with aclosing(monitor.watch()) as reports:  # type: ignore[type-var]
        assert await following(reports) == OK
        for number in range(100):
            monitor.raise_(MODEL_REFUSED, f"models/{number}")
        assert len((await following(reports)).findings) == 100


async def test_what_comes_and_goes_between_two_looks_is_no_news() -> None:
    monitor = Monitor()
    async with aclosing(monitor.watch()) as reports:  # type: ignore[type-var]
        assert await following(reports) == OK
        monitor.raise_(MODEL_REFUSED, "models/a")
        monitor.clear(MODEL_REFUSED, "models/a")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(reports)


async def test_a_watcher_is_told_when_a_finding_becomes_visible_by_itself() -> None:
    monitor = Monitor()
    async with aclosing(monitor.watch()) as reports:  # type: ignore[type-var]
        assert await following(reports) == OK
        monitor.raise_(SOON, "it")
        assert codes(await following(reports)) == ["SOON"]


async def test_a_change_from_another_thread_wakes_the_watcher() -> None:
    monitor = Monitor()
    async with aclosing(monitor.watch()) as reports:  # type: ignore[type-var]
        assert await following(reports) == OK
        threading.Timer(0.01, monitor.raise_, [MODEL_FAILED, "models/a"]).start()
        assert codes(await following(reports)) == ["MODEL_FAILED"]


async def test_a_watcher_that_left_is_forgotten() -> None:
    monitor = Monitor()
    reports = monitor.watch()
    await following(reports)
    await reports.aclose()  # type: ignore[attr-defined]
    monitor.raise_(MODEL_FAILED, "models/a")
    assert codes(monitor.report()) == ["MODEL_FAILED"]
