"""What a watch hands on: taken without an operator, as it was when it was whole, and not again once it was deleted."""

from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from appliance.errors import DiskFull, DocumentRefused, NotFound
from appliance.ingest.sealed_log import SealedLog
from appliance.ingest.sources.found import Found
from appliance.types import (
    Ingestion,
    IngestionState,
    Source,
    SourceState,
    Watch,
)
from tests.ingest.bench import (
    EVERYBODY,
    LIMITS,
    OPERATOR,
    STICK,
    Bench,
    ends,
)

WATCH = Watch("handbook", EVERYBODY, approve=True)


async def take(bench: Bench, watch: Watch = WATCH, only: str = "") -> Ingestion:
    """What a watcher hands on; when it has come to its end."""
    found = [Found(name, len(text)) for name, text in sorted(bench.stick.files.items()) if only in name]
    await bench.ingest.take("clinic", Source("usb", STICK, SourceState.READY, watch=watch), watch, found)
    return await bench.wait(bench.ingest.list("clinic")[0])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_a_watch_does_not_bring_back_what_was_deleted_and_an_operator_does(bench: Bench) -> None:
    bench.write(a__txt="One.", b__txt="Two.")
    done = await take(bench)
    assert (done.operator, done.approver, bench.titles()) == ("policy", "policy", ["a.txt", "b.txt"])
    [first, _] = bench.library.documents("handbook", EVERYBODY)
    bench.library.delete("handbook", first.id, EVERYBODY)
    again = await take(bench)
    assert ends(bench.files(again)) == {"a.txt": "duplicate DELETED_BEFORE", "b.txt": "duplicate"}
    _, files = await bench.run()
    assert ends(files)["a.txt"] == "committed"


async def test_a_watch_takes_a_file_that_is_put_back_to_what_it_was(bench: Bench) -> None:
    for text in ("One.", "Two.", "One."):
        bench.write(a__txt=text)
        done = await take(bench)
        assert ends(bench.files(done)) == {"a.txt": "committed"}


async def test_what_was_deleted_is_remembered_after_the_ingestion_is_forgotten(tmp_path: Path) -> None:
    bench = Bench(tmp_path, config=replace(LIMITS, ingestions_kept=1))
    bench.write(a__txt="One.")
    first, _ = await bench.run()
    [stored] = bench.library.documents("handbook", EVERYBODY)
    bench.library.delete("handbook", stored.id, EVERYBODY)
    for _ in range(2):
        done = await take(bench)
    with pytest.raises(NotFound):
        bench.ingest.get("clinic", first.id)
    assert ends(bench.files(done)) == {"a.txt": "duplicate DELETED_BEFORE"}


async def test_a_watch_without_approval_waits_for_an_operator(bench: Bench) -> None:
    bench.write(a__txt="One.")
    waiting = await take(bench, Watch("handbook", EVERYBODY))
    assert (waiting.state, waiting.approver) == (IngestionState.WAITING, "")


async def test_a_watch_takes_the_files_that_are_whole_and_no_others(bench: Bench) -> None:
    bench.write(a__txt="One.", b__txt="Two.")
    done = await take(bench, only="a.txt")
    assert ends(bench.files(done)) == {"a.txt": "committed"}


async def test_a_watch_of_before_a_second_person_was_asked_for_approves_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, config=replace(LIMITS, ingest_approval="second"))
    bench.write(a__txt="One.")
    waiting = await take(bench, replace(WATCH, approve=True))
    assert (waiting.state, waiting.approver, bench.titles()) == (IngestionState.WAITING, "", [])


async def test_what_a_watch_found_is_begun_whole_or_not_at_all(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that dies half way would list all that is in the place, and what is half written with it."""
    bench.write(a__txt="Whole.", half__txt="Hal")
    real = SealedLog.append

    def dies(self: SealedLog, record: bytes) -> None:
        raise DiskFull("No space is left.")

    monkeypatch.setattr(SealedLog, "append", dies)
    with suppress(DiskFull):
        await bench.ingest.take(
            "clinic", Source("usb", STICK, SourceState.READY, watch=WATCH), WATCH, [Found("a.txt", 6)]
        )
    monkeypatch.setattr(SealedLog, "append", real)
    await bench.restart_daemon()
    for one in bench.ingest.list("clinic"):
        await bench.wait(one)
    assert set(bench.titles()) <= {"a.txt"}


# --- the file that is copied is the one that was whole ---------------------------------------------------------------


async def hand_on(bench: Bench, found: Found) -> Ingestion:
    """One file as a watch saw it whole; when the ingestion of it has come to its end."""
    await bench.ingest.take("clinic", Source("usb", STICK, SourceState.READY, watch=WATCH), WATCH, [found])
    return await bench.wait(bench.ingest.list("clinic")[0])


async def test_a_file_that_is_written_to_after_it_was_whole_is_left_and_taken_once_it_is_whole_again(
    bench: Bench,
) -> None:
    bench.write(a__txt="Half of wh")
    left = await hand_on(bench, Found("a.txt", 4))
    assert (left.state, ends(bench.files(left))) == (IngestionState.SUCCEEDED, {"a.txt": "left WRITTEN_TO"})
    assert "Its watch takes it" in bench.files(left)["a.txt"].remedy
    assert (bench.titles(), bench.held(), bench.stick.copied) == ([], [], [])
    bench.write(a__txt="Half of what is whole.")
    assert ends(bench.files(await hand_on(bench, Found("a.txt", 22)))) == {"a.txt": "committed"}
    [document] = bench.library.documents("handbook", EVERYBODY)
    assert bench.library.pages("handbook", document.id, EVERYBODY) == ("Half of what is whole.",)


async def test_a_file_whose_bytes_changed_and_whose_times_did_not_is_left_too(bench: Bench) -> None:
    bench.write(a__txt="After.")
    found = Found("a.txt", 6, sha256=sha256(b"Before").hexdigest())
    left = await hand_on(bench, found)
    assert (ends(bench.files(left)), bench.titles(), bench.held()) == ({"a.txt": "left WRITTEN_TO"}, [], [])
    same = replace(found, sha256=sha256(b"After.").hexdigest())
    assert ends(bench.files(await hand_on(bench, same))) == {"a.txt": "committed"}


async def test_a_file_that_changes_while_it_is_copied_is_left_by_a_watch_and_refused_to_an_operator(
    bench: Bench,
) -> None:
    def change(name: str) -> None:
        raise DocumentRefused("CHANGED", "It was changed while it was read.")

    bench.write(a__txt="One.")
    bench.stick.before_copy = change
    assert ends(bench.files(await hand_on(bench, Found("a.txt", 4)))) == {"a.txt": "left WRITTEN_TO"}
    _, files = await bench.run()
    assert ends(files) == {"a.txt": "quarantined CHANGED"}


async def test_what_waited_for_an_operator_is_left_where_it_was_written_to_meanwhile_also_after_a_restart(
    bench: Bench,
) -> None:
    bench.write(a__txt="One.", b__txt="Two.")
    waiting = await take(bench, Watch("handbook", EVERYBODY))
    bench.write(a__txt="One, and more.")
    await bench.restart_daemon()
    await bench.ingest.approve(OPERATOR, waiting.name)
    done = await bench.wait(waiting)
    assert ends(bench.files(done)) == {"a.txt": "left WRITTEN_TO", "b.txt": "committed"}
    assert bench.titles() == ["b.txt"]
