"""System calls that Python has no function for."""

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

_OPENAT2 = 437
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH = 0x01, 0x02, 0x04, 0x08


def call(number: int, *arguments: object) -> int:
    """What the kernel returns. number: of a call since Linux 5.1, the same on every processor. Raises OSError."""
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def openat2(top: int, name: bytes, flags: int, resolve: int) -> int:
    """A descriptor of what is called so below `top`; resolve: NO_XDEV and so on (openat2(2)). Raises OSError."""
    how = struct.pack("=QQQ", flags, 0, resolve)
    return call(_OPENAT2, top, name, how, ctypes.c_size_t(len(how)))
