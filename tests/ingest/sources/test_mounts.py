"""A file system that only the kernel reads, mounted where nobody sees it. For real, where root has loop devices."""

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from appliance.errors import SourceGone, SourceRefused
from appliance.ingest.sources import Found, mounts
from tests import stick_images
from tests.ingest.sources.places import Place, content, contents


def why_not() -> str:
    """Why nothing can be mounted here, '' where it can."""
    if os.geteuid() != 0:
        return "only root mounts"
    if not stick_images.has("mkfs.ext4"):
        return "e2fsprogs is not installed"
    return "" if Path("/dev/loop-control").exists() else "this machine has no loop devices"


needs_mounts = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An ext4 volume with a file, a folder, a link and a device."""
    files = tmp_path / "files"
    (files / "below").mkdir(parents=True)
    (files / "a.txt").write_bytes(b"alpha")
    (files / "below" / "b.txt").write_bytes(bytes(100_000))
    (files / "link").symlink_to("/etc/passwd")
    os.mknod(files / "device", 0o020666, os.makedev(1, 8))
    image = tmp_path / "ext4.img"
    image.write_bytes(b"")
    os.truncate(image, 8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", str(files), str(image)], check=True, capture_output=True)
    return image


def loops_of(image: Path) -> list[str]:
    backing = (path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file"))
    return [name for name in backing if name == str(image)]


def whole(path: Path) -> bytes:
    return path.read_bytes()


@needs_mounts
async def test_an_ext4_image_is_read_and_leaves_neither_mount_nor_loop_device(tmp_path: Path, image: Path) -> None:
    before = whole(image), whole(Path("/proc/self/mounts"))
    source = await Place(tmp_path, stick_mount="ext4").sources.open("acme", str(image))
    assert whole(Path("/proc/self/mounts")) == before[1]
    assert len(loops_of(image)) == 1
    found = await contents(source)
    assert found == {"a.txt": b"alpha", "below/b.txt": bytes(100_000), "link": "LINK", "device": "NOT_A_FILE"}
    assert loops_of(image) == []
    assert whole(image) == before[0]


@needs_mounts
async def test_an_ext4_partition_is_read_where_it_lies(tmp_path: Path, image: Path) -> None:
    (tmp_path / "disk.img").write_bytes(stick_images.gpt([whole(image)]))
    source = await Place(tmp_path, stick_mount="xfs, ext4").sources.open("acme", str(tmp_path / "disk.img"))
    assert (await contents(source))["a.txt"] == b"alpha"


@needs_mounts
async def test_what_is_mounted_cannot_be_written_nor_run(image: Path) -> None:
    fd = os.open(image, os.O_RDONLY)
    root, filesystem = mounts.mount(fd, 0, 8 << 20, ("ext4",))
    try:
        assert filesystem == "ext4"
        flags = os.statvfs(root).f_flag
        for flag in (os.ST_RDONLY, os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC):
            assert flags & flag
        with pytest.raises(OSError, match="Read-only"):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=root)
        with pytest.raises(PermissionError):
            os.open("device", os.O_RDONLY, dir_fd=root)
    finally:
        os.close(root)
        os.close(fd)


@needs_mounts
@pytest.mark.parametrize("filesystem", ["ext2", "ext3", "ext4"])
def test_a_damaged_superblock_that_asks_for_it_halts_no_kernel(
    image: Path, filesystem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["tune2fs", "-e", "panic", str(image)], check=True, capture_output=True)
    asked, real = list[tuple[object, object]](), mounts._configure

    def configure(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
        asked.append((key, value))
        real(context, command, key, value)

    monkeypatch.setattr(mounts, "_configure", configure)
    fd = os.open(image, os.O_RDONLY)
    with contextlib.suppress(SourceRefused):  # this kernel may have no such file system
        root, _ = mounts.mount(fd, 0, 8 << 20, (filesystem,))
        os.close(root)
    os.close(fd)
    if asked or filesystem == "ext4":
        assert asked.index((b"errors", b"remount-ro")) < asked.index((None, None))  # before it is made


@needs_mounts
async def test_a_mounted_stick_that_is_pulled_is_gone(tmp_path: Path, image: Path) -> None:
    source = await Place(tmp_path, stick_mount="ext4").sources.open("acme", str(image))
    assert len(await source.files()) == 4
    os.truncate(image, 0)
    with pytest.raises(SourceGone):
        await source.files()
    with pytest.raises(SourceGone):
        await content(source, Found("none.txt"))
    await source.close()


async def test_a_file_system_that_may_not_be_mounted_is_refused_with_its_name(tmp_path: Path) -> None:
    data = bytearray(1 << 17)
    data[1080:1082] = b"\x53\xef"
    (tmp_path / "a.img").write_bytes(data)
    with pytest.raises(SourceRefused, match="ext4"):
        await Place(tmp_path).sources.open("acme", str(tmp_path / "a.img"))


@needs_mounts
async def test_a_damaged_file_system_is_refused_and_leaves_nothing(tmp_path: Path, image: Path) -> None:
    with open(image, "r+b") as file:  # noqa: ASYNC230
        file.seek(1024)
        file.write(bytes(56))
    with pytest.raises(SourceRefused, match="may be mounted"):
        await Place(tmp_path, stick_mount="ext4").sources.open("acme", str(image))
    assert loops_of(image) == []


@needs_mounts
def test_without_the_right_to_mount_it_is_said_what_is_lacking(image: Path) -> None:
    libc, fd = ctypes.CDLL(None), os.open(image, os.O_RDONLY)
    libc.setfsuid(65534)  # of this thread alone: it may open no device
    try:
        with pytest.raises(SourceRefused, match="CAP_SYS_ADMIN"):
            mounts.mount(fd, 0, 8 << 20, ("ext4",))
    finally:
        libc.setfsuid(0)
        os.close(fd)


@needs_mounts
@pytest.mark.skipif(not stick_images.has("losetup"), reason="losetup is not installed")
async def test_a_block_device_is_read_as_a_stick_until_it_loses_its_bytes(tmp_path: Path) -> None:
    made, place = stick_images.Fat16(), Place(tmp_path, sticks_allowed="all")
    made.file(b"A       TXT", b"alpha", 2)
    (tmp_path / "backing").write_bytes(made.data)
    node = losetup("--find", "--show", "--read-only", str(tmp_path / "backing"))
    try:
        place.plugged.plug(Path(node))
        source = await place.sources.open("acme", "sources/usb-4C53")
        (found,) = await source.files()
        assert await content(source, found) == b"alpha"
        os.truncate(tmp_path / "backing", 0)
        losetup("--set-capacity", node)
        with pytest.raises(SourceGone):
            await content(source, found)
        await source.close()
        with pytest.raises(SourceGone):
            await place.sources.open("acme", "sources/usb-4C53")
    finally:
        losetup("--detach", node)


def losetup(*arguments: str) -> str:
    return subprocess.run(["losetup", *arguments], check=True, capture_output=True, text=True).stdout.strip()
