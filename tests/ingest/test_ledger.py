"""What an ingestion is, on disk: all of it comes back, in little room, also with very many files."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.errors import KeyUnavailable, StoreDamaged
from appliance.ingest.keys import IngestKeys
from appliance.ingest.ledger import Item, Ledger, Plan, family_order
from appliance.types import FileOutcome, FileState, Ingestion, IngestionState
from appliance.vault import FileKeyring, FileTenantKeys
from tests.ingest.bench import EVERYBODY, OPERATOR, STICK, Bench, ends

NOW = datetime(2026, 11, 21, 12, 0, 30, 123456, tzinfo=UTC)
BEGUN = Ingestion("7f3a", "clinic", "handbook", EVERYBODY, STICK, "olga", IngestionState.SCANNING, NOW)


class Keys:
    def __init__(self, folder: Path) -> None:
        keyring = FileKeyring.open(folder / "keys", protects=folder / "knowledge")
        self.tenants = FileTenantKeys(folder / "keys" / "tenants", keyring)
        if not self.tenants.epochs("clinic"):
            self.tenants.add("clinic")
        self.ingest = IngestKeys(folder / "ingest", keyring, self.tenants)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    keys = Keys(tmp_path)
    keys.ingest.prepare("clinic")
    return keys


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "ingest" / "clinic" / "7f3a"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def new_ledger(tmp_path: Path, keys: Keys) -> Ledger:
    return Ledger.create(folder_of(tmp_path), keys.ingest, BEGUN, Plan("sources/usb", groups=EVERYBODY))


def item(number: int, state: FileState = FileState.FOUND, **fields: object) -> Item:
    path = f"folder/file {number}.txt"
    outcome = FileOutcome(path, state, size_bytes=number, ingestion="7f3a", tenant="clinic", id=f"7f3a-{number}")
    return Item(number, path, replace(outcome, **fields))  # type: ignore[arg-type]


def test_everything_that_is_known_of_a_file_comes_back(tmp_path: Path, keys: Keys) -> None:
    known = Item(
        3,
        "bad\udcff name",
        FileOutcome(
            "bad\\xff name",
            FileState.QUARANTINED,
            "PDF_ENCRYPTED",
            "It has a password.",
            "collections/a/documents/b",
            "ab" * 32,
            7,
            "7f3a",
            time=NOW,
            tenant="clinic",
            id="7f3a-3",
            remedy="Save a copy without its password, and ingest that.",
            format="pdf",
            released=True,
        ),
        container=1,
        depth=2,
        replaced="cd" * 32,
        signer="ministry",
    )
    new_ledger(tmp_path, keys).write([known])
    again = Ledger.open(folder_of(tmp_path), keys.ingest, "clinic")
    assert list(again.items()) == [known]
    assert again.plan == Plan("sources/usb", groups=EVERYBODY)


def test_the_last_word_on_a_file_counts_and_so_do_the_counts(tmp_path: Path, keys: Keys) -> None:
    ledger = new_ledger(tmp_path, keys)
    ledger.write([item(n, format="text") for n in range(4)], listed=True)
    ledger.write([item(1, FileState.COMMITTED, format="text", time=NOW), item(2, FileState.HELD, format="text")])
    now = ledger.write([item(2, FileState.COMMITTED, format="text", time=NOW)], state=IngestionState.RUNNING)
    assert now.counts == {FileState.FOUND: 2, FileState.COMMITTED: 2}
    assert (now.by_format, now.size_bytes) == ({"text": 4}, 6)
    again = Ledger.open(folder_of(tmp_path), keys.ingest, "clinic")
    assert again.ingestion == now
    assert again.plan.listed
    assert [one.outcome.state.value for one in again.items()] == ["found", "committed", "committed", "found"]


def test_one_that_ended_is_told_from_its_first_record_alone(tmp_path: Path, keys: Keys) -> None:
    ledger = new_ledger(tmp_path, keys)
    ledger.write([item(n) for n in range(5000)], listed=True)
    done = ledger.close(
        [item(n, FileState.COMMITTED, time=NOW) for n in range(5000)], state=IngestionState.SUCCEEDED, end_time=NOW
    )
    path = folder_of(tmp_path) / "log"
    raw = path.read_bytes()
    path.write_bytes(raw[:-9] + b"x" + raw[-8:])
    again = Ledger.open(folder_of(tmp_path), keys.ingest, "clinic")
    assert again.ingestion == done
    assert done.counts == {FileState.COMMITTED: 5000}


def test_a_ledger_that_is_unloaded_still_takes_changes(tmp_path: Path, keys: Keys) -> None:
    ledger = new_ledger(tmp_path, keys)
    done = ledger.close([item(0, FileState.QUARANTINED, time=NOW)], state=IngestionState.SUCCEEDED, end_time=NOW)
    ledger.unload()
    assert ledger.ingestion == done
    ledger.write([item(0, FileState.QUARANTINED, time=NOW, released=True)])
    assert Ledger.open(folder_of(tmp_path), keys.ingest, "clinic").items()[0].outcome.released


def test_what_cannot_be_written_has_not_happened(tmp_path: Path, keys: Keys) -> None:
    ledger = new_ledger(tmp_path, keys)
    before = ledger.ingestion
    (folder_of(tmp_path) / "log").unlink()
    with pytest.raises(StoreDamaged, match="log"):
        ledger.write([item(0)], state=IngestionState.RUNNING)
    assert (ledger.ingestion, ledger.items()) == (before, ())


@pytest.mark.long
def test_a_hundred_thousand_files_take_little_room(tmp_path: Path, keys: Keys) -> None:
    ledger, count = new_ledger(tmp_path, keys), 100_000
    ledger.write([item(n) for n in range(count)], listed=True)
    assert (folder_of(tmp_path) / "log").stat().st_size < 20 * count
    ended = [item(n, FileState.COMMITTED, sha256=f"{n:064x}", time=NOW) for n in range(count)]
    ledger.close(ended, state=IngestionState.SUCCEEDED)
    ledger.unload()
    assert len(ledger.items()) == count
    assert (folder_of(tmp_path) / "log").stat().st_size < 60 * count


def test_members_come_right_after_their_container() -> None:
    items = [
        item(0),
        item(1),
        replace(item(2), container=0),
        replace(item(3), container=2),
        replace(item(4), container=1),
    ]
    assert [one.number for one in family_order(reversed(items))] == [0, 2, 3, 1, 4]
    assert [one.number for one in family_order([items[3], items[1]], items)] == [3, 1]


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_ledger_opens_after_its_tenants_key_was_rotated_and_never_with_the_old_one(
    tmp_path: Path, keys: Keys
) -> None:
    keys.tenants.before_destroy(lambda tenant, epoch: (keys.ingest.retire(tenant, epoch), None)[1])
    new_ledger(tmp_path, keys).write([item(0)])
    was = (tmp_path / "ingest" / "clinic" / "key").read_bytes()
    keys.tenants.add("clinic")
    keys.tenants.destroy("clinic", 1)
    assert len(Ledger.open(folder_of(tmp_path), Keys(tmp_path).ingest, "clinic").items()) == 1
    (tmp_path / "ingest" / "clinic" / "key").write_bytes(was)
    with pytest.raises(KeyUnavailable):
        Ledger.open(folder_of(tmp_path), Keys(tmp_path).ingest, "clinic")


async def test_ingestions_survive_a_rotation_while_they_are_worked_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(a__txt="One.", b__txt="no text")

    def rotate(*_: object) -> None:
        bench.tenant_keys.add("clinic")
        bench.tenant_keys.destroy("clinic", bench.tenant_keys.epochs("clinic")[0])

    bench.library.before_add = rotate
    done, files = await bench.run()
    assert done.state is IngestionState.SUCCEEDED
    await bench.restart_daemon()
    assert bench.files(done) == files
    released = await bench.wait(await bench.ingest.release(OPERATOR, [files["b.txt"].id]))
    assert ends(bench.files(released)) == {"b.txt": "quarantined EMPTY"}


async def test_with_the_last_key_of_a_tenant_all_of_its_ingestions_are_gone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(a__txt="no text")
    await bench.run()
    bench.tenant_keys.destroy("clinic", 1)
    assert bench.ingest.list("clinic") == ()
    assert bench.ingest.quarantined("clinic") == ()
    assert list((bench.config.data_dir / "ingest").glob("clinic/*")) == []
    bench.tenant_keys.add("clinic")
    done, _ = await bench.run()
    assert bench.ingest.list("clinic") == (done,)


async def test_a_damaged_ledger_is_named_and_the_others_are_there(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(a__txt="One.", b__txt="Two.")
    bad, good = (await bench.run(approve=False))[0], (await bench.run())[0]
    path = bench.config.data_dir / "ingest" / "clinic" / bad.id / "log"
    raw = path.read_bytes()
    path.write_bytes(raw[:200] + b"?" + raw[201:])
    await bench.restart_daemon()
    assert [one.id for one in bench.ingest.list("clinic")] == [good.id]
    [(place, why)] = bench.ingest.damaged().items()
    assert place == ("clinic", bad.name)
    assert str(path) in why
    assert path.exists()
