"""A file that comes in pieces: durable as it comes, gone on with where it broke off, nobody else's."""

import asyncio
import hashlib
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.errors import InvalidArgument, NotFound, QueueFull, StoreDamaged, UploadTooLarge
from appliance.ingest import uploads
from appliance.ingest.sealed_log import SealedLog
from appliance.types import FileState, IngestionState, SourceKind
from tests.ingest.bench import EVERYBODY, LIMITS, OPERATOR, RIVAL, SECOND, Bench, Gate, ends, until

TEXT = b"Badges expire after 90 days."


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


async def begin(bench: Bench, path: str = "rules.txt") -> str:
    return await bench.ingest.begin_upload(OPERATOR, path, "handbook", EVERYBODY)


async def test_a_file_comes_in_pieces_and_is_taken(bench: Bench) -> None:
    upload = await begin(bench)
    assert await bench.ingest.append(OPERATOR, upload, 0, TEXT[:10]) == 10
    assert await bench.ingest.append(OPERATOR, upload, 10, TEXT[10:]) == len(TEXT)
    done = await bench.wait(await bench.ingest.finish(OPERATOR, upload, sha256(TEXT).upper()))
    assert (done.state, done.operator, done.approver) == (IngestionState.SUCCEEDED, "olga", "olga")
    assert (done.provenance.kind, done.size_bytes) == (SourceKind.UPLOAD, len(TEXT))
    [document] = bench.library.documents("handbook", EVERYBODY)
    assert (document.title, document.source) == ("rules.txt", "upload://olga/rules.txt")
    assert document.sha256 == sha256(TEXT)
    with pytest.raises(NotFound):
        bench.ingest.upload_size(OPERATOR, upload)
    assert (bench.held(), TEXT in bench.bytes_on_disk()) == ([], False)


async def test_a_whole_file_is_taken_also_where_what_came_of_it_cannot_be_destroyed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begin(bench)
    await bench.ingest.append(OPERATOR, upload, 0, TEXT)

    def stuck(tenant: str, upload: str) -> None:
        raise StoreDamaged("It cannot be destroyed.")

    monkeypatch.setattr(bench.ingest._uploads, "drop", stuck)
    done = await bench.wait(await bench.ingest.finish(OPERATOR, upload, sha256(TEXT)))
    assert ends(bench.files(done)) == {"rules.txt": "committed"}


async def test_an_upload_goes_on_where_it_broke_off_also_after_a_restart(bench: Bench) -> None:
    upload = await begin(bench)
    await bench.ingest.append(OPERATOR, upload, 0, TEXT[:10])
    await bench.restart_daemon()
    assert bench.ingest.upload_size(OPERATOR, upload) == 10
    assert await bench.ingest.append(OPERATOR, upload, 4, TEXT[4:20]) == 20, "what is there is passed over"
    assert await bench.ingest.append(OPERATOR, upload, 0, TEXT[:5]) == 20
    assert await bench.ingest.append(OPERATOR, upload, 20, TEXT[20:]) == len(TEXT)
    done = await bench.wait(await bench.ingest.finish(OPERATOR, upload, sha256(TEXT)))
    assert ends(bench.files(done)) == {"rules.txt": "committed"}


async def test_no_byte_of_an_upload_is_on_the_disk_in_the_clear(bench: Bench) -> None:
    upload = await begin(bench, "secret-name.txt")
    await bench.ingest.append(OPERATOR, upload, 0, TEXT)
    assert TEXT not in bench.bytes_on_disk()
    assert b"secret-name" not in bench.bytes_on_disk()


async def test_a_gap_is_refused_and_named(bench: Bench) -> None:
    upload = await begin(bench)
    await bench.ingest.append(OPERATOR, upload, 0, b"abc")
    for offset in (4, -1):
        with pytest.raises(InvalidArgument, match=r"offset: .* 3"):
            await bench.ingest.append(OPERATOR, upload, offset, b"d")
    assert bench.ingest.upload_size(OPERATOR, upload) == 3


async def test_what_grows_too_large_is_refused_and_nothing_of_it_stays(bench: Bench) -> None:
    upload = await begin(bench)
    await bench.ingest.append(OPERATOR, upload, 0, bytes(1 << 20))
    with pytest.raises(UploadTooLarge, match=r"at most 1 MiB here \(option `document_max_mib`\)") as refused:
        await bench.ingest.append(OPERATOR, upload, 1 << 20, b"x")
    assert refused.value.remedy.startswith("Split the file")
    assert bench.ingest.uploads("clinic") == ()


async def test_what_says_that_it_will_be_too_large_is_not_begun(bench: Bench) -> None:
    with pytest.raises(UploadTooLarge):
        await bench.ingest.begin_upload(OPERATOR, "a.txt", "handbook", EVERYBODY, (1 << 20) + 1)
    assert bench.ingest.uploads("clinic") == ()
    assert await bench.ingest.begin_upload(OPERATOR, "a.txt", "handbook", EVERYBODY, 1 << 20)


async def test_another_file_than_was_promised_is_dropped(bench: Bench) -> None:
    upload = await begin(bench)
    await bench.ingest.append(OPERATOR, upload, 0, TEXT)
    with pytest.raises(InvalidArgument, match="sha256"):
        await bench.ingest.finish(OPERATOR, upload, sha256(b"other"))
    with pytest.raises(NotFound):
        bench.ingest.upload_size(OPERATOR, upload)
    assert bench.ingest.list("clinic") == ()


@pytest.mark.parametrize("other", [SECOND, RIVAL])
async def test_somebody_elses_upload_is_not_there(bench: Bench, other: object) -> None:
    upload = await begin(bench)
    caller = SECOND if other is SECOND else RIVAL
    for name in (upload, "0" * 32, "../" + upload, "/etc/passwd", ""):
        with pytest.raises(NotFound):
            bench.ingest.upload_size(caller, name)
    with pytest.raises(NotFound):
        await bench.ingest.append(caller, upload, 0, b"x")
    with pytest.raises(NotFound):
        await bench.ingest.finish(caller, upload, sha256(b""))
    assert bench.ingest.upload_size(OPERATOR, upload) == 0


async def test_uploads_that_nobody_goes_on_with_make_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_OPEN", 2)
    old, _ = await begin(bench), await begin(bench)
    with pytest.raises(QueueFull, match="`appliance ingest uploads list`"):
        await begin(bench)
    [path] = (bench.config.data_dir / "ingest").glob(f"clinic/uploads/{old}")
    os.utime(path, (0, 0))
    await begin(bench)
    with pytest.raises(NotFound):
        bench.ingest.upload_size(OPERATOR, old)


async def test_where_a_second_person_must_approve_an_upload_waits(tmp_path: Path) -> None:
    bench = Bench(tmp_path, config=replace(LIMITS, ingest_approval="second"))
    upload = await begin(bench)
    await bench.ingest.append(OPERATOR, upload, 0, TEXT)
    waiting = await bench.ingest.finish(OPERATOR, upload, sha256(TEXT))
    assert (waiting.state, bench.titles()) == (IngestionState.WAITING, [])
    await bench.ingest.approve(SECOND, waiting.name)
    assert (await bench.wait(waiting)).counts == {FileState.COMMITTED: 1}


@pytest.mark.parametrize("path", ["", "/", "//"])
async def test_an_upload_must_have_a_name(bench: Bench, path: str) -> None:
    with pytest.raises(InvalidArgument, match="path"):
        await begin(bench, path)


async def test_a_file_of_an_unknown_type_is_refused_and_said(bench: Bench) -> None:
    upload = await begin(bench, "a/b/\u202etool.exe")
    await bench.ingest.append(OPERATOR, upload, 0, b"MZ")
    done = await bench.wait(await bench.ingest.finish(OPERATOR, upload, sha256(b"MZ")))
    assert ends(bench.files(done)) == {"a/b/\\u202etool.exe": "quarantined UNKNOWN_TYPE"}


async def test_a_hash_that_is_none_drops_no_upload(bench: Bench) -> None:
    upload = await begin(bench)
    await bench.ingest.append(OPERATOR, upload, 0, b"Rules.")
    with pytest.raises(InvalidArgument, match="sha256"):
        await bench.ingest.finish(OPERATOR, upload, "abc")
    assert bench.ingest.upload_size(OPERATOR, upload) == 6


async def test_a_caller_that_goes_away_while_his_upload_is_finished_has_it_taken(bench: Bench) -> None:
    upload = await begin(bench)
    await bench.ingest.append(OPERATOR, upload, 0, b"Rules.")
    finishing = asyncio.create_task(bench.ingest.finish(OPERATOR, upload, sha256(b"Rules.")))
    await asyncio.sleep(0)
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    [one] = bench.ingest.list("clinic")
    assert (await bench.wait(one)).state is IngestionState.SUCCEEDED
    assert bench.titles() == ["rules.txt"]


async def test_one_slow_disk_write_of_an_upload_holds_up_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await begin(bench, "a.txt"), await begin(bench, "b.txt")
    gate, real = Gate(), SealedLog.append

    def slow(log: SealedLog, record: bytes) -> None:
        if log.path.name == first:
            gate()
        real(log, record)

    monkeypatch.setattr(SealedLog, "append", slow)
    held_up = asyncio.create_task(bench.ingest.append(OPERATOR, first, 0, b"a"))
    await until(gate.reached.is_set)
    assert await bench.ingest.append(OPERATOR, second, 0, b"b") == 1
    gate.open()
    assert await held_up == 1


async def test_uploads_that_nobody_goes_on_with_are_gone_at_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begin(bench)
    path = bench.config.data_dir / "ingest" / "clinic" / "uploads" / upload
    os.utime(path, (1, 1))
    await bench.restart_daemon()
    assert not path.exists()


# --- listed and cancelled


def path_of(bench: Bench, upload: str) -> Path:
    return bench.config.data_dir / "ingest" / "clinic" / "uploads" / upload


async def test_uploads_are_listed_to_their_tenant_with_who_and_how_much_also_after_a_restart(bench: Bench) -> None:
    before = datetime.now(UTC)
    first = await begin(bench, "docs/a.txt")
    second = await bench.ingest.begin_upload(SECOND, "b.txt", "board", EVERYBODY)
    await bench.ingest.append(OPERATOR, first, 0, TEXT)
    listed = bench.ingest.uploads("clinic")
    assert [(one.id, one.path, one.collection, one.user, one.size_bytes) for one in listed] == [
        (first, "docs/a.txt", "handbook", OPERATOR.user, len(TEXT)),
        (second, "b.txt", "board", SECOND.user, 0),
    ]
    assert before <= listed[0].create_time <= listed[1].create_time <= datetime.now(UTC)
    assert bench.ingest.uploads(RIVAL.tenant) == ()
    os.utime(path_of(bench, first), (time.time() - 60, time.time() - 60))
    await bench.restart_daemon()
    again = bench.ingest.uploads("clinic")
    assert [replace(one, update_time=before) for one in again] == [replace(one, update_time=before) for one in listed]
    assert again[0].update_time < before


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_cancelled_upload_leaves_nothing_whoever_of_the_tenant_cancels_it(
    bench: Bench, restarted: bool
) -> None:
    mine, other = await begin(bench), await begin(bench, "other.txt")
    await bench.ingest.append(OPERATOR, mine, 0, TEXT)
    if restarted:
        await bench.restart_daemon()
    await bench.ingest.cancel_upload(SECOND, mine)
    assert not path_of(bench, mine).exists()
    assert [one.id for one in bench.ingest.uploads("clinic")] == [other]
    for call in (
        bench.ingest.append(OPERATOR, mine, len(TEXT), b"more"),
        bench.ingest.finish(OPERATOR, mine, sha256(TEXT)),
        bench.ingest.cancel_upload(OPERATOR, mine),
    ):
        with pytest.raises(NotFound):
            await call


async def test_an_upload_of_another_tenant_is_not_cancelled_nor_a_file_that_is_none(bench: Bench) -> None:
    upload = await begin(bench)
    for caller, name in ((RIVAL, upload), (OPERATOR, "0" * 32), (OPERATOR, f"../uploads/{upload}"), (OPERATOR, "")):
        with pytest.raises(NotFound):
            await bench.ingest.cancel_upload(caller, name)
    assert bench.ingest.upload_size(OPERATOR, upload) == 0


async def test_a_damaged_upload_is_listed_and_can_be_cancelled(bench: Bench) -> None:
    upload = await begin(bench)
    path_of(bench, upload).write_bytes(b"noise" * 100)
    await bench.restart_daemon()
    [one] = bench.ingest.uploads("clinic")
    assert (one.id, one.path, one.user, one.size_bytes) == (upload, "", "", 500)
    await bench.ingest.cancel_upload(OPERATOR, upload)
    assert bench.ingest.uploads("clinic") == ()


async def test_a_piece_that_waited_while_its_upload_was_cancelled_is_told_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begin(bench)
    found = bench.ingest._uploads._find(OPERATOR, upload)
    await bench.ingest.cancel_upload(OPERATOR, upload)
    monkeypatch.setattr(uploads.Uploads, "_find", lambda *_: found)
    with pytest.raises(NotFound):
        await bench.ingest.append(OPERATOR, upload, 0, b"a")
    with pytest.raises(NotFound):
        await bench.ingest.finish(OPERATOR, upload, sha256(b""))
    assert not path_of(bench, upload).exists()


async def test_a_cancellation_waits_for_what_is_being_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await begin(bench)
    gate, real = Gate(), SealedLog.append

    def slow(log: SealedLog, record: bytes) -> None:
        gate()
        real(log, record)

    monkeypatch.setattr(SealedLog, "append", slow)
    writes = asyncio.create_task(bench.ingest.append(OPERATOR, upload, 0, b"a"))
    await until(gate.reached.is_set)
    cancels = asyncio.create_task(bench.ingest.cancel_upload(SECOND, upload))
    gate.open()
    assert await writes == 1
    await cancels
    assert not path_of(bench, upload).exists()
