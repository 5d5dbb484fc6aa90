import contextlib
import json
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import DocumentRefused
from appliance.sandbox import listing
from appliance.sandbox.listing import (
    MAX_FRAME_BYTES,
    FileRow,
    Frames,
    Listing,
    Malformed,
    VolumeRow,
    encode,
    encode_row,
)

VOLUME: VolumeRow = (0, "FAT32", 0, 1000, "1A2B-3C4D", "STICK", "", "")
FILE: FileRow = (0, "folder/a.txt", 10, -5, 3, True, "", "")


def whole(data: bytes, step: int = 1 << 20) -> list[bytes]:
    """The frames of a stream that comes in pieces."""
    frames = Frames()
    found = [frame for at in range(0, len(data), step) for frame in frames.feed(data[at : at + step])]
    frames.finish()
    return found


def framed(*frames: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=5), st.integers(1, 40))
def test_what_is_streamed_arrives_however_it_is_cut(frames: list[bytes], step: int) -> None:
    assert whole(b"".join(encode(frames)), step) == frames


def test_long_pieces_are_cut_into_frames() -> None:
    assert [len(frame) for frame in whole(b"".join(encode([bytes(2 * MAX_FRAME_BYTES + 1)])))] == [
        MAX_FRAME_BYTES,
        MAX_FRAME_BYTES,
        1,
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DocumentRefused("CHAIN_LOOP", "It never ends."), "CHAIN_LOOP"),
        (OSError(5, "Input/output error"), "UNREADABLE"),
        (MemoryError(), "TOO_MUCH_MEMORY"),
        (ValueError("secret content"), "PARSER_FAILED"),
    ],
)
def test_what_is_raised_on_the_way_is_told_at_the_end(error: Exception, reason: str) -> None:
    def failing() -> Iterator[bytes]:
        yield b"before"
        raise error

    frames = Frames()
    assert list(frames.feed(b"".join(encode(failing())))) == [b"before"]
    with pytest.raises(DocumentRefused) as refused:
        frames.finish()
    assert refused.value.file_reason == reason
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        framed(b"more"),
        framed(b"more", b""),
        framed(b"", b"{}") + b"x",
        framed(b"", b"{}", b"more"),
        framed(b"", b"{}", b""),
        framed(b"", b""),
        framed(b"", b"[]"),
        framed(b"", b"{"),
        framed(b"", b'{"reason": "OK"}'),
        framed(b"", b'{"reason": "", "message": "fine"}'),
        framed(b"", b'{"reason": "lower case", "message": "fine"}'),
        framed(b"", b'{"reason": "REASON", "message": "two\\nlines"}'),
        framed(b"", b'{"reason": "REASON", "message": 1}'),
        b"\xff\xff\xff\xff",
        struct.pack(">I", MAX_FRAME_BYTES + 1),
    ],
)
def test_a_stream_of_another_form_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        whole(data)


@given(st.binary(max_size=60))
def test_no_bytes_make_a_stream_raise_anything_else(data: bytes) -> None:
    with contextlib.suppress(Malformed, DocumentRefused):
        whole(data, 7)


def test_a_listing_is_read_back() -> None:
    found = Listing()
    other: VolumeRow = (1, "", 1000, 5, "", "", "TRUNCATED", "It ends before.")
    found.add([encode_row("volume", VOLUME), encode_row("file", FILE), encode_row("volume", other)])
    assert (found.volumes, found.files) == ([VOLUME, other], [FILE])


@pytest.mark.parametrize("field", range(8))
@pytest.mark.parametrize("lie", [None, -1, 1 << 64, 1.5, True, [], "\x1b[2J", "x" * 501, "\ud800"])
@pytest.mark.parametrize("kind", ["volume", "file"])
def test_a_field_of_another_kind_is_malformed(kind: str, field: int, lie: object) -> None:
    if kind == "file" and ((field == 3 and lie == -1) or (field == 5 and lie is True)):
        return  # a time before 1970; a flag
    if kind == "file" and field == 1 and lie in ("\x1b[2J", "x" * 501):
        return  # a path may hold any character, and is shown escaped
    row = list(VOLUME if kind == "volume" else FILE)
    row[field] = lie
    found = Listing()
    if kind == "file":
        found.add([encode_row("volume", VOLUME)])
    with pytest.raises(Malformed):
        found.add([json.dumps([kind, *row]).encode()])


@pytest.mark.parametrize(
    "path", ["/", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/", "a/.", "nul\0", "x" * 4097, "é" * 2049]
)
def test_a_path_that_leads_elsewhere_is_malformed(path: str) -> None:
    found = Listing()
    found.add([encode_row("volume", VOLUME)])
    with pytest.raises(Malformed, match="path"):
        found.add([encode_row("file", (0, path, *FILE[2:]))])


@pytest.mark.parametrize(
    "rows",
    [
        [b"{}"],
        [b"[]"],
        [b"not json"],
        [b"[" * 5000],
        [b'["volume", ' + b"9" * 5000 + b', "", 0, 0, "", "", "", ""]'],
        [encode_row("file", FILE)],
        [encode_row("folder", VOLUME)],
        [encode_row("volume", (1, *VOLUME[1:]))],
        [encode_row("volume", VOLUME), encode_row("volume", VOLUME)],
        [encode_row("volume", VOLUME), encode_row("file", (1, *FILE[1:]))],
        [encode_row("volume", (0, "", 0, 0, "", "", "", ""))],
        [encode_row("volume", (0, "FAT32", 0, 0, "", "", "TRUNCATED", ""))],
        [encode_row("volume", (number, *VOLUME[1:])) for number in range(listing.MAX_VOLUMES + 1)],
    ],
)
def test_rows_out_of_order_or_of_no_sense_are_malformed(rows: list[bytes]) -> None:
    with pytest.raises(Malformed):
        Listing().add(rows)


def test_more_files_than_are_allowed_refuse_the_stick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_FILES", 2)
    found = Listing()
    found.add([encode_row("volume", VOLUME), encode_row("file", FILE), encode_row("file", FILE)])
    with pytest.raises(DocumentRefused) as refused:
        found.add([encode_row("file", FILE)])
    assert refused.value.file_reason == "TOO_MANY_FILES"


@settings(max_examples=50)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=9)))
def test_no_json_makes_a_listing_raise_anything_else(value: object) -> None:
    found = Listing()
    found.add([encode_row("volume", VOLUME)])
    for row in (value, ["file", value], ["file", 0, value, *FILE[2:]], ["volume", 1, value, *VOLUME[2:]]):
        with contextlib.suppress(Malformed):
            found.add([json.dumps(row).encode()])


def test_a_listing_of_long_names_ends_before_the_daemon_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_LISTING_BYTES", 1000)
    found = Listing()
    with pytest.raises(DocumentRefused, match="names") as refused:
        found.add([encode_row("volume", VOLUME), *(encode_row("file", FILE) for _ in range(1000))])
    assert refused.value.file_reason == "TOO_MANY_FILES"
    assert len(found.files) < 20
