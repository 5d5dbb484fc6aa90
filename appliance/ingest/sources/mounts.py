"""Read-only mounts that no mount namespace ever sees, for file systems that only the kernel reads: ext4 and such.

A loop device over the stick or image, fsopen, fsconfig, fsmount: what comes back is a descriptor of the root folder.
When it is closed the mount is gone, and the loop device with it. The kernel parses the file system, with all its
rights: a box does it only for those that `stick_mount` names.

Source: fsopen(2), fsconfig(2), fsmount(2) (Linux 5.2), linux/mount.h; LOOP_CONFIGURE of linux/loop.h (Linux 5.8).
"""

import errno
import fcntl
import os
import struct
from collections.abc import Sequence

from appliance.errors import SourceRefused
from appliance.ingest.sources import kernel

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_RDONLY_NOSUID_NODEV_NOEXEC = 1 | 2 | 4 | 8

_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_LOOP_CONFIG = struct.Struct("=II" + "QQQQQIIII64s64s32sQQ" + "8Q")
_TRIES = 8

_NO_PANIC = "errors=remount-ro"
OPTIONS = {
    "ext2": (_NO_PANIC,),
    "ext3": ("noload", _NO_PANIC),
    "ext4": ("noload", _NO_PANIC),
    "xfs": ("norecovery",),
    "btrfs": ("rescue=nologreplay",),
}
"""What keeps a file system from writing even to a device that was not cleanly unmounted, and the kernel from halting
where the file system is damaged and its own superblock asks for that (`tune2fs -e panic`)."""


def mount(fd: int, offset_bytes: int, size_bytes: int, filesystems: Sequence[str]) -> tuple[int, str]:
    """A descriptor of the root folder of the file system behind an open device or image, and its kind.

    offset_bytes, size_bytes: where it lies there. filesystems: those that may be tried, in this order. The caller
    closes the descriptor. Blocking. Raises SourceRefused.
    """
    try:
        loop, node = _loop(fd, offset_bytes, size_bytes)
    except OSError as error:
        raise _refused(error) from None
    try:
        for filesystem in filesystems:
            try:
                return _detached(node, filesystem), filesystem
            except OSError as error:
                last = error
        raise _refused(last, filesystems)
    finally:
        os.close(loop)  # autoclear: it goes when the mount does


def _loop(fd: int, offset_bytes: int, size_bytes: int) -> tuple[int, str]:
    """An open loop device and its node. Raises OSError."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            node = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            loop = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
            flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
            info = (0, 0, 0, offset_bytes, size_bytes, 0, 0, 0, flags, b"appliance", b"", b"", 0, 0)
            try:
                fcntl.ioctl(loop, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(fd, 0, *info, *(0,) * 8))
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:  # somebody else took it first
                    raise
                continue
            return loop, node
        raise OSError(errno.EBUSY, "no loop device is free")
    finally:
        os.close(control)


def _detached(node: str, filesystem: str) -> int:
    """Mount a node without a place for it. Raises OSError."""
    context = kernel.call(_FSOPEN, filesystem.encode(), _FSOPEN_CLOEXEC)
    try:
        _configure(context, _SET_STRING, b"source", node.encode())
        _configure(context, _SET_FLAG, b"ro", None)
        for option in OPTIONS.get(filesystem, ()):
            key, _, value = option.partition("=")
            _configure(context, _SET_STRING if value else _SET_FLAG, key.encode(), value.encode() or None)
        _configure(context, _CREATE, None, None)
        return kernel.call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, _RDONLY_NOSUID_NODEV_NOEXEC)
    finally:
        os.close(context)


def _configure(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    kernel.call(_FSCONFIG, context, command, key, value, 0)


def _refused(error: OSError, tried: Sequence[str] = ()) -> SourceRefused:
    if error.errno in (errno.EPERM, errno.EACCES):
        why = "The daemon may not mount it: it needs CAP_SYS_ADMIN and the loop devices (`stick_mount`)."
    elif error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV) and not tried:
        why = "It cannot be mounted: this box has no loop devices (load the module `loop`)."
    elif tried:
        why = f"It is none of the file systems that may be mounted (`stick_mount`: {', '.join(tried)}), or is damaged."
    else:
        why = f"It cannot be mounted: {error.strerror}."
    return SourceRefused(why)
