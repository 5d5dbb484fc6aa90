"""Attacks on whoever reads the answer: bytes that are no result, lies in one, or none. Each stands in its place."""

import json
import os
import pickle
import struct
from typing import NoReturn

from appliance.errors import DocumentRefused
from tests.attacks.attack import World, attack


class _Exploit:
    def __init__(self, world: World) -> None:
        self._world = world

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self._world.folder}/escaped",)


def _answer(*frames: bytes) -> NoReturn:
    os.write(1, b"".join(struct.pack(">I", len(frame)) + frame for frame in frames))
    os._exit(0)


def _header(**fields: object) -> bytes:
    return json.dumps({"media_type": "text/plain", "parser": "x", "pages": 1, "members": 0} | fields).encode()


@attack("answers", "a pickle in place of a result")
def pickled(world: World) -> object:
    os.write(1, pickle.dumps(_Exploit(world)))
    os._exit(0)


@attack("answers", "a pickle as the header")
def pickled_header(world: World) -> object:
    return _answer(pickle.dumps(_Exploit(world)))


@attack("answers", "noise")
def noise(world: World) -> object:
    os.write(1, b"\xff" * 100)
    os._exit(0)


@attack("answers", "nothing at all")
def nothing(world: World) -> object:
    os._exit(0)


@attack("answers", "terminal escapes in the text")
def escapes(world: World) -> object:
    return _answer(_header(), b"\x1b]0;owned\x07\x1b[2J", b"")


@attack("answers", "terminal escapes in a refusal")
def escapes_in_refusal(world: World) -> object:
    raise DocumentRefused("FINE", "all is well\x1b[2J\n\u202eyllaer")


@attack("answers", "text that is not UTF-8")
def not_utf8(world: World) -> object:
    return _answer(_header(), b"\xed\xa0\x80", b"")


@attack("answers", "fewer pages than promised")
def fewer_pages(world: World) -> object:
    return _answer(_header(pages=5), b"page", b"")


@attack("answers", "more pages than a document may have")
def more_pages(world: World) -> object:
    return _answer(_header(pages=1 << 30))


@attack("answers", "a frame longer than the answer")
def long_frame(world: World) -> object:
    os.write(1, struct.pack(">I", len(_header())) + _header() + b"\xff\xff\xff\xffx")
    os._exit(0)


@attack("answers", "a block outside its page")
def block_outside(world: World) -> object:
    return _answer(_header(), b"page", struct.pack(">BBIII", 1, 0, 1, 0, 1 << 31))


@attack("answers", "members where there may be none")
def members(world: World) -> object:
    return _answer(_header(members=1), b"page", b"", b"../../etc/cron.d/owned", b"", b"* * * * *")


@attack("answers", "a header of nested lists")
def nested(world: World) -> object:
    return _answer(b"[" * 4000)


@attack("answers", "a header with a number of many digits")
def digits(world: World) -> object:
    return _answer(b'{"media_type": "text/plain", "parser": "x", "members": 0, "pages": ' + b"9" * 4000 + b"}")


@attack("answers", "an exception that quotes the document")
def quoting(world: World) -> object:
    raise ValueError("the secret content of the document")


@attack("answers", "a crash")
def crash(world: World) -> object:
    import ctypes

    return ctypes.string_at(0)


@attack("answers", "an abort")
def abort(world: World) -> object:
    os.abort()
