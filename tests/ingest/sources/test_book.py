from pathlib import Path

import pytest

from appliance.access.signed import SignedFile
from appliance.errors import InvalidArgument, NotFound, StoreDamaged
from appliance.ingest.sources import SourceBook
from appliance.ingest.sources import book as module
from appliance.types import Watch
from appliance.vault.keyring import FileKeyring
from tests.ingest.sources.places import MemoryJson

WATCH = Watch("handbook", frozenset({"group:hr"}), approve=True, settle_polls=0)
KEY = "ab" * 32


def test_what_was_said_is_there_after_a_restart_and_no_stranger_can_write_it(tmp_path: Path) -> None:
    keyring = FileKeyring.open(tmp_path / "keys", protects=tmp_path / "knowledge")
    file = SignedFile(tmp_path / "ingest" / "sources.json", keyring, b"sources 1\n")
    book = SourceBook(file)
    book.allow("4C53", True)
    book.trust("Registry", KEY)
    made = book.watch("acme", "/srv/drop", True, WATCH)
    again = SourceBook(file)
    assert (again.devices, dict(again.signers)) == (frozenset({"4C53"}), {"Registry": KEY})
    assert again.watches() == {"acme": (made,)}
    assert made.watch == WATCH
    path = tmp_path / "ingest" / "sources.json"
    path.write_text(path.read_text().replace("4C53", "EVIL"))
    with pytest.raises(StoreDamaged, match=r"sources\.json"):
        SourceBook(file)


def test_what_is_taken_back_is_gone() -> None:
    book = SourceBook(MemoryJson())
    book.allow("4C53", True)
    book.allow("4C53", False)
    book.allow("4C53", False)
    book.trust("Registry", KEY)
    book.trust("Registry", "")
    made = book.watch("acme", "/srv/drop", False, WATCH)
    with pytest.raises(NotFound):
        book.unwatch("other", made.id)
    book.unwatch("acme", made.id)
    assert not book.devices
    assert not book.signers
    assert not any(book.watches().values())


def test_a_place_is_watched_once_by_a_tenant_with_its_last_settings() -> None:
    book = SourceBook(MemoryJson())
    first = book.watch("acme", "/srv/drop", False, WATCH)
    second = book.watch("acme", "/srv/drop", True, Watch("other", frozenset({"everyone"})))
    other = book.watch("beta", "/srv/drop", True, WATCH)
    assert book.watches() == {"acme": (second,), "beta": (other,)}
    assert (first.id.partition("-")[0], second.id) == ("folder", other.id)


@pytest.mark.parametrize("serial", ["", "x" * 129, "two\nlines", "\u202e"])
def test_a_serial_number_that_is_none_is_refused(serial: str) -> None:
    with pytest.raises(InvalidArgument, match="serial"):
        SourceBook(MemoryJson()).allow(serial, True)


@pytest.mark.parametrize(("name", "key"), [("", KEY), ("\n", KEY), ("a" * 65, KEY), ("a", "00"), ("a", "AB" * 32)])
def test_a_signer_without_a_name_or_a_key_is_refused(name: str, key: str) -> None:
    with pytest.raises(InvalidArgument):
        SourceBook(MemoryJson()).trust(name, key)


@pytest.mark.parametrize("place", ["", "relative", "sources/folder-1", "/nul\0", "/" + "x" * 4096])
def test_a_place_that_is_none_is_refused(place: str) -> None:
    with pytest.raises(InvalidArgument, match="path"):
        SourceBook(MemoryJson()).watch("acme", place, False, WATCH)


def test_lists_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_WATCHES", "MAX_DEVICES", "MAX_SIGNERS"):
        monkeypatch.setattr(module, name, 1)
    book = SourceBook(MemoryJson())
    for _ in range(2):
        book.allow("1", True)
        book.trust("a", KEY)
        book.watch("acme", "/a", False, WATCH)
    with pytest.raises(InvalidArgument):
        book.allow("2", True)
    with pytest.raises(InvalidArgument):
        book.trust("b", KEY)
    with pytest.raises(InvalidArgument):
        book.watch("acme", "/b", False, WATCH)


@pytest.mark.parametrize("content", [{}, {"devices": 1}, {"devices": [], "signers": {}, "watches": {"a": {"b": {}}}}])
def test_a_content_of_another_form_is_damage(content: dict[str, object]) -> None:
    with pytest.raises(StoreDamaged):
        SourceBook(MemoryJson(content))
