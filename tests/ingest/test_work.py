"""What becomes of files: from source to library, through quarantine, scanner and parser."""

import os
from pathlib import Path

import pytest

from appliance.errors import DiskFull, DocumentRefused, SandboxUnavailable, StoreDamaged
from appliance.ingest.commit import MAX_DEPTH
from appliance.ingest.judge import PIPELINE, STORED_FOR_OTHERS
from appliance.ingest.refused import MAX_LISTED
from appliance.ingest.work import BATCH_FILES, COPIES
from appliance.types import (
    FileOutcome,
    FileState,
    IngestionState,
    JobState,
    NewDocument,
    Principal,
    Role,
)
from tests.ingest.bench import (
    EVERYBODY,
    OPERATOR,
    RIVAL,
    Bench,
    GatedExtractor,
    NameScanner,
    PlainExtractor,
    ends,
    memfds,
    until,
)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- outcomes --------------------------------------------------------------------------------------------------------


async def test_every_file_ends_as_committed_duplicate_or_quarantined(bench: Bench) -> None:
    bench.write(a__txt="One.", b__md="# Two", c__txt="One.", d__exe="MZ", e__txt="no text")
    bench.stick.files["f.txt"] = bytes((1 << 20) + 1)
    bench.stick.refusals["g.txt"] = DocumentRefused("LINK", "It is a link.")
    done, files = await bench.run()
    assert ends(files) == {
        "a.txt": "committed",
        "b.md": "committed",
        "c.txt": "duplicate",
        "d.exe": "quarantined UNKNOWN_TYPE",
        "e.txt": "quarantined EMPTY",
        "f.txt": "quarantined TOO_LARGE",
        "g.txt": "quarantined LINK",
    }
    assert done.state is IngestionState.SUCCEEDED
    assert done.counts == {FileState.COMMITTED: 2, FileState.DUPLICATE: 1, FileState.QUARANTINED: 4}
    assert files["c.txt"].document == files["a.txt"].document
    assert all(one.time and one.id and one.ingestion == done.id for one in files.values())
    assert all(one.remedy for one in files.values() if one.reason)
    assert (done.by_format["text"], done.by_format["markdown"]) == (5, 1)
    job = bench.jobs.get(done.job.removeprefix("jobs/"))
    assert (job.state, job.done, job.total, job.unit) == (JobState.SUCCEEDED, 7, 7, "files")


async def test_a_document_knows_where_it_came_from(bench: Bench) -> None:
    bench.write(sub___mail__eml="Hello.\na.txt=One.")
    done, files = await bench.run()
    mail, text = bench.library.documents("handbook", EVERYBODY)
    assert (mail.title, mail.source) == ("sub/mail.eml", "usb://4C530001/ABCD-1234/sub/mail.eml")
    assert mail.pipeline == PIPELINE
    assert mail.metadata == {
        "attachments": 1.0,
        "ingestion": done.name,
        "operator": "olga",
        "approver": "olga",
        "source_kind": "stick",
        "stick_serial": "4C530001",
        "stick_volume": "ABCD-1234",
        "stick_label": "DOCS",
    }
    of_the_stick = {name: value for name, value in mail.metadata.items() if name != "attachments"}
    assert text.metadata == {**of_the_stick, "container": "sub/mail.eml"}
    assert [files[one.title].document for one in (mail, text)] == [mail.name, text.name]


async def test_a_second_run_finds_only_duplicates_and_holds_no_copy(bench: Bench) -> None:
    bench.write(a__txt="One.", b__txt="Two.")
    _, first = await bench.run()
    _, second = await bench.run()
    assert ends(second) == {"a.txt": "duplicate", "b.txt": "duplicate"}
    assert [one.document for one in second.values()] == [one.document for one in first.values()]
    assert bench.titles() == ["a.txt", "b.txt"]
    assert bench.held() == []


async def test_a_changed_file_takes_the_place_of_what_it_was(bench: Bench) -> None:
    bench.write(a__txt="One.", b__txt="Two.")
    await bench.run()
    bench.write(a__txt="One, and more.")
    _, files = await bench.run()
    assert ends(files) == {"a.txt": "committed", "b.txt": "duplicate"}
    assert sorted(bench.titles()) == ["a.txt", "b.txt"]
    pages = bench.library.pages("handbook", files["a.txt"].document.rpartition("/")[2], EVERYBODY)
    assert pages == ("One, and more.",)


async def test_a_changed_file_takes_no_place_of_what_is_for_others(bench: Bench) -> None:
    bench.write(a__txt="Pay.")
    await bench.run()
    before = bench.library.documents("handbook", EVERYBODY)
    bench.write(a__txt="Pay, and more.")
    _, files = await bench.run(readers=frozenset({"role:admin"}))
    assert ends(files) == {"a.txt": "quarantined READERS_DIFFER"}
    assert bench.library.documents("handbook", EVERYBODY) == before


@pytest.mark.parametrize(
    ("caller", "named"),
    [
        (OPERATOR, False),
        (Principal("clinic", "ann", Role.OPERATOR), True),
        (Principal("clinic", "olga", Role.OPERATOR, frozenset({"group:hr"})), True),
        (Principal("clinic", "root", Role.ADMIN), True),
    ],
)
async def test_who_holds_a_copy_of_a_file_learns_nothing_of_a_document_that_is_not_for_him(
    bench: Bench, caller: Principal, named: bool
) -> None:
    bench.write(a__txt="Pay.")
    secret = frozenset({"group:hr", "user:ann"})
    await bench.run(readers=secret)
    [stored] = bench.library.documents("handbook", secret)
    found: list[FileOutcome] = []
    for readers in (EVERYBODY, secret):
        _, files = await bench.run(readers=readers, caller=caller)
        found += files.values()
    assert [one.state for one in found] == [FileState.QUARANTINED, FileState.DUPLICATE]
    assert [one.document for one in found] == [stored.name if named else ""] * 2
    assert found[0].detail == STORED_FOR_OTHERS
    assert not any(reader in found[0].detail for reader in secret)


async def test_what_the_library_finds_no_text_in_is_quarantined_and_the_rest_of_the_batch_is_not(bench: Bench) -> None:
    def refuse(document: NewDocument) -> None:
        if document.title == "b.txt":
            raise DocumentRefused("NO_TEXT", "There are no words in it.")

    bench.library.before_add = refuse
    bench.write(a__txt="One.", b__txt="...", c__txt="Three.")
    done, files = await bench.run()
    assert ends(files) == {"a.txt": "committed", "b.txt": "quarantined NO_TEXT", "c.txt": "committed"}
    assert done.state is IngestionState.SUCCEEDED


async def test_files_are_committed_in_their_order_however_long_each_is_read(bench: Bench) -> None:
    bench.write(**{f"n{number:03}__txt": f"Text {number}." for number in range(BATCH_FILES + 9)})
    await bench.run()
    assert bench.titles() == sorted(bench.stick.files)


async def test_a_file_is_taken_as_it_is_when_it_is_copied_and_a_change_since_the_preview_is_said(bench: Bench) -> None:
    bench.write(a__txt="First.", b__txt="Second.")
    waiting = await bench.wait(await bench.start(approve=False))
    bench.write(a__txt="Changed.")
    del bench.stick.files["b.txt"]
    await bench.ingest.approve(OPERATOR, waiting.name)
    files = bench.files(await bench.wait(waiting))
    assert ends(files) == {"a.txt": "committed", "b.txt": "quarantined VANISHED"}
    assert "preview" in files["a.txt"].detail
    assert bench.library.pages("handbook", f"{1:032x}", EVERYBODY) == ("Changed.",)


async def test_a_file_replaced_while_it_is_worked_on_is_stored_as_it_was_copied(bench: Bench) -> None:
    bench.write(a__txt="First.", b__txt="Second.")
    bench.library.before_add = lambda document: bench.write(a__txt="Swapped.", b__txt="Swapped.")
    await bench.run()
    pages = [bench.library.pages("handbook", f"{number:032x}", EVERYBODY) for number in (1, 2)]
    assert pages == [("First.",), ("Second.",)]


async def test_an_empty_stick_is_no_error(bench: Bench) -> None:
    done, files = await bench.run()
    assert (done.state, dict(done.counts), files) == (IngestionState.SUCCEEDED, {}, {})


async def test_each_end_is_measured(bench: Bench) -> None:
    bench.write(a__txt="One.", b__exe="MZ")
    await bench.run()
    assert sorted((one.path, one.state) for one, _ in bench.measured) == [
        ("a.txt", FileState.COMMITTED),
        ("b.exe", FileState.QUARANTINED),
    ]


# --- containers ------------------------------------------------------------------------------------------------------


async def test_the_members_of_an_archive_are_files_of_their_own_right_after_it(bench: Bench) -> None:
    bench.write(a__zip="x.txt=One.\ny.exe=MZ\nz.txt=!MEMBER_ENCRYPTED", b__txt="Two.")
    done, files = await bench.run()
    assert ends(files) == {
        "a.zip": "unpacked",
        "a.zip/x.txt": "committed",
        "a.zip/y.exe": "quarantined UNKNOWN_TYPE",
        "a.zip/z.txt": "quarantined MEMBER_ENCRYPTED",
        "b.txt": "committed",
    }
    assert list(files) == ["a.zip", "a.zip/x.txt", "a.zip/y.exe", "a.zip/z.txt", "b.txt"]
    assert bench.titles() == ["a.zip/x.txt", "b.txt"]
    assert files["a.zip/z.txt"].detail
    assert done.size_bytes == sum(map(len, bench.stick.files.values())), "a member's bytes are its container's"


async def test_a_mail_is_committed_itself_and_its_attachments_too(bench: Bench) -> None:
    bench.write(a__eml="Hello.\nx.txt=One.")
    _, files = await bench.run()
    assert ends(files) == {"a.eml": "committed", "a.eml/x.txt": "committed"}


async def test_the_attachments_of_a_mail_that_is_known_are_taken_where_they_did_not_come_as_far(bench: Bench) -> None:
    bench.write(a__eml="Hello.\nx.txt=One.\ny.txt=Two.")
    await bench.run()
    first = bench.library.documents("handbook", EVERYBODY)[1]
    bench.library.delete("handbook", first.id, EVERYBODY)
    _, files = await bench.run()
    assert ends(files) == {"a.eml": "duplicate", "a.eml/x.txt": "committed", "a.eml/y.txt": "duplicate"}


async def test_an_archive_that_holds_itself_comes_to_an_end_by_depth(bench: Bench) -> None:
    inner = "x.txt=deep"
    for _ in range(MAX_DEPTH + 2):
        inner = "q.zip=" + inner.replace("\n", "\\n")
    bench.write(q__zip=inner)
    done, files = await bench.run()
    assert done.state is IngestionState.SUCCEEDED
    assert [one.state for one in files.values()] == [FileState.UNPACKED] * (MAX_DEPTH + 1) + [FileState.QUARANTINED]
    assert list(files.values())[-1].reason == "TOO_DEEP"


async def test_a_member_with_a_deceiving_name_is_told_with_that_part_escaped(bench: Bench) -> None:
    bench.write(a__zip="two\u202etxt.txt=One.")
    _, files = await bench.run()
    assert list(files) == ["a.zip", "a.zip/two\\u202etxt.txt"]


# --- scanner ---------------------------------------------------------------------------------------------------------


async def test_malware_is_quarantined_unread(tmp_path: Path) -> None:
    extractor = PlainExtractor()
    bench = Bench(tmp_path, extractor, scanner=NameScanner())
    bench.write(a__txt="EICAR", b__txt="Two.", c__zip="d.txt=EICAR")
    _, files = await bench.run()
    assert ends(files) == {
        "a.txt": "quarantined MALWARE:Eicar-Test",
        "b.txt": "committed",
        "c.zip": "quarantined MALWARE:Eicar-Test",
    }
    assert extractor.names == ["b.txt"]
    assert "purge" in files["a.txt"].remedy


async def test_without_the_scanner_that_is_configured_nothing_is_parsed_and_it_goes_on_when_it_is_back(
    tmp_path: Path,
) -> None:
    extractor, scanner = PlainExtractor(), NameScanner(is_up=False)
    bench = Bench(tmp_path, extractor, scanner=scanner)
    bench.write(a__txt="One.")
    failed, files = await bench.run()
    assert (failed.state, extractor.names) == (IngestionState.FAILED, [])
    assert "clamd" in failed.problem
    assert ends(files) == {"a.txt": "held"}
    scanner.is_up = True
    done = await bench.wait(await bench.ingest.resume(OPERATOR, failed.name))
    assert (done.state, done.problem, bench.titles()) == (IngestionState.SUCCEEDED, "", ["a.txt"])


# --- several at once -------------------------------------------------------------------------------------------------


async def test_equal_files_in_two_ingestions_of_one_source_at_once_are_stored_once(bench: Bench) -> None:
    bench.write(**{f"n{number}__txt": "The same." for number in range(10)})
    begun = [await bench.start() for _ in range(3)]
    assert [(await bench.wait(one)).state for one in begun] == [IngestionState.SUCCEEDED] * 3
    assert bench.titles() == ["n0.txt"]


async def test_equal_files_for_different_readers_in_two_ingestions_at_once_are_never_called_duplicates(
    bench: Bench,
) -> None:
    bench.write(a__txt="Pay.")
    begun = [await bench.start(readers=frozenset({reader})) for reader in ("role:admin", "role:operator")]
    outcomes = [bench.files(await bench.wait(one))["a.txt"] for one in begun]
    assert {(one.state, one.reason) for one in outcomes} == {
        (FileState.COMMITTED, ""),
        (FileState.QUARANTINED, "READERS_DIFFER"),
    }


async def test_many_ingestions_hold_no_more_files_in_memory_than_one(tmp_path: Path) -> None:
    extractor = GatedExtractor()
    bench = Bench(tmp_path, extractor)
    bench.write(**{f"n{number}__txt": f"Text {number}." for number in range(COPIES + 2)})
    begun = [await bench.start() for _ in range(4)]
    await until(lambda: extractor.waiting >= COPIES)
    assert memfds() == COPIES
    extractor.may_read.set()
    assert [(await bench.wait(one)).state for one in begun] == [IngestionState.SUCCEEDED] * 4
    assert memfds() == 0
    assert len(bench.titles()) == COPIES + 2


async def test_two_tenants_take_in_at_once_and_know_nothing_of_each_other(bench: Bench) -> None:
    bench.write(a__txt="One.")
    mine, theirs = await bench.start(), await bench.start(caller=RIVAL)
    assert (await bench.wait(mine)).state is (await bench.wait(theirs, "rival")).state is IngestionState.SUCCEEDED
    assert [one.id for one in bench.ingest.list("clinic")] == [mine.id]
    assert [one.id for one in bench.ingest.list("rival")] == [theirs.id]


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [DiskFull("The disk is full."), StoreDamaged("A segment is damaged.")])
async def test_a_library_that_fails_stops_it_with_the_reason_loses_nothing_and_it_goes_on_later(
    bench: Bench, error: DiskFull | StoreDamaged
) -> None:
    def fail(document: NewDocument) -> None:
        raise error

    bench.write(a__txt="One.", b__txt="Two.", c__exe="MZ")
    bench.library.before_add = fail
    failed, _ = await bench.run()
    assert (failed.state, failed.problem) == (IngestionState.FAILED, f"{error} {error.remedy}")
    assert bench.jobs.get(failed.job.removeprefix("jobs/")).error_reason == error.reason
    assert bench.titles() == []
    bench.library.before_add = lambda document: None
    done = await bench.wait(await bench.ingest.resume(OPERATOR, failed.name))
    assert (done.state, bench.titles()) == (IngestionState.SUCCEEDED, ["a.txt", "b.txt"])
    assert bench.stick.copied == ["a.txt", "b.txt"], "what was held was not copied again"
    assert bench.held() == []


async def test_without_a_sandbox_nothing_is_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path, PlainExtractor(error=SandboxUnavailable("This kernel offers no Landlock.")))
    bench.write(a__txt="One.", b__txt="Two.")
    failed, _ = await bench.run()
    assert failed.state is IngestionState.FAILED
    assert bench.titles() == []


async def test_a_fault_inside_fails_the_ingestion_and_says_no_content(bench: Bench) -> None:
    def crash(document: NewDocument) -> None:
        raise ZeroDivisionError(document.pages[0])

    bench.library.before_add = crash
    bench.write(a__txt="Secret.")
    failed, _ = await bench.run()
    assert failed.state is IngestionState.FAILED
    assert "ZeroDivisionError" in failed.problem
    assert "Secret" not in failed.problem


async def test_what_one_replaces_may_be_deleted_in_that_moment(bench: Bench) -> None:
    bench.write(a__txt="One.")
    await bench.run()
    [older] = bench.library.documents("handbook", EVERYBODY)
    deleted: list[str] = []
    real = bench.library.add_all

    def add_all(collection: str, documents: list[NewDocument], *stop: object) -> object:
        if documents[0].replaces and not deleted:
            deleted.append(documents[0].replaces)
            bench.library.delete("handbook", older.id, EVERYBODY)
            bench.library.get("handbook", older.id, EVERYBODY)  # as the library does: NotFound
        return real(collection, documents)

    bench.library.add_all = add_all  # type: ignore[method-assign,assignment]
    bench.write(a__txt="Two.")
    _, files = await bench.run()
    assert ends(files) == {"a.txt": "committed"}
    assert deleted == [older.id]
    assert len(bench.titles()) == 1


async def test_no_descriptor_is_left_open(bench: Bench) -> None:
    bench.write(**{f"n{number}__txt": f"Text {number}." for number in range(20)}, x__exe="MZ", y__txt="no text")
    before = len(os.listdir("/proc/self/fd"))
    await bench.run()
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(one.closed for one in bench.sources.opened)


async def test_no_byte_of_a_file_and_no_name_is_on_the_disk_in_the_clear_at_any_time(bench: Bench) -> None:
    seen: list[bytes] = []
    bench.library.before_add = lambda document: seen.append(bench.bytes_on_disk())
    bench.write(marked_name__txt="MARKER of plaintext", b__zip="marked_name.txt=MARKER in it\nn.txt=no text")
    await bench.run()
    seen.append(bench.bytes_on_disk())
    assert len(seen) >= 2
    assert all(b"MARKER" not in one and b"marked_name" not in one for one in seen)
    assert [path.name for path in bench.held()] == ["3"], "only the refused one is kept"


async def test_copies_run_ahead_of_the_parser_only_so_far(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.ingest.work.HELD_AHEAD_BYTES", 10)
    most: list[int] = []
    bench.library.before_add = lambda document: most.append(len(bench.held()))
    bench.write(**{f"n{number:02}__txt": f"Number {number:02}" for number in range(40)})
    done, _ = await bench.run()
    assert done.counts[FileState.COMMITTED] == 40
    assert max(most) <= 12, "at most what is ahead, in a batch and being committed"


@pytest.mark.long
async def test_a_hundred_thousand_files_on_a_stick_leave_a_compact_ledger(bench: Bench) -> None:
    count = 100_000
    bench.stick.files = {f"folder/file {number:06}.exe": b"MZ" for number in range(count)}
    done, _ = await bench.run()
    assert done.counts == {FileState.QUARANTINED: count}
    [ledger] = (bench.config.data_dir / "ingest").glob(f"clinic/{done.id}/log")
    assert ledger.stat().st_size < 40 * count
    assert len(bench.ingest.quarantined("clinic")) == MAX_LISTED


async def test_a_document_is_signed_by_whom_the_manifest_names_when_its_bytes_are_taken(bench: Bench) -> None:
    bench.write(a__txt="Badges expire.", b__txt="Doors lock.")
    bench.stick.signers = {"a.txt": "ministry", "b.txt": "ministry"}
    waiting = await bench.wait(await bench.start(approve=False))
    bench.stick.signers = {"b.txt": "ministry"}
    await bench.wait(await bench.ingest.approve(OPERATOR, waiting.name))
    documents = bench.library.documents("handbook", EVERYBODY)
    assert {one.title: one.metadata.get("signer") for one in documents} == {"a.txt": None, "b.txt": "ministry"}
