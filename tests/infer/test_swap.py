import pytest

from appliance.infer.swap import Resident, make_room, overdue

OLD, MIDDLE, NEW = (Resident(name, seconds) for name, seconds in (("old", 1.0), ("middle", 2.0), ("new", 3.0)))
BUSY = Resident("busy", 0.0, requests=1)
PINNED = Resident("pinned", 0.0, pinned=True)


@pytest.mark.parametrize(
    ("needed", "chosen"), [(0, ()), (1, ("old",)), (2, ("old", "middle")), (3, ("old", "middle", "new")), (4, None)]
)
def test_the_least_recently_used_go_first_and_no_more_than_needed(needed: int, chosen: tuple[str, ...] | None) -> None:
    residents = [NEW, OLD, MIDDLE]
    assert make_room(residents, lambda gone: len(gone) >= needed) == chosen


def test_what_runs_or_is_pinned_is_never_chosen() -> None:
    assert make_room([BUSY, PINNED, NEW], lambda gone: len(gone) >= 1) == ("new",)
    assert make_room([BUSY, PINNED], lambda gone: len(gone) >= 1) is None


def test_a_small_model_is_spared_where_a_larger_one_makes_room_alone() -> None:
    sizes = {"old": 1, "middle": 8}
    assert make_room([OLD, MIDDLE], lambda gone: sum(sizes[name] for name in gone) >= 8) == ("middle",)


def test_a_model_is_overdue_when_nobody_asked_for_so_long() -> None:
    residents = [OLD, MIDDLE, NEW, BUSY, PINNED]
    assert overdue(residents, 12.0, 10.0) == ("old", "middle")
    assert overdue(residents, 1e9, 0.0) == ()
