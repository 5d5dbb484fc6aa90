import contextlib
import json
import struct
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import DocumentRefused
from appliance.sandbox.result import (
    BLOCK,
    KINDS,
    MAX_BLOCKS,
    MAX_LEVEL,
    MAX_PATH_BYTES,
    Bounds,
    Decoder,
    Malformed,
    Member,
    Parsed,
    Row,
    encode,
    encode_refusal,
)
from appliance.types import BlockKind

FIVE = Bounds(text_bytes=1000, pages=5, members=5, member_bytes=100)
READABLE = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\t\n"))


def frames(*parts: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def decode(data: bytes, bounds: Bounds, piece_bytes: int = 7) -> Parsed:
    """As it comes through a pipe, in pieces."""
    decoder = Decoder(bounds)
    for at in range(0, len(data), piece_bytes):
        decoder.feed(data[at : at + piece_bytes])
    return decoder.parsed()


def header(**fields: object) -> bytes:
    return json.dumps({"media_type": "text/plain", "parser": "text 1", "pages": 1, "members": 0} | fields).encode()


def blocks(*rows: tuple[int, int, int, int, int]) -> bytes:
    return b"".join(BLOCK.pack(*row) for row in rows)


@st.composite
def documents(draw: st.DrawFn) -> tuple[list[str], list[Row]]:
    pages = draw(st.lists(READABLE, min_size=1, max_size=5))
    rows: list[Row] = []
    for page, text in enumerate(pages, 1):
        borders = sorted(draw(st.sets(st.integers(0, len(text)), max_size=6)))
        for start, end in pairwise(borders):
            kind = draw(st.sampled_from(KINDS))
            rows.append((kind, draw(st.integers(1, MAX_LEVEL)) if kind == "heading" else 0, page, start, end))
    return pages, rows


PATHS = st.binary(min_size=1, max_size=20).map(lambda path: path.decode("utf-8", "surrogateescape"))
TAKEN = st.tuples(PATHS, st.binary(max_size=20), st.just(""))
LEFT_OUT = st.tuples(PATHS, st.just(b""), st.just("It is a link."))


@given(documents(), st.lists(TAKEN | LEFT_OUT, max_size=5), st.integers(1, 200))
def test_what_is_encoded_is_decoded_however_it_comes(
    document: tuple[list[str], list[Row]], members: list[Member], piece_bytes: int
) -> None:
    pages, rows = document
    data = b"".join(encode(("text/plain", "text 1", pages, rows, members)))
    assert len(data) <= FIVE.result_bytes
    assert decode(data, FIVE, piece_bytes) == ("text/plain", "text 1", tuple(pages), tuple(rows), tuple(members))


def test_a_large_member_is_in_memory_once_while_it_comes() -> None:
    bounds, size_bytes = Bounds(text_bytes=1000, pages=1, members=1, member_bytes=32 << 20), 32 << 20
    pieces = encode(("application/zip", "zip 1", (), (), [("a", bytes(size_bytes), "")]))
    tracemalloc.start()
    decoder = Decoder(bounds)
    for piece in pieces:
        for at in range(0, len(piece), 1 << 16):
            decoder.feed(bytes(piece[at : at + (1 << 16)]))
    _, _, _, _, [(_, content, _)] = decoder.parsed()
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content) == size_bytes
    assert most_bytes < 1.2 * size_bytes


def test_frames_of_nothing_and_bytes_without_end_are_not_collected() -> None:
    decoder = Decoder(FIVE)
    with pytest.raises(Malformed, match="more frames"):
        decoder.feed(bytes(4 * (FIVE.frames + 1)))
    decoder = Decoder(FIVE)
    with pytest.raises(DocumentRefused) as refused:
        decoder.feed(b"\xff" * (FIVE.result_bytes + 1))
    assert refused.value.file_reason == "TOO_MUCH_TEXT"


def test_a_container_has_members_and_no_pages() -> None:
    members = (("a/\udcff.txt", b"content", ""), ("../b", b"", "Its path leads out of the container."))
    data = b"".join(encode(("application/zip", "zip 1", (), (), members)))
    assert b"a/\xff.txt" in data
    assert decode(data, FIVE) == ("application/zip", "zip 1", (), (), members)


def container(*members: bytes, count: int = 1) -> bytes:
    return frames(header(pages=0, members=count), b"", *members)


@pytest.mark.parametrize(
    "data",
    [
        frames(header(pages=0, members=0), b""),
        frames(header(pages=0), b""),
        frames(header(members=-1), b"page", b""),
        frames(header(members=True), b"page", b"", b"path", b"", b""),
        frames(header(members="1"), b"page", b"", b"path", b"", b""),
        container(*(b"path", b"", b"") * 6, count=6),
        container(b"path", b"", b"", count=2),
        container(b"path", b"", b"", b"path", b"", b""),
        container(b"path", b""),
        container(b"path"),
        container(),
        container(b"", b"", b"content"),
        container(b"x" * (MAX_PATH_BYTES + 1), b"", b"content"),
        container(b"path", b"", bytes(101)),
        container(b"path", b"", bytes(51), b"other", b"", bytes(50), count=2),
        container(b"path", b"It is a link.", b"content"),
        container(b"path", b"\xff", b""),
        container(b"path", b"two\nlines", b""),
        container(b"path", b"x" * 501, b""),
        container(b"path", b"", b"") + b"\xff\xff\xff\xff",
    ],
)
def test_members_past_their_bounds_or_in_another_form_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data, FIVE)


def test_members_are_believed_only_where_there_may_be_any() -> None:
    data = b"".join(encode(("text/plain", "text 1", ["page"], (), (("path", b"", ""),))))
    with pytest.raises(Malformed, match="more frames"):
        decode(data, Bounds(text_bytes=1000, pages=1))
    with pytest.raises(Malformed, match="member count"):
        decode(data, Bounds(text_bytes=1000, pages=4))


@pytest.mark.parametrize("path", ["", "x" * (MAX_PATH_BYTES + 1), "é" * 2049])
def test_a_member_without_a_sound_name_refuses_its_container_before_anything_is_said(path: str) -> None:
    pieces = encode(("application/zip", "zip 1", (), (), (("a", b"", ""), (path, b"", ""))))
    with pytest.raises(DocumentRefused) as refused:
        next(pieces)
    assert refused.value.file_reason == "MEMBER_NAME"


def test_the_longest_members_fit_into_the_bound_of_a_result() -> None:
    taken, left_out = ("é" * 2048, bytes(100), ""), ("x" * MAX_PATH_BYTES, b"", "\U0001f642" * 500)
    members = (taken, *[left_out] * 4)
    data = b"".join(encode(("application/zip", "zip 1", (), (), members)))
    assert decode(data, FIVE)[4] == members
    assert len(data) <= FIVE.result_bytes


def test_the_kinds_of_blocks_are_those_that_the_rest_of_the_house_knows() -> None:
    assert set(KINDS) == {kind.value for kind in BlockKind}


def test_of_more_blocks_than_are_allowed_the_first_are_kept() -> None:
    rows = [("code", 0, 1, at, at + 1) for at in range(MAX_BLOCKS + 1)]
    data = b"".join(encode(("text/plain", "text 1", ["x" * len(rows)], rows, ())))
    _, _, _, kept, _ = decode(data, Bounds(text_bytes=1 << 20, pages=1), 1 << 16)
    assert list(kept) == rows[:MAX_BLOCKS]


@pytest.mark.parametrize(
    "rows",
    [
        b"\x00",
        blocks((1, 0, 1, 0, 1))[:-1],
        blocks((len(KINDS), 0, 1, 0, 1)),
        blocks((255, 0, 1, 0, 1)),
        blocks((0, 0, 1, 0, 1)),
        blocks((0, MAX_LEVEL + 1, 1, 0, 1)),
        blocks((1, 1, 1, 0, 1)),
        blocks((1, 0, 0, 0, 1)),
        blocks((1, 0, 2, 0, 1)),
        blocks((1, 0, 2**32 - 1, 0, 1)),
        blocks((1, 0, 1, 0, 5)),
        blocks((1, 0, 1, 0, 2**32 - 1)),
        blocks((1, 0, 1, 1, 1)),
        blocks((1, 0, 1, 2, 1)),
        blocks((1, 0, 1, 0, 2), (1, 0, 1, 1, 3)),
        blocks((1, 0, 1, 2, 3), (1, 0, 1, 0, 1)),
        blocks((1, 0, 1, 0, 1)) * (MAX_BLOCKS + 1),
    ],
)
def test_a_block_of_no_kind_out_of_order_or_out_of_its_page_is_malformed(rows: bytes) -> None:
    with pytest.raises(Malformed, match="block"):
        decode(frames(header(), b"page", rows), FIVE)


def test_a_block_s_place_is_counted_in_code_points_not_in_bytes() -> None:
    page = "é🙂"
    assert decode(frames(header(), page.encode(), blocks((4, 0, 1, 0, 2))), FIVE)[3] == (("code", 0, 1, 0, 2),)
    with pytest.raises(Malformed):
        decode(frames(header(), page.encode(), blocks((4, 0, 1, 0, 3))), FIVE)


def test_a_refusal_comes_back_as_one() -> None:
    with pytest.raises(DocumentRefused, match="Too bad") as refused:
        decode(encode_refusal("NOT_UTF8", "Too bad."), FIVE)
    assert refused.value.file_reason == "NOT_UTF8"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00",
        b"\xff\xff\xff\xff{}",
        frames(b"not json"),
        frames(b"[" * 4000),
        frames(b"[1]"),
        frames(b"{}"),
        frames(b"\xff"),
        frames(b" " * 5000 + header(), b"page", b""),
        frames(header()),
        frames(header(), b"page"),
        frames(header(), b"page", b"", b"more"),
        frames(header(), b"page", b"") + b"x",
        frames(header(pages=True), b"page", b""),
        frames(header(pages="1"), b"page", b""),
        frames(header(pages=0)),
        frames(header(pages=-1)),
        frames(header(pages=6), *[b"a"] * 6, b""),
        frames(header(pages=1e9)),
        frames(header(parser=""), b"page", b""),
        frames(header(parser="x" * 501), b"page", b""),
        frames(header(parser="a\nb"), b"page", b""),
        frames(header(media_type=None), b"page", b""),
        frames(header(other=1), b"page", b""),
        frames(header(), b"\xff\xfe", b""),
        frames(header(), b"\xed\xa0\x80", b""),
        frames(header(), b"nul \x00", b""),
        frames(header(), b"escape \x1b[2J", b""),
        frames(header(), "c1 \x9b".encode(), b""),
        encode_refusal("lower case", "message"),
        encode_refusal("REASON", "two\nlines"),
        encode_refusal("REASON", "right to left \u202e"),
        encode_refusal("REASON", "message") + b"x",
    ],
)
def test_a_broken_rule_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data, FIVE)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data, FIVE)


@given(st.lists(st.binary(max_size=12), max_size=8))
def test_no_frames_after_a_sound_header_raise_anything_else(parts: list[bytes]) -> None:
    with contextlib.suppress(Malformed):
        _, _, pages, _, members = decode(frames(header(members=2), *parts), FIVE)
        assert (len(pages), len(members)) == (1, 2)
