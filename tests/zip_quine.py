"""A ZIP archive that holds itself and nothing else: unpacking it never ends (R. Cox, Zip Files All The Way Down, 2010).

Its one file's data are two instructions of DEFLATE (RFC 1951): "write the next n bytes" is a stored block, "write the
last n bytes again" is one match. Each takes UNIT bytes here. What they write is the archive's head, themselves and its
tail. The checksum stands in what it is the checksum of: CRC-32 is affine over GF(2), so it is solved for.
"""

import struct
import zlib
from collections.abc import Sequence

from tests.container_files import CENTRAL, END, LOCAL

UNIT = 10
_NOTHING_STORED = b"\0\0\0\xff\xff"


def quine(name: bytes = b"r/r.zip") -> bytes:
    """name: of the archive within itself, 36 bytes at most."""
    checksum, time = None, 0  # of the file's last change: with some of them there is no solution
    while checksum is None:
        time += 1
        offset = zlib.crc32(_archive(name, 0, time))
        columns = [zlib.crc32(_archive(name, 1 << bit, time)) ^ offset ^ 1 << bit for bit in range(32)]
        checksum = _solved(columns, offset)
    return _archive(name, checksum, time)


def _archive(name: bytes, checksum: int, time: int) -> bytes:
    """The quine, but for its checksum."""
    head, tail = _around(name, checksum, time, 0, 0)
    packed = len(_program(head, tail))
    head, tail = _around(name, checksum, time, packed, len(head) + packed + len(tail))
    return head + _program(head, tail) + tail


def _around(name: bytes, checksum: int, time: int, packed: int, whole: int) -> tuple[bytes, bytes]:
    """What stands before and after its data; as long, whatever the numbers are."""
    fields = (8, time, 0, checksum, packed, whole, len(name))
    local = LOCAL.pack(b"PK\3\4", 20, 0, *fields, 0) + name
    central = CENTRAL.pack(b"PK\1\2", 20, 20, 0, *fields, 0, 0, 0, 0, 0, 0) + name
    return local, central + END.pack(b"PK\5\6", 0, 0, 1, 1, len(central), len(local) + packed, 0)


def _program(head: bytes, tail: bytes) -> bytes:
    """Writes head, program, tail: Cox's, each line of it beside what it writes."""
    to_head, head_again = _write(len(head) + UNIT), _again(len(head) + UNIT)
    to_tail, tail_again = _write(len(tail) + UNIT), _again(len(tail) + UNIT, is_last=True)
    none, one, four, four_again = _write(0), _write(UNIT), _write(4 * UNIT), _again(4 * UNIT)
    return b"".join(
        (
            *(to_head, head, to_head),  # head, to_head
            head_again,  # head, to_head
            *(one, head_again),  # head_again
            *(one, one),  # one
            *(four, head_again, one, one, four),  # head_again, one, one, four
            four_again,  # head_again, one, one, four
            *(four, four_again, four, four_again, four),  # four_again, four, four_again, four
            four_again,  # four_again, four, four_again, four
            *(four, four_again, none, none, to_tail),  # four_again, none, none, to_tail
            four_again,  # four_again, none, none, to_tail
            *(none, none),
            *(to_tail, tail_again, tail),  # tail_again, tail
            tail_again,  # tail_again, tail
        )
    )


def _write(size: int) -> bytes:
    """The bytes that follow: an empty stored block to fill the unit, and the head of one of that size."""
    return _NOTHING_STORED + struct.pack("<B2H", 0, size, size ^ 0xFFFF)


def _again(size: int, *, is_last: bool = False) -> bytes:
    """The last bytes, 33 to 114 of them: a block with fixed codes of one match, one of none, an empty stored one."""
    length, distance = size - 3, size - 1
    length_bits, distance_bits = length.bit_length() - 3, distance.bit_length() - 2
    match = (
        _code(5 + 4 * length_bits + (length >> length_bits & 3), 7) + _number(length, length_bits),
        _code(2 + 2 * distance_bits + (distance >> distance_bits & 1), 5) + _number(distance, distance_bits),
    )
    block, end = _number(0b010, 3), _code(0, 7)
    bits = "".join((block, *match, end, block, end, _number(int(is_last), 3)))
    return int(bits[::-1], 2).to_bytes(UNIT - 4, "little") + _NOTHING_STORED[1:]


def _code(value: int, bits: int) -> str:
    """Of a prefix code: its first bit first."""
    return f"{value:0{bits}b}"


def _number(value: int, bits: int) -> str:
    """Its lowest bits, the lowest one first."""
    return f"{value % (1 << bits):0{bits}b}"[::-1]


def _solved(columns: Sequence[int], wanted: int) -> int | None:
    """The bits whose columns have `wanted` as their sum over GF(2); None where there are none (Gauss)."""
    basis: dict[int, tuple[int, int]] = {}
    for bit, column in enumerate(columns):
        chosen = 1 << bit
        while column and column.bit_length() in basis:
            other, others = basis[column.bit_length()]
            column, chosen = column ^ other, chosen ^ others
        if column:
            basis[column.bit_length()] = column, chosen
    found = 0
    while wanted:
        if wanted.bit_length() not in basis:
            return None
        column, chosen = basis[wanted.bit_length()]
        wanted, found = wanted ^ column, found ^ chosen
    return found
