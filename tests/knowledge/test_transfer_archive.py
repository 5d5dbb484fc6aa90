"""The exported file itself: what it holds comes back exactly, and nothing that was done to it goes unnoticed."""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import ApplianceError, ArchiveRefused, DocumentRefused, InvalidArgument, NotFound, PassphraseWrong
from appliance.knowledge.storage.durable import NewFile
from appliance.knowledge.transfer import content as content_format
from appliance.knowledge.transfer.archive import CHUNK_BYTES, HEAD_BYTES, TAG_BYTES, ArchiveReader, ArchiveWriter
from appliance.knowledge.transfer.content import ContentReader, ContentWriter, Header
from appliance.types import Block, BlockKind, NewDocument, PassphraseCost
from appliance.vault import FileKeyring

WORDS = "correct horse battery staple"
CHEAP = PassphraseCost(memory_kib=8, passes=1, lanes=1)
TIME = datetime(2026, 3, 1, 12, 30, 15, 123456, UTC)
SEALED_BYTES = CHUNK_BYTES + TAG_BYTES
KEYRING = FileKeyring(bytes(32), bytes(range(32)))

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
times = st.datetimes(datetime(1900, 1, 1), datetime(3000, 1, 1)).map(lambda time: time.replace(tzinfo=UTC))  # noqa: DTZ001
values = st.one_of(texts, st.booleans(), st.floats(allow_nan=False, allow_infinity=False))


@st.composite
def new_documents(draw: st.DrawFn) -> NewDocument:
    pages = tuple(draw(st.lists(texts, min_size=1, max_size=8)))
    page = draw(st.integers(1, len(pages)))
    start = draw(st.integers(0, len(pages[page - 1])))
    end = draw(st.integers(start, len(pages[page - 1])))
    kind = draw(st.sampled_from(BlockKind))
    return NewDocument(
        title=draw(texts),
        media_type=draw(texts),
        sha256=draw(texts),
        size_bytes=draw(st.integers(0, 1 << 50)),
        source=draw(texts),
        parser=draw(texts),
        pipeline=draw(texts),
        pages=pages,
        readers=frozenset(draw(st.lists(texts, max_size=4))),
        blocks=(Block(kind, page, start, end, 2 * (kind is BlockKind.HEADING)),) if start < end else (),
        metadata=draw(st.dictionaries(texts, values, max_size=4)),
        create_time=draw(times),
    )


DOCUMENT = NewDocument(
    "badges.md", "text/markdown", "ab" * 32, 7, "stick", "markdown/1", "v1", ("Größe", "", "日本"), create_time=TIME
)


def write(path: Path, content: bytes, cost: PassphraseCost = CHEAP) -> Path:
    with NewFile(path.parent) as file:
        archive = ArchiveWriter(file, KEYRING, WORDS, cost)
        archive.write(content)
        archive.finish()
        file.publish(path.name)
    return path


def read(path: Path, size: int, passphrase: str = WORDS) -> bytes:
    with ArchiveReader(path, KEYRING, passphrase) as archive:
        content = archive.read(size)
        archive.finish()
        return content


class Memory:
    """A sink and a source."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.at = 0

    def write(self, content: bytes) -> None:
        self.content += content

    def read(self, size: int) -> bytes:
        piece = self.content[self.at : self.at + size]
        self.at += size
        if len(piece) < size:
            raise ArchiveRefused("It holds less than it says.")
        return piece


def content_of(documents: Sequence[NewDocument]) -> bytes:
    sink = Memory()
    writer = ContentWriter(sink, Header("handbook", len(documents), TIME, TIME))
    for document in documents:
        writer.add(document)
    writer.finish()
    return sink.content


def documents_of(content: bytes) -> list[NewDocument]:
    return list(ContentReader(Memory(content)).documents())


# --- the chunks


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
def test_content_of_any_size_comes_back(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    path = write(tmp_path / "a.export", content)
    assert read(path, size) == content
    assert path.stat().st_size == HEAD_BYTES + size + TAG_BYTES * -(-size // CHUNK_BYTES)
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_file_is_as_its_format_page_says(tmp_path: Path) -> None:
    """Opened by hand, with nothing of the reader but the keyring."""
    raw = write(tmp_path / "a.export", b"x" * CHUNK_BYTES + b"the rest").read_bytes()
    magic, version, zeros, memory_kib, passes, lanes, salt, check = struct.unpack(">4sHHIII16s32s", raw[:68])
    assert (magic, version, zeros, memory_kib, passes, lanes) == (b"AKEX", 1, 0, 8, 1, 1)
    assert raw[68:96] == bytes(28)
    assert raw[96:128] == hashlib.sha256(raw[:96]).digest()
    stretched = KEYRING.stretch(WORDS, salt, CHEAP)
    assert stretched[32:] == check
    cipher = KEYRING.cipher(stretched[:32])
    first, last = raw[128 : 128 + SEALED_BYTES], raw[128 + SEALED_BYTES :]
    assert cipher.open(bytes(12), first, raw[:128]) == b"x" * CHUNK_BYTES
    assert cipher.open(bytes(10) + b"\x01\x01", last, raw[:128]) == b"the rest"


def test_two_files_of_the_same_content_and_passphrase_share_no_byte_of_it(tmp_path: Path) -> None:
    one, other = (write(tmp_path / name, b"the same" * 100).read_bytes() for name in ("a", "b"))
    assert one[HEAD_BYTES:] != other[HEAD_BYTES:]
    assert b"the same" not in one


def test_another_passphrase_is_told_from_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.export", b"content")
    with pytest.raises(PassphraseWrong, match=r"a\.export"):
        read(path, 7, "correct horse battery stable")


def test_a_passphrase_typed_on_another_keyboard_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "a.export"
    with NewFile(tmp_path) as file:
        archive = ArchiveWriter(file, KEYRING, "Schlüssel", CHEAP)
        archive.write(b"content")
        archive.finish()
        file.publish(path.name)
    assert read(path, 7, "Schlu\u0308ssel") == b"content"


@pytest.mark.long
def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    content = content_of([DOCUMENT])
    path = write(tmp_path / "a.export", content)
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ArchiveRefused):
            read(path, len(content))


def test_every_shorter_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.export", b"some content")
    raw = path.read_bytes()
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(ArchiveRefused):
            read(path, 12)


def damage(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A change of what follows the head."""
    return lambda raw: raw[:HEAD_BYTES] + change(raw[HEAD_BYTES:])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda raw: b"PK\x03\x04" + raw[4:], "is no exported collection"),
        (lambda raw: raw[:50] + bytes([raw[50] ^ 1]) + raw[51:], "is damaged in its first 128 bytes"),
        (lambda raw: raw[:100], "is cut short"),
        (damage(lambda chunks: b""), "ends too early"),
        (damage(lambda chunks: chunks[:SEALED_BYTES]), "is cut short: chunk 0 is not its last one"),
        (damage(lambda chunks: chunks[:-1]), "is damaged or cut short in chunk 2"),
        (
            damage(lambda chunks: chunks[SEALED_BYTES : 2 * SEALED_BYTES] + chunks[:SEALED_BYTES] + chunks[-30:]),
            "is damaged, or its chunks were reordered, in chunk 0, bytes 128 to 1048720",
        ),
        (damage(lambda chunks: chunks[:SEALED_BYTES] + chunks[-20:]), "in chunk 1"),
        (damage(lambda chunks: chunks + b"more"), "is damaged or cut short in chunk 2"),
        (damage(lambda chunks: chunks + bytes(SEALED_BYTES)), "in chunk 2"),
    ],
)
def test_what_was_done_to_a_file_is_told(tmp_path: Path, change: Callable[[bytes], bytes], told: str) -> None:
    path = write(tmp_path / "a.export", bytes(2 * CHUNK_BYTES + 4))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArchiveRefused, match=told):
        read(path, 2 * CHUNK_BYTES + 4)


def test_a_chunk_of_another_file_is_refused(tmp_path: Path) -> None:
    one, other = (write(tmp_path / name, bytes(10)) for name in ("a", "b"))
    one.write_bytes(one.read_bytes()[:HEAD_BYTES] + other.read_bytes()[HEAD_BYTES:])
    with pytest.raises(ArchiveRefused, match="in chunk 0"):
        read(one, 10)


def with_head(raw: bytes, at: int, value: bytes) -> bytes:
    """A head that somebody wrote on purpose: its digest is right."""
    fields = raw[:at] + value + raw[at + len(value) : 96]
    return fields + hashlib.sha256(fields).digest() + raw[HEAD_BYTES:]


@pytest.mark.parametrize(
    ("at", "value", "told"),
    [
        (4, b"\x00\x02", "version 2, which this release does not know"),
        (6, b"\x00\x01", "does not know"),
        (95, b"\x01", "does not know"),
        (8, b"\xff\xff\xff\xff", "more work"),
        (8, b"\x00\x00\x00\x07", "more work"),
        (12, b"\xff\xff\xff\xff", "more work"),
        (12, bytes(4), "more work"),
        (16, b"\x00\x00\x00\x11", "more work"),
        (16, bytes(4), "more work"),
    ],
)
def test_a_head_made_to_harm_is_refused_before_any_work(tmp_path: Path, at: int, value: bytes, told: str) -> None:
    path = write(tmp_path / "a.export", b"content")
    path.write_bytes(with_head(path.read_bytes(), at, value))
    with pytest.raises(ArchiveRefused, match=told):
        read(path, 7)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.export", b"content")
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for name, error in {"link": InvalidArgument, "pipe": InvalidArgument, ".": InvalidArgument, "no": NotFound}.items():
        with pytest.raises(error):
            read(tmp_path / name, 7)


def test_a_passphrase_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.export", b"content")
    with pytest.raises(InvalidArgument, match="passphrase"):
        read(path, 7, "half\ud800")


# --- the content


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(new_documents(), max_size=4))
def test_documents_come_back_exactly(documents: list[NewDocument]) -> None:
    assert documents_of(content_of(documents)) == documents


def test_the_header_comes_back() -> None:
    assert ContentReader(Memory(content_of([DOCUMENT]))).header == Header("handbook", 1, TIME, TIME)


def records(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    at = 0
    while at < len(content):
        kind, head_bytes, text_bytes = struct.unpack_from(">BII", content, at)
        at += 9
        yield kind, content[at : at + head_bytes], content[at + head_bytes : at + head_bytes + text_bytes]
        at += head_bytes + text_bytes


def to_content(parts: list[tuple[int, bytes, bytes]]) -> bytes:
    """Records as one who knows the passphrase might write them, with a right end."""
    raw = b"".join(struct.pack(">BII", kind, len(head), len(text)) + head + text for kind, head, text in parts)
    end = json.dumps({"sha256": hashlib.sha256(raw).hexdigest()}).encode()
    return raw + struct.pack(">BII", 3, len(end), 0) + end


FORGED: dict[str, object] = {
    "title": 5,
    "size_bytes": -1,
    "readers": ["everyone", 5],
    "metadata": {"year": [1]},
    "blocks": [["table", 9, 0, 1, 0]],
    "pages": [1],
    "create_time": 1 << 80,
    "sha256": None,
}


@pytest.mark.parametrize("field", FORGED)
def test_a_forged_field_is_refused_and_its_content_not_told(field: str) -> None:
    header, (kind, head, text), _ = records(content_of([DOCUMENT]))
    facts = json.loads(head) | {field: FORGED[field]}
    with pytest.raises(ArchiveRefused, match="document 1 is not what an export writes") as told:
        documents_of(to_content([header, (kind, json.dumps(facts).encode(), text)]))
    assert "Größe" not in str(told.value)


@pytest.mark.parametrize(
    "blocks",
    [
        [["table", 1, 0, 4, 0], ["table", 1, 3, 6, 0]],
        [["table", 1, 0, 4, 0]] * 2,
        [["table", 1, 4, 6, 0], ["table", 1, 0, 2, 0]],
        [["table", 1, 3, 3, 0]],
        [["table", 1, 0, 1, 1]],
        [["heading", 1, 0, 1, 0]],
        [["heading", 1, 0, 1, 10]],
        [["table", 0, 0, 1, 0]],
        [["picture", 1, 0, 1, 0]],
        [["table", 1, 0, True, 0]],
        [["table", 1, 0, 1]],
        ["table"],
    ],
)
def test_structure_that_no_parser_gives_is_refused(blocks: list[object]) -> None:
    header, (kind, head, text), _ = records(content_of([replace(DOCUMENT, pages=("Badges expire.",), blocks=())]))
    good = json.loads(head) | {"blocks": [["heading", 1, 0, 6, 1], ["table", 1, 6, 14, 0]]}
    (document,) = documents_of(to_content([header, (kind, json.dumps(good).encode(), text)]))
    assert [(block.start, block.end) for block in document.blocks] == [(0, 6), (6, 14)]
    with pytest.raises(ArchiveRefused, match="document 1 is not what an export writes"):
        documents_of(to_content([header, (kind, json.dumps(good | {"blocks": blocks}).encode(), text)]))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"title":NaN}',
        b'{"title":"x"}',
        json.dumps({"title": "\ud800"}).encode(),
    ],
)
def test_a_forged_record_is_refused(head: bytes) -> None:
    header, *_ = records(content_of([DOCUMENT]))
    with pytest.raises(ArchiveRefused):
        documents_of(to_content([header, (2, head, b"")]))


def test_a_lone_surrogate_and_an_infinite_number_are_no_document() -> None:
    header, (kind, head, text), _ = records(content_of([DOCUMENT]))
    for old, new in [(b'"badges.md"', b'"\\ud800"'), (b'"metadata":{}', b'"metadata":{"a":1e999}')]:
        assert old in head
        with pytest.raises(ArchiveRefused, match="document 1"):
            documents_of(to_content([header, (kind, head.replace(old, new), text)]))


def test_counts_that_do_not_hold_are_refused() -> None:
    header, document, end = records(content_of([DOCUMENT]))
    for parts in ([header, document, document], [header], [document], [header, end]):
        with pytest.raises(ArchiveRefused):
            documents_of(to_content(parts))
    with pytest.raises(ArchiveRefused, match="not what its end says"):
        documents_of(content_of([DOCUMENT]).replace(b"badges.md", b"wedges.md"))


@pytest.mark.parametrize("lengths", [(1, (1 << 32) - 1, 0), (1, 2, 1), (2, (64 << 20) + 1, 0), (2, 2, (1 << 30) + 1)])
def test_a_record_that_says_that_it_is_huge_is_not_read(lengths: tuple[int, int, int]) -> None:
    header = content_of([DOCUMENT])
    kind, head_bytes, text_bytes = next(records(header))
    before = b"" if lengths[0] == kind else header[: 9 + len(head_bytes) + len(text_bytes)]
    with pytest.raises(ArchiveRefused, match="longer than an export writes"):
        documents_of(before + struct.pack(">BII", *lengths))


def test_a_document_that_could_not_be_imported_is_not_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(content_format._MAX_BYTES, 2, (1 << 16, 4))
    with pytest.raises(DocumentRefused, match="longer than an exported file can hold") as refused:
        content_of([DOCUMENT])
    assert refused.value.file_reason == "TOO_LARGE"


def test_what_follows_the_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.export", content_of([DOCUMENT]) + b"more")
    with ArchiveReader(path, KEYRING, WORDS) as archive:
        assert list(ContentReader(archive).documents()) == [DOCUMENT]
        with pytest.raises(ArchiveRefused, match="holds more than it says"):
            archive.finish()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_content_made_of_anything_is_refused_in_words(content: bytes) -> None:
    with pytest.raises(ApplianceError):
        documents_of(content)


def test_a_document_says_nothing_of_what_it_replaced() -> None:
    assert documents_of(content_of([replace(DOCUMENT, replaces="x")])) == [DOCUMENT]
