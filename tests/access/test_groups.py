"""Groups are each tenant's own, last, and count from the next question on."""

import errno
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from appliance.access import roles
from appliance.access.callers import Callers
from appliance.access.groups import MAX_GROUPS, MAX_USERS, GroupBook
from appliance.access.signed import SignedFile
from appliance.errors import DiskFull, Forbidden, InvalidArgument, NotFound, StoreDamaged
from appliance.types import EVERYONE, Group, Principal, Role
from appliance.vault.keyring import FileKeyring
from tests.access.test_roles import context


@pytest.fixture
def keyring(tmp_path: Path) -> FileKeyring:
    return FileKeyring.open(tmp_path / "keys", protects=tmp_path / "knowledge")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access" / "groups.json"


@pytest.fixture
def book(path: Path, keyring: FileKeyring) -> GroupBook:
    return GroupBook(path, keyring)


def test_a_user_is_in_the_groups_that_name_it(book: GroupBook) -> None:
    assert book.set("default", "hr", ["ann", "ben", "ann"]) == Group("hr", frozenset({"ann", "ben"}))
    book.set("default", "board", ["ann"])
    assert book.of("default", "ann") == {"group:hr", "group:board"}
    assert book.of("default", "ben") == {"group:hr"}
    assert book.of("default", "Ann") == book.of("default", "eve") == frozenset()
    assert book.readers("default") == {"group:hr", "group:board"}
    assert [group.name for group in book.list("default")] == ["board", "hr"]
    assert book.get("default", "hr").users == {"ann", "ben"}


def test_a_group_of_another_tenant_never_counts(book: GroupBook) -> None:
    book.set("rival", "hr", ["ann"])
    assert book.of("default", "ann") == book.readers("default") == frozenset()
    assert book.list("default") == ()
    for act in (book.get, book.delete):
        with pytest.raises(NotFound, match="hr"):
            act("default", "hr")
    book.set("default", "hr", ["ben"])
    assert book.of("rival", "ann") == {"group:hr"}
    assert book.of("default", "ann") == frozenset()


def test_who_is_no_longer_named_is_out_and_so_is_everybody_of_a_deleted_group(book: GroupBook) -> None:
    book.set("default", "hr", ["ann", "ben"])
    book.set("default", "hr", ["ben"])
    assert book.of("default", "ann") == frozenset()
    book.delete("default", "hr")
    assert book.of("default", "ben") == book.readers("default") == frozenset()
    with pytest.raises(NotFound):
        book.delete("default", "hr")


def test_a_group_without_users_is_there_and_holds_nobody(book: GroupBook, path: Path, keyring: FileKeyring) -> None:
    book.set("default", "hr", [])
    assert GroupBook(path, keyring).readers("default") == {"group:hr"}


def test_groups_outlive_the_process_in_a_private_file(book: GroupBook, path: Path, keyring: FileKeyring) -> None:
    book.set("default", "hr", ["ann"])
    book.set("default", "gone", ["ann"])
    book.set("rival", "hr", ["eve"])
    book.delete("default", "gone")
    again = GroupBook(path, keyring)
    assert again.list("default") == (Group("hr", frozenset({"ann"})),)
    assert again.of("rival", "eve") == {"group:hr"}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", ".hr", "a b", "hr\n", "h" * 65, "é", "group:hr", "role:admin", "../x"])
def test_a_name_that_no_group_or_user_can_have_is_refused(book: GroupBook, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"group\.name"):
        book.set("default", name, ["ann"])
    with pytest.raises(InvalidArgument, match=r"group\.users"):
        book.set("default", "hr", ["ann", name])
    assert book.list("default") == ()


def test_a_group_has_at_most_10_000_users(book: GroupBook) -> None:
    users = [f"user{number}" for number in range(MAX_USERS + 1)]
    with pytest.raises(InvalidArgument, match="at most 10000"):
        book.set("default", "all", users)
    assert len(book.set("default", "all", users[1:]).users) == MAX_USERS


def test_a_tenant_has_at_most_1_000_groups(path: Path, keyring: FileKeyring) -> None:
    full = {"default": {f"g{number}": ["ann"] for number in range(MAX_GROUPS)}}
    SignedFile(path, keyring, b"groups 1\n").write({"groups": full})
    book = GroupBook(path, keyring)
    with pytest.raises(InvalidArgument, match="at most 1000"):
        book.set("default", "more", ["ann"])
    book.set("default", "g0", ["ben"])  # what is there may change
    book.set("rival", "more", ["ann"])
    assert len(book.of("default", "ann")) == MAX_GROUPS - 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b'{"groups": {}}', b'{"signature": 1}', b"\xff"])
def test_a_damaged_file_is_named_and_not_replaced(path: Path, keyring: FileKeyring, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StoreDamaged, match=r"groups\.json"):
        GroupBook(path, keyring)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [{}, {"groups": []}, {"groups": {"default": ["hr"]}}, {"groups": {"a": {"b": 1}}}])
def test_a_signed_file_of_another_form_is_damaged(path: Path, keyring: FileKeyring, content: dict[str, object]) -> None:
    SignedFile(path, keyring, b"groups 1\n").write(content)
    with pytest.raises(StoreDamaged, match=r"groups\.json"):
        GroupBook(path, keyring)


def test_a_user_written_into_the_file_by_another_hand_is_found_out(
    book: GroupBook, path: Path, keyring: FileKeyring
) -> None:
    book.set("default", "hr", ["ann"])
    content = json.loads(path.read_text())
    content["groups"]["default"]["hr"].append("mallory")
    path.write_text(json.dumps(content))
    with pytest.raises(StoreDamaged):
        GroupBook(path, keyring)


def test_what_the_box_signed_for_another_use_is_no_group_file(path: Path, keyring: FileKeyring) -> None:
    SignedFile(path, keyring, b"app keys 1\n").write({"groups": {"default": {"hr": ["ann"]}}})
    with pytest.raises(StoreDamaged):
        GroupBook(path, keyring)


def test_a_group_that_could_not_be_written_is_as_it_was(
    book: GroupBook, path: Path, keyring: FileKeyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    book.set("default", "hr", ["ann"])
    with monkeypatch.context() as patch:
        patch.setattr("appliance.access.ca.os.fsync", full)
        with pytest.raises(DiskFull, match=r"groups\.json.*No space left"):
            book.set("default", "hr", ["ben"])
        with pytest.raises(DiskFull):
            book.delete("default", "hr")
    assert book.of("default", "ann") == {"group:hr"}
    assert GroupBook(path, keyring).of("default", "ann") == {"group:hr"}
    assert [file.name for file in path.parent.iterdir()] == ["groups.json"]


def test_changes_at_the_same_time_are_all_kept(book: GroupBook, path: Path, keyring: FileKeyring) -> None:
    def change(number: int) -> None:
        book.set(f"tenant{number % 2}", f"g{number}", ["ann"])
        book.set("shared", "hr", [f"user{number}"])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(24)))
    for held in (book, GroupBook(path, keyring)):
        assert held.of("tenant0", "ann") == {f"group:g{number}" for number in range(0, 24, 2)}
        assert held.of("tenant1", "ann") == {f"group:g{number}" for number in range(1, 24, 2)}
        assert len(held.get("shared", "hr").users) == 1
    assert GroupBook(path, keyring).list("shared") == book.list("shared")


def test_a_question_does_not_wait_for_the_disk_and_sees_a_change_only_once_it_is_there(
    book: GroupBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.set("default", "hr", ["ann"])
    writing, go = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        writing.set()
        assert go.wait(20)

    monkeypatch.setattr("appliance.access.signed.write_private", slow)
    changer = threading.Thread(target=book.set, args=("default", "hr", ["ben"]))
    changer.start()
    assert writing.wait(20)
    assert book.of("default", "ann") == {"group:hr"}
    go.set()
    changer.join()
    assert book.of("default", "ann") == frozenset()


def test_a_caller_has_its_groups_of_this_moment(book: GroupBook) -> None:
    callers = Callers(book)
    given = context("spiffe://appliance/tenant/default/user/ann/role/app")
    assert callers.by_certificate(given) == Principal("default", "ann", Role.APP)
    book.set("default", "hr", ["ann"])
    caller = callers.by_certificate(given)
    assert caller.groups == {EVERYONE, "user:ann", "role:app", "group:hr"}
    book.delete("default", "hr")
    assert callers.by_certificate(given).groups == {EVERYONE, "user:ann", "role:app"}


def test_a_group_called_admin_gives_no_right(book: GroupBook) -> None:
    book.set("default", "admin", ["ann"])
    caller = Callers(book).by_certificate(context("spiffe://appliance/tenant/default/user/ann/role/app"))
    assert caller.role is Role.APP
    assert "role:admin" not in caller.groups
    with pytest.raises(Forbidden):
        roles.allow(caller, "/appliance.v1.AccessService/SetGroup")
