"""A reader of collections on disk, made from docs/reference/storage-format.md and nothing else: where the page or the
code is wrong, it fails. It imports nothing of the appliance, trusts nothing, and is slow.
"""

import hashlib
import json
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Facts = dict[str, Any]
BLOCK_KINDS = ("heading", "paragraph", "list", "table", "code")


@dataclass(frozen=True)
class Passage:
    """section: its range on the page; vector: float32 of what is stored as float16."""

    page: int
    start: int
    end: int
    section: tuple[int, int]
    heading: str
    repeated: str
    vector: Floats


@dataclass(frozen=True)
class Document:
    """facts: its fields, less readers and metadata. blocks: (kind, page, start, end, level)."""

    facts: Facts
    metadata: Facts
    readers: frozenset[str]
    pages: tuple[str, ...]
    passages: tuple[Passage, ...]
    blocks: tuple[tuple[str, int, int, int, int], ...] = ()

    def text(self, passage: Passage) -> str:
        return self.pages[passage.page - 1][passage.start : passage.end]


def number(value: int) -> bytes:
    """A nonce."""
    return value.to_bytes(12, "big")


# --- keys


def unwrap(wrapped: bytes, context: bytes, *under: bytes) -> bytes:
    assert len(wrapped) == 61
    assert wrapped[0] == 1
    for key in under:
        with suppress(InvalidTag):
            return AESGCM(key).decrypt(wrapped[1:13], wrapped[13:], b"appliance wrapped key\0\x01" + context)
    raise AssertionError("no key opens it")


def key_file(path: Path, kind: int) -> bytes:
    raw = path.read_bytes()
    assert raw[:12] == b"APPLKEY\n" + struct.pack(">HH", 1, kind)
    assert hashlib.sha256(raw[:-32]).digest() == raw[-32:]
    return raw[12:-32]


class Keys:
    """The box's; directory: <data-dir>/keys."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        slots = (directory / "slots" / name for name in ("file.key", "next.key"))
        self._roots = [key_file(path, 1) for path in slots if path.exists()]
        seed = unwrap(key_file(directory / "signing.key", 2), b"ed25519 signing key of this box", *self._roots)
        self._verifier = Ed25519PrivateKey.from_private_bytes(seed).public_key()

    def tenant(self, name: str, epoch: int) -> bytes:
        context = b"tenant key\0" + name.encode() + b"\0" + struct.pack(">I", epoch)
        return unwrap(key_file(self.directory / "tenants" / name / str(epoch), 4), context, *self._roots)

    def signed(self, raw: bytes) -> bytes:
        """Without the signature at its end."""
        self._verifier.verify(raw[-64:], raw[:-64])
        return raw[:-64]

    def mark(self, uid: bytes) -> tuple[int, int, bytes]:
        """Generation, next seq, sha256 of the manifest."""
        raw = (self.directory / "marks" / uid.hex()).read_bytes()
        assert len(raw) == 8192
        found = []
        for slot in filter(any, (raw[:4096], raw[4096:])):
            magic, version, zeros, of, count, generation, next_seq, digest = struct.unpack(
                ">4sHH16sQQQ32s", self.signed(slot[:144])
            )
            assert (magic, version, zeros, of, any(slot[144:])) == (b"AKHW", 1, 0, uid, False)
            found.append((count, generation, next_seq, digest))
        return max(found)[1:]


# --- a collection


class Collection:
    """Opened and read whole; directory: <data-dir>/knowledge/<tenant>/<collection>."""

    def __init__(self, keys: Keys, directory: Path) -> None:
        self._directory = directory
        self.manifest = self._manifest(keys)
        self.segments = [self._segment(entry) for entry in self.manifest["segments"]]
        self.documents = {one.facts["id"]: one for segment in self.segments for one in segment.documents}
        for document in self.manifest["deleted"]:
            self.documents.pop(document)
        for document, readers in self.manifest.get("readers", {}).items():
            self._set_readers(document, readers)
        self.records = 0
        for entry in self.manifest["wals"]:
            for payload in self._log(entry):
                self._apply(payload)
                self.records += 1

    def _manifest(self, keys: Keys) -> Facts:
        named = re.fullmatch(rb"(\d+) ([0-9a-f]{64})\n", (self._directory / "CURRENT").read_bytes())
        assert named
        raw = (self._directory / "mf" / named[1].decode()).read_bytes()
        digest = hashlib.sha256(raw).digest()
        assert digest.hex() == named[2].decode()
        header, body = raw[:36], keys.signed(raw)
        magic, version, zeros, self.uid, generation, epoch = struct.unpack(">4sHH16sQI", header)
        assert (magic, version, zeros, generation) == (b"AKMF", 2, 0, int(named[1]))
        self._key = self._collection_key(keys, epoch)
        secret = unwrap(body[36:97], header, self._key)
        facts: Facts = json.loads(AESGCM(secret).decrypt(bytes(12), body[97:], header))
        assert facts["generation"] == generation
        marked, self.marked_seq, known = keys.mark(self.uid)
        assert generation > marked or (generation, digest) == (marked, known)
        return facts

    def _collection_key(self, keys: Keys, epoch: int) -> bytes:
        raw = (self._directory / f"key.{epoch}").read_bytes()
        magic, version, zeros, uid, _, own_epoch, under = struct.unpack(">4sHH16sQII", raw[:40])
        assert (magic, version, zeros, uid, own_epoch, len(raw)) == (b"AKCK", 2, 0, self.uid, epoch, 101)
        tenant, name = self._directory.parent.name, self._directory.name
        context = b"collection key\0" + tenant.encode() + b"\0" + name.encode() + b"\0" + raw[:40]
        return unwrap(raw[40:], context, keys.tenant(tenant, under))

    def _file_key(self, purpose: bytes, entry: Facts) -> AESGCM:
        context = purpose + b"\0" + self.uid + bytes.fromhex(entry["file_id"])
        return AESGCM(unwrap(bytes.fromhex(entry["wrapped_key"]), context, self._key))

    def _segment(self, entry: Facts) -> "Segment":
        layout = entry["layout"]
        raw = (self._directory / "seg" / layout["file"]).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == layout["file"]
        assert len(raw) == layout["size_bytes"]
        version, size = layout.get("version", 1), layout.get("chunk_bytes", 1 << 20)
        count = -(-layout["plaintext_bytes"] // size)
        header = struct.pack(
            *(">4sHH16s16sIIQ", b"AKSG", version, 1, self.uid, bytes.fromhex(entry["file_id"])),
            *(size, count, layout["plaintext_bytes"]),
        ).ljust(64, b"\0")
        assert raw[:64] == header
        cipher, plain = self._file_key(b"segment", entry), b""
        for k in range(count):
            sealed = raw[64 + k * (size + 16) :][: size + 16]
            plain += cipher.decrypt(number(k), sealed, header + struct.pack(">I", k))
        assert len(plain) == layout["plaintext_bytes"]
        sections = {name: plain[start : start + length] for name, (start, length) in layout["sections"].items()}
        assert not any(start % 64 for start, _ in layout["sections"].values())
        segment = Segment(sections, self.manifest["dimension"]) if version == 2 else segment_of_version_1(sections)
        assert (len(segment.documents), len(segment.owners)) == (entry["documents"], entry["passages"])
        return segment

    def _log(self, entry: Facts) -> Iterator[bytes]:
        """The payloads; a torn write at the end of the last log is left out."""
        raw = (self._directory / "wal" / entry["file_id"]).read_bytes()[: entry["end_bytes"]]
        file_id, header = bytes.fromhex(entry["file_id"]), raw[:64]
        assert header == struct.pack(">4sHH16s16s", b"AKWL", 1, 0, self.uid, file_id).ljust(64, b"\0")
        cipher, at, tag, seq = self._file_key(b"log", entry), 64, bytes(16), entry["first_seq"]
        while at < len(raw):
            assert at % 16 == 0
            length = promised(raw, at, file_id, range(seq, seq + 1))
            sealed, place = raw[at + 16 :][:length], struct.pack(">IQ", length, seq)
            if entry["end_bytes"] is None and is_torn(raw, at, length, file_id, seq):
                break
            plain = cipher.decrypt(number(seq), sealed, header + place + tag)
            (size,) = struct.unpack_from(">I", plain)
            assert not any(plain[4 + size :])
            yield plain[4 : 4 + size]
            at, tag, seq = at + 16 + length, sealed[-16:], seq + 1
        self.next_seq = seq

    def is_older_than_its_mark(self) -> bool:
        """Whether records are missing that the mark has seen."""
        return bool(self.manifest["wals"]) and self.next_seq < self.marked_seq

    def _apply(self, payload: bytes) -> None:
        kind, rest = payload[0], payload[1:]
        if kind == 5:
            while rest:
                (length,) = struct.unpack_from(">I", rest)
                self._apply(rest[4 : 4 + length])
                rest = rest[4 + length :]
        elif kind in (1, 4):
            added, replaces = added_document(rest, of_version_1=kind == 1)
            self.documents[added.facts["id"]] = added
            self.documents.pop(replaces, None)
        elif kind == 2:
            self.documents.pop(rest.decode(), None)
        else:
            assert kind == 3
            facts = json.loads(rest)
            self._set_readers(facts["document"], facts["readers"])

    def _set_readers(self, document: str, readers: Sequence[str]) -> None:
        if found := self.documents.get(document):
            facts = vars(found) | {"readers": frozenset(readers)}
            self.documents[document] = Document(**facts)


def promised(raw: bytes, at: int, file_id: bytes, seqs: range) -> int:
    """How many bytes of ciphertext and tag the head there promises, 0 where it is none of a record with those seqs."""
    if len(raw) < at + 16:
        return 0
    length, seq, check = struct.unpack_from(">IQI", raw, at)
    return length if seq in seqs and check == zlib.crc32(file_id + raw[at : at + 12]) else 0


def is_torn(raw: bytes, at: int, length: int, file_id: bytes, seq: int) -> bool:
    """Whether the record at that byte is what a write left that never ended."""
    end = at + 16 + length if length else len(raw)
    if len(raw) < max(end, at + 16):
        return True
    sectors = [raw[max(at, start) : min(end, start + 512)] for start in range(at - at % 512, end, 512)]
    later = (promised(raw, behind, file_id, range(seq + 1, 1 << 64)) for behind in range(at, len(raw), 16))
    return not all(map(any, sectors)) and not any(later)


def added_document(rest: bytes, of_version_1: bool) -> tuple[Document, str]:
    """What a record that adds one says, and the id of the document that it replaces."""
    (size,) = struct.unpack_from(">I", rest)
    facts, at = {"metadata": {}, "replaces": "", "blocks": []} | json.loads(rest[4 : 4 + size]), 4 + size
    pages = []
    for length in facts.pop("pages"):
        pages.append(rest[at : at + length].decode())
        at += length
    count, columns = facts["passage_count"], 3 if of_version_1 else 7
    rows = np.frombuffer(rest, "<i4", columns * count, at).reshape(count, columns).tolist()
    if of_version_1:
        rows = [[*row, 0, len(pages[row[0] - 1]), 0, 0] for row in rows]
    vectors = np.frombuffer(rest, "<f2", offset=at + 4 * columns * count).reshape(count, -1).astype(np.float32)
    strings, replaces = facts.pop("strings", [""]), facts.pop("replaces")
    passages = tuple(
        Passage(page, start, end, (first, last), strings[heading], strings[repeated], vector)
        for (page, start, end, first, last, heading, repeated), vector in zip(rows, vectors, strict=True)
    )
    blocks = tuple((kind, *place) for kind, *place in facts.pop("blocks"))
    metadata, readers = facts.pop("metadata"), frozenset(facts.pop("readers"))
    facts.pop("collection")
    return Document(facts, metadata, readers, tuple(pages), passages, blocks), replaces


# --- a segment


@dataclass
class Segment:
    sections: Mapping[str, bytes]
    dimension: int
    documents: list[Document] = field(init=False)

    def __post_init__(self) -> None:
        self.owners = np.frombuffer(self.sections["owners"], "<u4").tolist()
        self.halves = np.frombuffer(self.sections["vec_f16"], "<f2").reshape(-1, self.dimension).astype(np.float32)
        passages = [self._passage(row) for row in range(len(self.owners))]
        blocks = list(struct.iter_unpack("<IIIIBB", self.sections["blocks"]))
        ids = [self.sections["ids"][at : at + 16].hex() for at in range(0, len(self.sections["ids"]), 16)]
        self.documents = []
        for ordinal, facts in enumerate(parquet(self.sections["rows"])):
            assert (facts.pop("ordinal"), facts["id"]) == (ordinal, ids[ordinal])
            at, sizes = facts.pop("text_start"), facts.pop("page_bytes")
            pages = pages_of(self.sections["text"], at, sizes)
            metadata = {
                name: value for kind in ("texts", "numbers", "flags") for name, value in facts.pop(kind).items()
            }
            own = tuple(passage for owner, passage in zip(self.owners, passages, strict=True) if owner == ordinal)
            seen = tuple((BLOCK_KINDS[one[4]], *one[1:4], one[5]) for one in blocks if one[0] == ordinal)
            self.documents.append(Document(facts, metadata, frozenset(facts.pop("readers")), pages, own, seen))
        self._check_bytes()

    def _passage(self, row: int) -> Passage:
        page, start, end, first, last, *strings = struct.unpack_from("<9I", self.sections["passages"], 68 * row)
        heading, repeated = (self.sections["strings"][slice(*strings[at : at + 2])].decode() for at in (0, 2))
        return Passage(page, start, end, (first, last), heading, repeated, self.halves[row])

    def _check_bytes(self) -> None:
        """The ranges of bytes against those of code points."""
        passages = [(one, passage) for one in self.documents for passage in one.passages]
        for row, (document, passage) in enumerate(passages):
            start, end, first, last = struct.unpack_from("<4Q", self.sections["passages"], 68 * row + 36)
            page = document.pages[passage.page - 1]
            assert self.sections["text"][start:end].decode() == document.text(passage)
            assert self.sections["text"][first:last].decode() == page[slice(*passage.section)]

    def int8(self) -> Floats:
        """The vectors as int8 says them, float32 [rows, dimension]."""
        raw = self.sections["vec_i8"]
        magic, rows, dimension = struct.unpack_from("<8sII", raw)
        assert (magic, dimension, len(raw)) == (b"VECI8\1\0\0", self.dimension, 16 + rows * (4 + dimension))
        scales = np.frombuffer(raw, "<f4", rows, 16)
        codes = np.frombuffer(raw, np.int8, rows * dimension, 16 + 4 * rows).reshape(rows, dimension)
        vectors: Floats = codes * scales[:, None]
        return vectors

    def index(self) -> "Index":
        return Index(self.sections["postings"], self.sections["positions"])

    def graph(self) -> "Graph":
        return Graph(self.sections["graph"])


@dataclass
class OldSegment:
    documents: list[Document]
    owners: list[int]


def segment_of_version_1(sections: Mapping[str, bytes]) -> Any:
    spans = list(struct.iter_unpack("<IIIIQQ", sections["spans"]))
    halves = np.frombuffer(sections["vec_f16"], "<f2").reshape(len(spans), -1).astype(np.float32)
    documents = []
    for ordinal, facts in enumerate(parquet(sections["rows"])):
        assert facts.pop("ordinal") == ordinal
        start, *ends = facts.pop("page_ends")
        pages = pages_of(sections["text"], start, np.diff([start, *ends]).tolist())
        own = [row for row, span in enumerate(spans) if span[0] == ordinal]
        passages = tuple(
            Passage(page, first, last, (0, len(pages[page - 1])), "", "", halves[row])
            for row in own
            for _, page, first, last, at, end in [spans[row]]
            if sections["text"][at:end].decode() == pages[page - 1][first:last]
        )
        assert len(passages) == len(own)
        documents.append(Document(facts, {}, frozenset(facts.pop("readers")), pages, passages))
    return OldSegment(documents, [span[0] for span in spans])


def pages_of(text: bytes, start: int, sizes: Sequence[int]) -> tuple[str, ...]:
    ends = [start, *(start := start + size for size in sizes)]
    return tuple(text[first:last].decode() for first, last in pairwise(ends))


def parquet(raw: bytes) -> list[Facts]:
    """By DuckDB, which reads files alone."""
    with tempfile.NamedTemporaryFile() as file, duckdb.connect(":memory:") as connection:
        file.write(raw)
        file.flush()
        found = connection.execute("FROM read_parquet(?)", [file.name])
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


# --- indexes


class Index:
    """postings: by term, the positions in each row that holds it; counts: by term, how often each row does."""

    def __init__(self, postings: bytes, positions: bytes) -> None:
        magic, self.rows, terms, vocabulary, lists = struct.unpack_from("<8sIIQQ", postings)
        assert magic == b"POSTING\1"
        sizes = (8 * terms, 4 * terms, 4 * self.rows, terms, vocabulary, lists)
        ends = np.cumsum([32, *sizes]).tolist()
        assert ends[-1] == len(postings)
        list_ends, term_ends, lengths, self.kinds, names, raw = (postings[first:last] for first, last in pairwise(ends))
        self.lengths = np.frombuffer(lengths, "<u4").tolist()
        self.terms = parts(names, np.frombuffer(term_ends, "<u4").tolist())
        assert self.terms == sorted(set(self.terms))
        assert all(1 <= len(term) <= 255 for term in self.terms)
        position_ends = np.frombuffer(positions, "<u8", terms).tolist()
        packed = parts(positions[8 * terms :], position_ends)
        self.counts: dict[bytes, dict[int, int]] = {}
        self.postings: dict[bytes, dict[int, list[int]]] = {}
        self.widths: set[int] = set()
        for term, kind, held, where in zip(
            self.terms, self.kinds, parts(raw, np.frombuffer(list_ends, "<u8").tolist()), packed, strict=True
        ):
            counts = self._list(kind, held)
            width, rest = divmod(len(where), sum(counts.values()))
            assert rest == 0
            self.widths.add(width)
            left = np.frombuffer(where, f"<u{width}").tolist()
            self.counts[term], self.postings[term] = counts, {}
            for row, count in counts.items():
                self.postings[term][row], left = left[:count], left[count:]

    def _list(self, kind: int, held: bytes) -> dict[int, int]:
        if kind == 0:
            assert len(held) == self.rows
            return {row: count for row, count in enumerate(held) if count}
        width, counted = kind % 8, kind >= 8
        n = len(held) // (width + counted)
        rows = np.cumsum(np.frombuffer(held, f"<u{width}", n), dtype=np.int64).tolist()
        return dict(zip(rows, held[n * width :] if counted else [1] * n, strict=True))


def parts(raw: bytes, ends: Sequence[int]) -> list[bytes]:
    assert (ends[-1] if ends else 0) == len(raw)
    return [raw[first:last] for first, last in zip([0, *ends], ends, strict=False)]


class Graph:
    """levels: for each, from 0 up, the neighbours of each row."""

    def __init__(self, raw: bytes) -> None:
        magic, self.rows, levels, entry = struct.unpack_from("<8sIII", raw)
        assert magic == b"GRAPH\2\0\0"
        at = 20
        self.levels: list[dict[int, list[int]]] = []
        for level in range(levels):
            nodes, links = struct.unpack_from("<II", raw, at)
            at += 8
            rows = list(range(nodes))
            if level:
                rows, at = np.frombuffer(raw, "<u4", nodes, at).tolist(), at + 4 * nodes
            starts, at = np.frombuffer(raw, "<u4", nodes + 1, at).tolist(), at + 4 * (nodes + 1)
            neighbours, at = np.frombuffer(raw, "<u4", links, at).tolist(), at + 4 * links
            assert (rows, starts[0], starts[-1]) == (sorted(set(rows)), 0, links)
            spans = pairwise(starts)
            own = ([rows[one] for one in neighbours[slice(*span)]] for span in spans)
            self.levels.append(dict(zip(rows, own, strict=True)))
        self.entry = rows[entry]
        assert at == len(raw)

    def search(self, query: Floats, vectors: Floats, width: int) -> list[int]:
        """The rows met that are best, `width` of them, best first."""

        def product(row: int) -> float:
            return float(vectors[row] @ query)

        here = self.entry
        for level in self.levels[:0:-1]:
            while (best := max([here, *level[here]], key=product)) != here:
                here = best
        met, best_rows, open_ = {here}, [here], [here]
        while open_:
            here = max(open_, key=product)
            open_.remove(here)
            if len(best_rows) == width and product(here) < product(best_rows[-1]):
                break
            new = [row for row in self.levels[0][here] if row not in met]
            met.update(new)
            open_ += new
            best_rows = sorted([*best_rows, *new], key=product, reverse=True)[:width]
        return best_rows
