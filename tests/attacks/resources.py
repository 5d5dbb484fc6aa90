"""Attacks on what all share: memory, processor time, patience, descriptors, the daemon's own memory."""

import ctypes
import mmap
import os
import threading
import time

from tests.attacks.attack import World, attack, call, libc

BOMB_BYTES = 600 << 20  # several times what a child is given in a trial, and little enough where nothing stops it
PIECE = 4 << 20


@attack("resources", "take memory at once", "limits")
def memory_at_once(world: World) -> object:
    return len(bytearray(BOMB_BYTES))


@attack("resources", "take memory bit by bit", "limits")
def memory_creep(world: World) -> object:
    return len([bytearray(PIECE) for _ in range(BOMB_BYTES // PIECE)])


@attack("resources", "take memory natively, whatever malloc says", "limits")
def memory_natively(world: World) -> object:
    libc.malloc.restype = ctypes.c_void_p
    for _ in range(BOMB_BYTES // PIECE):
        ctypes.memset(libc.malloc(ctypes.c_size_t(PIECE)), 1, PIECE)
    return BOMB_BYTES


@attack("resources", "map memory piece by piece", "limits")
def memory_maps(world: World) -> object:
    return len([mmap.mmap(-1, 1 << 16) for _ in range(BOMB_BYTES >> 16)])


@attack("resources", "lock memory", "seccomp", "limits")
def lock_memory(world: World) -> object:
    room = ctypes.create_string_buffer(1 << 16)
    return call("mlock", ctypes.addressof(room), 1 << 16) or "locked"


@attack("resources", "compute without end", "limits")
def spin(world: World) -> object:
    end = time.process_time() + 3  # more than a child is given in a trial, and little enough where nothing stops it
    while time.process_time() < end:
        pass
    return "3 seconds"


@attack("resources", "sleep without end", slow=True)
def sleep(world: World) -> object:
    time.sleep(20)
    return "20 seconds"


@attack("resources", "wait for itself (deadlock)", slow=True)
def deadlock(world: World) -> object:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=20)
    return "20 seconds"


@attack("resources", "open descriptors without end", "seccomp", "limits")
def descriptors(world: World) -> object:
    return [os.dup(1) for _ in range(500)][-1]


@attack("resources", "answer without end")
def output_flood(world: World) -> object:
    for _ in range(1024):
        os.write(1, bytes(1 << 16))
    return "64 MiB"


@attack("resources", "call itself without end")
def recurse(world: World) -> object:
    return recurse(world)
