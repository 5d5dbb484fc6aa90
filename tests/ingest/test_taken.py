"""What was committed to a collection, so that a watch does not bring it back: asked often, read once."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from appliance.errors import StoreDamaged
from appliance.ingest import ledgers as module
from appliance.ingest.keys import IngestKeys
from appliance.ingest.ledger import Item, Ledger, Plan
from appliance.ingest.ledgers import Ledgers
from appliance.ingest.quarantine import Quarantine
from appliance.types import FileOutcome, FileState, Ingestion, IngestionState, Provenance, SourceKind
from appliance.vault import FileKeyring, FileTenantKeys

NOW = datetime(2026, 11, 21, tzinfo=UTC)


class Shelf:
    """Ledgers of tenant clinic; `reads` counts those whose files were read from the disk."""

    def __init__(self, folder: Path, kept: int = 1000) -> None:
        keyring = FileKeyring.open(folder / "keys", protects=folder / "knowledge")
        tenants = FileTenantKeys(folder / "keys" / "tenants", keyring)
        tenants.add("clinic")
        self._keys = IngestKeys(folder / "ingest", keyring, tenants)
        self._folder, self._kept = folder / "ingest", kept
        self.restart()
        self.ledgers.prepare("clinic")
        self._count = 0

    def restart(self) -> None:
        quarantine = Quarantine(self._folder, self._keys)
        self.ledgers = Ledgers(self._folder, self._keys, quarantine, self._kept, 100_000)
        self.ledgers.open()

    def begin(self, *texts: str, replaces: str = "", collection: str = "handbook") -> Ledger:
        """One that works, and has committed files of these texts; the first in place of another's."""
        self._count += 1
        id_ = f"{self._count:016x}"
        made = Ingestion(
            id_, "clinic", collection, frozenset(), Provenance(SourceKind.FOLDER), "policy", IngestionState.RUNNING,
            NOW + timedelta(seconds=self._count),
        )  # fmt: skip
        ledger = self.ledgers.create(made, Plan("sources/usb", listed=True))
        ledger.write(
            Item(number, text, committed(text), replaced=digest(replaces) if replaces and not number else "")
            for number, text in enumerate(texts)
        )
        return ledger

    def end(self, *texts: str, replaces: str = "", collection: str = "handbook") -> Ledger:
        ledger = self.begin(*texts, replaces=replaces, collection=collection)
        ledger.close(state=IngestionState.SUCCEEDED, end_time=NOW)
        ledger.unload()
        return ledger

    def taken(self, *texts: str) -> list[bool]:
        taken = self.ledgers.taken("clinic", "handbook")
        return [digest(text) in taken for text in texts]


def digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def committed(text: str) -> FileOutcome:
    return FileOutcome(text, FileState.COMMITTED, sha256=digest(text), time=NOW)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ingestions whose files were read from the disk, as they are."""
    found, real = list[str](), Ledger._load

    def load(self: Ledger) -> None:
        if self._items is None:
            found.append(self.folder.name)
        real(self)

    monkeypatch.setattr(Ledger, "_load", load)
    return found


def test_what_was_committed_is_taken_until_it_is_replaced_and_again_when_it_is_put_back(shelf: Shelf) -> None:
    assert shelf.taken("one") == [False]
    shelf.end("one", "other")
    shelf.end("elsewhere", collection="archive")
    assert shelf.taken("one", "other", "elsewhere", "none") == [True, True, False, False]
    shelf.end("two", replaces="one")
    assert shelf.taken("one", "two", "other") == [False, True, True]
    shelf.end("one", replaces="two")
    for _ in range(2):
        assert shelf.taken("one", "two", "other") == [True, False, True]
        shelf.restart()


def test_one_that_has_not_ended_counts_as_far_as_it_has_come_and_once_it_has_ended(shelf: Shelf) -> None:
    shelf.end("one")
    working = shelf.begin("two", replaces="one")
    assert shelf.taken("one", "two", "three") == [False, True, False]
    working.write([Item(1, "three", committed("three"))])
    assert shelf.taken("one", "two", "three") == [False, True, True]
    working.close(state=IngestionState.CANCELLED, end_time=NOW)
    working.unload()
    assert shelf.taken("one", "two", "three") == [False, True, True]


def test_what_has_ended_is_read_once_and_what_committed_nothing_never(shelf: Shelf, reads: list[str]) -> None:
    first = shelf.end("one")
    shelf.end()
    shelf.taken()
    assert reads == [first.folder.name]
    second = shelf.end("two")
    for _ in range(3):
        assert shelf.taken("one", "two") == [True, True]
    assert reads == [first.folder.name, second.folder.name]
    assert first._items is second._items is None, "their files do not stay in memory"


@pytest.mark.parametrize("asked", [False, True])
def test_what_forgotten_ones_committed_is_taken_also_where_nobody_asked_before(tmp_path: Path, asked: bool) -> None:
    shelf = Shelf(tmp_path, kept=2)
    for number in range(6):
        shelf.end(f"text {number}")
        if asked or number == 1:
            shelf.taken()
        shelf.ledgers.prune("clinic")
    assert len(shelf.ledgers.of("clinic")) == 2
    assert all(shelf.taken(*(f"text {number}" for number in range(6))))
    assert len(shelf.ledgers._taken["clinic", "handbook"].ingestions) == 2


def test_an_index_that_is_too_large_beside_others_is_made_anew_when_it_is_asked_for(
    shelf: Shelf, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TAKEN", 1)
    shelf.end("one", "two")
    shelf.taken()
    shelf.ledgers.taken("clinic", "archive")
    assert list(shelf.ledgers._taken) == [("clinic", "archive")]
    assert shelf.taken("one", "two") == [True, True]
    assert len(reads) == 2


def test_nothing_is_taken_of_a_tenant_whose_keys_are_gone(shelf: Shelf) -> None:
    shelf.end("one")
    shelf.taken()
    assert shelf.ledgers.retire("clinic", 1)
    assert shelf.ledgers._taken == {}


def test_a_list_of_forgotten_ones_that_cannot_be_read_is_never_taken_for_an_empty_one(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, kept=0)
    shelf.end("one")
    shelf.ledgers.prune("clinic")
    taken = tmp_path / "ingest" / "clinic" / "taken"
    sound = taken.read_bytes()
    taken.write_bytes(sound[:80] + bytes(len(sound) - 80 - 20) + sound[-20:])
    for _ in range(2):
        with pytest.raises(StoreDamaged):
            shelf.taken("one")
    taken.write_bytes(sound)
    assert shelf.taken("one") == [True]


def test_an_old_one_that_cannot_be_read_is_named_and_keeps_no_other_from_being_forgotten(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, kept=1)
    shelf.end("One.")
    damaged = shelf.end("Two.")
    shelf.end("Three.")
    with (damaged.folder / "log").open("r+b") as log:
        log.seek(-1, 2)
        last = log.read(1)
        log.seek(-1, 2)
        log.write(bytes([last[0] ^ 1]))
    shelf.ledgers.prune("clinic")
    assert [one.ingestion.id[-1] for one in shelf.ledgers.of("clinic")] == ["3", "2"]
    assert [name for _, name in shelf.ledgers.damaged()] == [damaged.ingestion.name]
    shelf.ledgers.prune("clinic")
