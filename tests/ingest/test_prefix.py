"""People type the first digits of an id."""

from pathlib import Path

import pytest

from appliance.errors import InvalidArgument, NotFound
from appliance.ingest.prefix import whole_id
from tests.ingest.bench import OPERATOR, SECOND, Bench

IDS = ("7f3a00", "7f3a0011", "7f3b22", "9c")


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        ("7f3b", "7f3b22"),
        ("7f3a0011", "7f3a0011"),
        ("7f3a00", "7f3a00"),  # whole, though another begins so
        ("7f3", "7f3"),  # too short to be a beginning
        ("9c", "9c"),
        ("ffff", "ffff"),
        ("7f3b229", "7f3b229"),
        ("", ""),
    ],
)
def test_an_id_is_found_by_four_of_its_digits_that_no_other_begins_with(given: str, whole: str) -> None:
    assert whole_id(given, IDS, "ingestions") == whole


def test_what_several_begin_with_names_them_and_is_none() -> None:
    with pytest.raises(InvalidArgument, match=r"7f3a begins 2 ingestions: 7f3a00, 7f3a0011\. Give more of it\."):
        whole_id("7f3a", IDS, "ingestions")
    with pytest.raises(InvalidArgument, match=r"begins 5 uploads: aaaa0, aaaa1, aaaa2, …\."):
        whole_id("aaaa", [f"aaaa{digit}" for digit in range(5)], "uploads")


async def test_an_ingestion_is_approved_shown_and_cancelled_by_a_beginning_of_its_id(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(a__txt="One.")
    waiting, _ = await bench.run(approve=False)
    short = waiting.id[:4]
    assert bench.ingest.get("clinic", short) == bench.ingest.get("clinic", f"ingestions/{short}") == waiting
    assert [one.path for one in bench.ingest.files("clinic", short)] == ["a.txt"]
    await bench.ingest.approve(OPERATOR, short)
    await bench.wait(waiting)
    assert bench.titles() == ["a.txt"]
    for tenant, name in (("clinic", waiting.id[:3]), ("rival", short), ("clinic", "")):
        with pytest.raises(NotFound):
            bench.ingest.get(tenant, name)


async def test_an_upload_is_cancelled_by_a_beginning_of_its_id(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    upload = await bench.ingest.begin_upload(OPERATOR, "a.txt", "handbook", frozenset({"everyone"}))
    with pytest.raises(NotFound):
        await bench.ingest.cancel_upload(OPERATOR, upload[:3])
    await bench.ingest.cancel_upload(SECOND, upload[:4])
    assert bench.ingest.uploads("clinic") == ()
