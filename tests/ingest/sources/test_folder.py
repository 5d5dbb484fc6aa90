import fcntl
import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import DocumentRefused
from appliance.ingest.memfd import new_memfd
from appliance.ingest.sources import Folder, Found, printable, snapshot

MIB = 1 << 20
ELSEWHERE = Path("/proc")


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = new_memfd()
    yield fd
    os.close(fd)


def opened(path: Path, own: Path = ELSEWHERE) -> Folder:
    """A folder, or a file in one."""
    single = "" if path.is_dir() and not path.is_symlink() else path.name
    top = path.parent if single else path
    return Folder(os.open(top, os.O_PATH | os.O_DIRECTORY), top, own, single)


def walk(path: Path) -> list[Found]:
    with opened(path) as folder:
        return list(folder.walk())


def refusals(path: Path) -> dict[str, str]:
    return {found.name: found.refusal.file_reason if found.refusal else "" for found in walk(path)}


def read(path: Path, name: str) -> bytes:
    """What `open` gives. Raises DocumentRefused."""
    with opened(path) as folder:
        fd = folder.open(name)
    with open(fd, "rb") as file:
        return file.read()


def reason(path: Path, name: str) -> str:
    with pytest.raises(DocumentRefused) as refused:
        read(path, name)
    return refused.value.file_reason


# --- walking ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_walked_in_the_order_of_bytes_files_before_folders(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/inner/x.txt", "B.txt", "ä.txt", "c/y.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert [found.name for found in walk(tmp_path)] == [
        "B.txt", "b.txt", "ä.txt", "a/z.txt", "a/inner/x.txt", "c/y.txt",
    ]  # fmt: skip
    assert read(tmp_path, "a/inner/x.txt") == b"a/inner/x.txt"


def test_a_single_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "two.txt").write_text("2")
    assert [(found.name, found.size_bytes) for found in walk(tmp_path / "one.txt")] == [("one.txt", 1)]
    assert read(tmp_path / "one.txt", "one.txt") == b"1"


def test_links_pipes_and_sockets_are_refused_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (folder / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(folder / "socket.txt"))
        assert refusals(folder) == {
            "link": "LINK",
            "link.txt": "LINK",
            "loop": "LINK",
            "pipe.txt": "NOT_A_FILE",
            "socket.txt": "NOT_A_FILE",
        }
        assert reason(folder, "link.txt") == "LINK"
        assert reason(folder, "link/secret.txt") == "LINK"
        assert reason(folder, "pipe.txt") == "NOT_A_FILE"
        assert reason(folder, "socket.txt") == "NOT_A_FILE"


@pytest.mark.parametrize("name", ["../secret.txt", "a/../../secret.txt", "/etc/passwd"])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "folder" / "a").mkdir(parents=True)
    assert reason(tmp_path / "folder", name) == "OTHER_DEVICE"


def test_a_file_swapped_for_a_link_after_the_walk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file.txt").write_text("x")
    with opened(tmp_path) as folder:
        assert len(list(folder.walk())) == 2
        (tmp_path / "file.txt").unlink()
        (tmp_path / "file.txt").symlink_to("/etc/passwd")
        (tmp_path / "sub" / "file.txt").unlink()
        (tmp_path / "sub").rmdir()
        (tmp_path / "sub").symlink_to("/etc", target_is_directory=True)
        for name in ("file.txt", "sub/file.txt"):
            with pytest.raises(DocumentRefused, match="link"):
                folder.open(name)


def test_a_file_that_vanished_says_so(tmp_path: Path) -> None:
    assert reason(tmp_path, "gone.txt") == "VANISHED"


def test_a_folder_as_a_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    assert reason(tmp_path, "folder.txt") == "NOT_A_FILE"
    assert walk(tmp_path) == []


def test_a_path_that_is_a_link_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc", target_is_directory=True)
    assert refusals(tmp_path / "link") == {"link": "LINK"}


# --- the box's own data ----------------------------------------------------------------------------------------------


def test_the_boxs_own_data_is_left_out_where_the_folder_around_it_is_walked(tmp_path: Path) -> None:
    (tmp_path / "data" / "keys").mkdir(parents=True)
    (tmp_path / "data" / "keys" / "private.txt").write_text("secret")
    (tmp_path / "rules.txt").write_text("rule")
    with opened(tmp_path, own=tmp_path / "data") as folder:
        found = {found.name: found.refusal and found.refusal.file_reason for found in folder.walk()}
    assert found == {"rules.txt": None, "data": "OWN_DATA"}


def test_a_single_file_that_went_meanwhile_says_so(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("1")
    with opened(tmp_path / "one.txt") as folder:
        (tmp_path / "one.txt").unlink()
        (found,) = folder.walk()
    assert found.refusal is not None
    assert (found.name, found.refusal.file_reason) == ("one.txt", "VANISHED")


# --- many files, and files that go -----------------------------------------------------------------------------------


def test_a_folder_of_more_files_than_may_be_is_refused_and_its_neighbours_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.ingest.sources.folder.MAX_FILES", 10)
    for name, count in (("many", 20), ("few", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.txt").write_text("x")
    assert refusals(tmp_path) == {"few/0.txt": "", "few/1.txt": "", "few/2.txt": "", "many": "TOO_MANY_FILES"}


def test_a_file_that_goes_while_its_folder_is_listed_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("x")

    class Scan:
        """A folder's entries, of which one is gone before it is looked at."""

        def __init__(self, fd: int) -> None:
            self.entries = list(os.listdir(fd))
            self.fd = fd

        def __enter__(self) -> "Scan":
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def __iter__(self) -> Iterator["Item"]:
            return (Item(self.fd, name) for name in self.entries)

    class Item:
        def __init__(self, fd: int, name: str) -> None:
            self.fd, self.name = fd, name

        def stat(self, follow_symlinks: bool) -> os.stat_result:
            if self.name == "b.txt":
                (tmp_path / "b.txt").unlink()
            return os.stat(self.name, dir_fd=self.fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "scandir", Scan)
    assert [found.name for found in walk(tmp_path)] == ["a.txt", "c.txt"]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain ä 世界 🙂.txt", "plain ä 世界 🙂.txt"),
        ("two\nlines.txt", "two\\nlines.txt"),
        ("escape\x1b[2J.txt", "escape\\x1b[2J.txt"),
        ("invoice\u202efdp.exe", "invoice\\u202efdp.exe"),
        ("mark\u200f\u2066.txt", "mark\\u200f\\u2066.txt"),
        ("back\\slash.txt", "back\\\\slash.txt"),
        (os.fsdecode(b"latin\xfc.txt"), "latin\\xfc.txt"),
        ("line\u2028sep.txt", "line\\u2028sep.txt"),
    ],
)
def test_a_name_is_shown_so_that_it_deceives_nobody(tmp_path: Path, name: str, shown: str) -> None:
    (tmp_path / name).write_text("x")
    (found,) = walk(tmp_path)
    assert printable(found.name) == shown
    assert printable(found.name).isprintable()
    assert read(tmp_path, found.name) == b"x"


# --- copies ----------------------------------------------------------------------------------------------------------


def take(path: Path, memfd: int, max_bytes: int = MIB) -> tuple[str, int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        return snapshot(fd, memfd, max_bytes)
    finally:
        os.close(fd)


def test_a_copy_is_what_was_hashed_and_can_no_more_change(tmp_path: Path, memfd: int) -> None:
    content = os.urandom(3 * MIB + 17)
    (tmp_path / "file").write_bytes(content)
    assert take(tmp_path / "file", memfd, 4 * MIB) == (hashlib.sha256(content).hexdigest(), len(content))
    (tmp_path / "file").write_bytes(b"swapped")
    assert os.pread(memfd, len(content) + 1, 0) == content
    for change in (
        lambda: os.pwrite(memfd, b"x", 0),
        lambda: os.ftruncate(memfd, 1),
        lambda: os.ftruncate(memfd, 9**9),
    ):
        with pytest.raises(PermissionError):
            change()
    with pytest.raises(PermissionError):
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_a_file_over_the_cap_is_too_large(tmp_path: Path, memfd: int) -> None:
    (tmp_path / "file").write_bytes(bytes(MIB + 1))
    with pytest.raises(DocumentRefused, match="1 MiB") as refused:
        take(tmp_path / "file", memfd)
    assert refused.value.file_reason == "TOO_LARGE"
    assert os.fstat(memfd).st_size == 0


def test_a_file_that_grows_while_it_is_read_is_not_taken(
    tmp_path: Path, memfd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    real = os.read

    def read_beside_a_writer(fd: int, size: int) -> bytes:
        with path.open("ab") as file:
            file.write(b"more" if path.stat().st_size < 200 else b"")
        return real(fd, 64)

    monkeypatch.setattr(os, "read", read_beside_a_writer)
    with pytest.raises(DocumentRefused) as refused:
        take(path, memfd)
    assert refused.value.file_reason == "CHANGED"


@pytest.mark.parametrize("keeps_its_date", [False, True])
def test_a_file_that_is_rewritten_in_place_while_it_is_read_is_not_taken(
    tmp_path: Path, memfd: int, keeps_its_date: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1" * 3 * MIB)
    os.utime(path, ns=(0, 0))
    status = path.stat()

    def rewrite() -> None:
        """At the same size; the kernel's clock ticks in steps, so until it shows."""
        while path.stat().st_ctime_ns == status.st_ctime_ns or path.stat().st_mtime_ns == status.st_mtime_ns:
            with path.open("r+b") as file:
                file.write(b"2" * 3 * MIB)
        while keeps_its_date and path.stat().st_mtime_ns != status.st_mtime_ns:
            os.utime(path, ns=(0, 0))

    with path.open("rb") as file, pytest.raises(DocumentRefused) as refused:
        snapshot(file.fileno(), memfd, 4 * MIB, rewrite_once(rewrite))
    assert refused.value.file_reason == "CHANGED"
    assert path.stat().st_size == status.st_size


def rewrite_once(rewrite: Callable[[], None]) -> Callable[[], None]:
    """Behind the first piece that is read."""
    left = [rewrite]
    return lambda: left.pop()() if left else None


@pytest.mark.parametrize("change", ["rewritten", "another", "dated back"])
def test_a_file_that_is_another_than_was_seen_is_not_taken(tmp_path: Path, memfd: int, change: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1" * 100)
    os.utime(path, ns=(0, 0))
    (found,) = walk(tmp_path)
    while path.stat().st_ctime_ns == found.changed_ns:
        if change == "another":
            (tmp_path / "new").write_bytes(b"2" * 100)
            (tmp_path / "new").replace(path)
        else:
            path.write_bytes(b"2" * 100)
        if change != "rewritten":
            os.utime(path, ns=(0, 0))
    with path.open("rb") as file, pytest.raises(DocumentRefused) as refused:
        snapshot(file.fileno(), memfd, MIB, found=found)
    assert refused.value.file_reason == "CHANGED"


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, memfd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x")

    def fails(fd: int, size: int) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "read", fails)
    with pytest.raises(DocumentRefused, match="Input/output error") as refused:
        take(tmp_path / "file", memfd)
    assert refused.value.file_reason == "UNREADABLE"
