"""The whole library, encrypted, beside the same code with a cipher that does nothing; and as it grows."""

import gc
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from appliance.knowledge.embedders import built_in
from appliance.knowledge.libraries import Bounds, Libraries
from appliance.knowledge.library import Library
from appliance.ports import Buffer, Cipher
from appliance.types import EVERYONE
from appliance.vault import FileKeyring, FileTenantKeys
from tests.bench.knowledge_corpus import DIM, PAGES, MarkedEmbedder, Texts, Vectors, documents
from tests.bench.knowledge_index import resident_bytes

SEAL_PASSAGES = 20_000  # the appliance's own defaults, but for memory, which must hold all that grows here
_HOT_BYTES = 4 << 30
_CACHE_BYTES = 256 << 20
_NAME = "bench"
_ALL = frozenset({EVERYONE})
_LIMIT = 10
_TAG = bytes(16)


class PlainCipher:
    """`ports.Cipher` that hides nothing and checks nothing."""

    def seal(self, nonce: bytes, plaintext: Buffer, aad: bytes) -> bytes:
        return bytes(plaintext) + _TAG

    def open(self, nonce: bytes, ciphertext: Buffer, aad: bytes) -> bytes:
        return bytes(memoryview(ciphertext)[: -len(_TAG)])


class PlainKeyring(FileKeyring):
    """`ports.Keyring` whose ciphers are plain; keys and signatures cost what they cost, a few a segment."""

    def cipher(self, key: bytes) -> Cipher:
        return PlainCipher()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a library lies, and how it is read."""

    folder: Path
    encrypted: bool

    def open(self, known: Vectors) -> Library:
        keyrings = FileKeyring if self.encrypted else PlainKeyring
        keyring = keyrings.open(self.folder / "vault", self.folder / "knowledge")
        tenants = FileTenantKeys(self.folder / "vault" / "tenants", keyring)
        bounds = Bounds(
            hot_bytes=_HOT_BYTES, cache_bytes=_CACHE_BYTES, seal_passages=SEAL_PASSAGES, seal_seconds=1 << 30
        )
        embedders = built_in(MarkedEmbedder(known))
        return Libraries(self.folder / "knowledge", self.folder / "vault", keyring, tenants, embedders, bounds).of(
            "bench"
        )


@dataclass(slots=True)
class Spent:
    """Seconds by the clock, and of the processor."""

    clock: float = 0.0
    processor: float = 0.0

    @contextmanager
    def more(self) -> Iterator[None]:
        clock, processor = time.perf_counter(), time.process_time()
        yield
        self.clock += time.perf_counter() - clock
        self.processor += time.process_time() - processor


def ingest_in_turn(libraries: Sequence[Library], first: int, end: int) -> list[Spent]:
    """What each library spent to take the rows; a document at a time, the first in turn."""
    spent, started = [Spent() for _ in libraries], time.perf_counter()

    def tell(what: str) -> None:
        print(f"  {time.perf_counter() - started:5.0f} s  {what}", file=sys.stderr, flush=True)

    for number, document in enumerate(documents(first, end)):
        for turn in range(len(libraries)):
            at = (number + turn) % len(libraries)
            with spent[at].more():
                libraries[at].add(_NAME, document)
        if (first + number * PAGES) % 10_000 == 0:
            tell(f"{first + number * PAGES:,} of {end:,} chunks")
    for at, library in enumerate(libraries):
        tell(f"putting segments together, {at + 1} of {len(libraries)}")
        with spent[at].more():
            library.compact(_NAME)
    return spent


def query_seconds(libraries: Sequence[Library], count: int, rounds: int) -> list[list[float]]:
    """Seconds by query of each library, in turn; the first round is not counted."""
    queries = [Texts().query(number) for number in range(count)]
    spent: list[list[float]] = [[] for _ in libraries]
    for turn in range(rounds + 1):
        for number, query in enumerate(queries):
            for step in range(len(libraries)):
                at = (number + turn + step) % len(libraries)
                begun = time.perf_counter()
                libraries[at].show(_NAME, query, _ALL, libraries[at].rank(_NAME, query, _ALL, _LIMIT))
                if turn:
                    spent[at].append(time.perf_counter() - begun)
    return spent


def encrypted_beside_plain(folder: Path, known: Vectors, queries: int) -> dict[str, float]:
    """Ingest and queries, the same code with and without encryption."""
    places = [Place(folder / name, name == "encrypted") for name in ("encrypted", "plain")]
    libraries = [place.open(known) for place in places]
    for library in libraries:
        library.create(_NAME)
    ingest = ingest_in_turn(libraries, 0, len(known.rows))
    spent = query_seconds(libraries, queries, rounds=3)
    p50, p95 = (np.percentile(spent, at, axis=1) * 1e3 for at in (50, 95))
    print(f"\nlibrary of {len(known.rows)} chunks{'ingest s':>12}{'CPU s':>8}{'query p50 ms':>14}{'p95 ms':>9}")
    for at, place in enumerate(places):
        of = ingest[at]
        print(f"{place.folder.name:26}{of.clock:10.1f}{of.processor:8.1f}{p50[at]:14.2f}{p95[at]:9.2f}", flush=True)
    for library in libraries:
        library.close()
    shutil.rmtree(places[1].folder)
    return {
        "encrypted_query_p95_vs_plain": float(p95[0] / p95[1]),
        "encrypted_ingest_vs_plain": ingest[0].clock / ingest[1].clock,
        "encrypted_ingest_cpu_vs_plain": ingest[0].processor / ingest[1].processor,
        "ingest_chunks_per_s": len(known.rows) / ingest[0].clock,
    }


@dataclass(frozen=True, slots=True)
class Size:
    """A library of that many chunks, opened by a new process. Milliseconds, but for reopen_s."""

    chunks: int
    reopen_s: float
    first_query: float
    cold_p50: float
    p50: float
    p95: float
    resident_bytes_a_chunk: float


def grow(folder: Path, sizes: Sequence[int], known: Vectors, queries: int) -> list[Size]:
    """One encrypted library at each size; what it holds already is not ingested again."""
    place = Place(folder / "encrypted", encrypted=True)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "queries.npy", known.queries)
    measured: list[Size] = []
    print(f"\n{'chunks':>9}{'reopen s':>10}{'first ms':>10}{'cold p50':>10}{'p50 ms':>9}{'p95 ms':>9}{'B a chunk':>15}")
    for size in sizes:
        library = place.open(known)
        if not library.collections():
            library.create(_NAME)
        held = library.describe(_NAME, _ALL).passage_count
        if held > size:
            raise SystemExit(f"{folder} holds {held} chunks already, more than {size}.")
        ingest_in_turn([library], held, size)
        library.close()
        del library
        gc.collect()
        print("  asking", file=sys.stderr, flush=True)
        measured.append(_measure_apart(folder, queries))
        one = measured[-1]
        print(
            f"{one.chunks:9}{one.reopen_s:10.2f}{one.first_query:10.1f}{one.cold_p50:10.2f}{one.p50:9.2f}{one.p95:9.2f}"
            f"{one.resident_bytes_a_chunk:15.0f}",
            flush=True,
        )
    return measured


def _measure_apart(folder: Path, queries: int) -> Size:
    command = [sys.executable, "-m", __name__, str(folder), str(queries)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Size(**json.loads(run.stdout))


def _open_and_tell(folder: Path, queries: int) -> None:
    known = Vectors(np.empty((0, DIM), np.float32), np.load(folder / "queries.npy"))
    before = resident_bytes()
    begun = time.perf_counter()
    library = Place(folder / "encrypted", encrypted=True).open(known)
    chunks = library.describe(_NAME, _ALL).passage_count
    reopen = time.perf_counter() - begun
    first, *cold = _times(library, 50, first=queries)
    _times(library, queries, first=0)
    warm = _times(library, queries, first=0) + _times(library, queries, first=0)
    resident = resident_bytes() - before
    size = Size(
        chunks,
        reopen,
        first * 1e3,
        float(np.median(cold)) * 1e3,
        float(np.median(warm)) * 1e3,
        float(np.percentile(warm, 95)) * 1e3,
        resident / chunks,
    )
    print(json.dumps({name: getattr(size, name) for name in Size.__slots__}))


def _times(library: Library, count: int, first: int) -> list[float]:
    texts = Texts()
    spent = []
    for number in range(first, first + count):
        query = texts.query(number)
        begun = time.perf_counter()
        library.show(_NAME, query, _ALL, library.rank(_NAME, query, _ALL, _LIMIT))
        spent.append(time.perf_counter() - begun)
    return spent


if __name__ == "__main__":
    _open_and_tell(Path(sys.argv[1]), int(sys.argv[2]))
