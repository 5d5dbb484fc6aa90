"""kill -9 at random points of writing: every acknowledged document is there afterwards, whole and for whom it was said
to be, and no half one is.

`python -m tests.crash --kills N` starts a writer process, reads what it acknowledges, kills it at a random moment,
opens the store again and compares; then the next. Last line: `N passed, M failed`. Another writer, such as a whole
daemon, is another `Workload`.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Protocol

from appliance.errors import Busy, NotFound
from appliance.knowledge.embedders import built_in
from appliance.knowledge.libraries import Bounds, Libraries
from appliance.knowledge.library import Library
from appliance.types import EVERYONE, NewDocument, Passage
from appliance.vault import FileKeyring, FileTenantKeys
from tests.fakes import WordEmbedder
from tests.searching import search

COLLECTION = "crash"
GROUPS = frozenset({EVERYONE})
SEAL_PASSAGES = 40
BATCH = 5
KILLS_A_STORE = 25
"""Then a new one, so that what a kill costs to check stays the same."""

BEGUN = "begun"


@dataclass(frozen=True, slots=True)
class Stored:
    """A document as a reader gets it."""

    pages: tuple[str, ...]
    readers: frozenset[str] = GROUPS


class Workload(Protocol):
    """Writes until it is killed, and can say afterwards what the store holds.

    It may print BEGUN before anything else: from then on it may be killed. A document is known by a number;
    `pages_of(number)` is its text. The process prints a line as it acknowledges: `added NUMBER` or `deleted NUMBER`,
    and `deleting NUMBER` before it asks for a deletion, which a kill may or may not let through; `sharing NUMBER
    READERS` and `shared NUMBER READERS` likewise, of `named`. Documents are written in the order of their numbers;
    `ahead` is how many may be stored and not yet acknowledged.
    """

    ahead: int

    def start(self, directory: Path, first_number: int, seed: int) -> "subprocess.Popen[str]": ...

    def kill(self, directory: Path, process: "subprocess.Popen[str]") -> None:
        """kill -9 of all that works on the directory."""

    def close(self, directory: Path) -> None:
        """Nobody writes to it any more."""

    def stored(self, directory: Path) -> Mapping[int, Stored]:
        """Every document that the store holds, as a reader gets it. Raises where the store does not open."""


def pages_of(number: int) -> tuple[str, ...]:
    """Deterministic text: one to four pages, some empty, some long, not all ASCII."""
    rng = random.Random(number)
    words = ["badge", "Größe", "срок", "expires", "office", f"number{number}", "日本"]
    pages = [
        ". ".join(" ".join(rng.choices(words, k=8)).capitalize() for _ in range(rng.choice([0, 1, 5, 60])))
        for _ in range(rng.randint(0, 3))
    ]
    return (*pages, last_words(number))


def named(readers: frozenset[str]) -> str:
    """Readers as a line names them."""
    return ",".join(sorted(readers))


def last_words(number: int) -> str:
    """What no other document holds."""
    return f"Document {number} ends here."


def check_found(document: str, hits: Sequence[Passage]) -> None:
    """Vectors always find something, so it must be the document whose very words were asked for."""
    assert document in [hit.document for hit in hits], f"{document} is stored and not found by its own words"


def title_of(number: int) -> str:
    return f"document-{number}.txt"


def number_of(title: str) -> int:
    return int(title.removeprefix("document-").removesuffix(".txt"))


class LibraryWorkload:
    """The library alone, with real encryption and real fsync; sealed often, also by another thread, compacted and
    deleted from now and then."""

    ahead = BATCH

    def start(self, directory: Path, first_number: int, seed: int) -> "subprocess.Popen[str]":
        argv = [sys.executable, "-m", "tests.crash", "--write", str(directory), str(first_number), str(seed)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def kill(self, directory: Path, process: "subprocess.Popen[str]") -> None:
        os.killpg(process.pid, signal.SIGKILL)

    def close(self, directory: Path) -> None: ...

    def stored(self, directory: Path) -> Mapping[int, Stored]:
        library = open_library(directory)
        try:
            documents, _ = library.documents(COLLECTION, GROUPS)
            found = {
                number_of(document.title): Stored(library.pages(COLLECTION, document.id, GROUPS), document.readers)
                for document in documents
            }
            assert len(found) == len(documents), "a document is there twice"
            for document in documents[:3]:
                hits = search(library, COLLECTION, last_words(number_of(document.title)), GROUPS, 5).passages
                check_found(document.name, hits)
            return found
        except NotFound:
            return {}
        finally:
            library.close()


def open_library(directory: Path) -> Library:
    keyring = FileKeyring.open(directory / "vault", directory / "knowledge")
    tenant_keys = FileTenantKeys(directory / "vault" / "tenants", keyring)
    bounds = Bounds(hot_bytes=64 << 20, cache_bytes=1 << 20, seal_passages=SEAL_PASSAGES, seal_seconds=3600)
    embedders = built_in(WordEmbedder())
    libraries = Libraries(directory / "knowledge", directory / "vault", keyring, tenant_keys, embedders, bounds)
    return libraries.of("default")


def document_of(number: int) -> NewDocument:
    digest = hashlib.sha256(title_of(number).encode()).hexdigest()
    return NewDocument(title_of(number), "text/plain", digest, 1, "crash", "text/1", "1", pages_of(number))


def tidy(library: Library, seed: int) -> None:
    """Seal and merge beside the writer, so that what it changes falls into the midst of that. Never returns."""
    rng = random.Random(seed)
    while True:
        time.sleep(rng.uniform(0.0, 0.1))
        library.seal_where_old(0.0)
        library.compact_where_due()


def write(directory: Path, first_number: int, seed: int) -> None:
    """The writer process. Never returns."""
    library, rng = open_library(directory), random.Random(seed)
    if not library.collections():
        library.create(COLLECTION)
    number = first_number
    Thread(target=tidy, args=(library, seed), daemon=True).start()
    while True:
        added = library.add(COLLECTION, document_of(number))
        print(f"added {number}", flush=True)
        chance = rng.random()
        if chance < 0.1:
            victim = rng.choice(library.documents(COLLECTION, GROUPS)[0])
            gone = number_of(victim.title)
            print(f"deleting {gone}", flush=True)
            library.delete(COLLECTION, victim.id, GROUPS)
            print(f"deleted {gone}", flush=True)
        elif chance < 0.2:
            victim = rng.choice(library.documents(COLLECTION, GROUPS)[0])
            readers = frozenset({*GROUPS, f"role:{rng.choice(['app', 'admin'])}"})  # everyone finds it all the same
            print(f"sharing {number_of(victim.title)} {named(readers)}", flush=True)
            library.set_readers(COLLECTION, victim.id, readers, GROUPS)
            print(f"shared {number_of(victim.title)} {named(readers)}", flush=True)
        elif chance < 0.3:
            number += 1
            print(f"deleting {number - 1}", flush=True)
            library.add(COLLECTION, replace(document_of(number), replaces=added.id))
            print(f"added {number}", flush=True)
            print(f"deleted {number - 1}", flush=True)
        elif chance < 0.5:
            batch = [document_of(one) for one in range(number + 1, number + 1 + rng.randint(1, BATCH))]
            library.add_all(COLLECTION, batch)
            for _ in batch:
                number += 1
                print(f"added {number}", flush=True)
        elif chance < 0.53:
            with suppress(Busy):  # the other thread merges just now
                library.compact(COLLECTION)
        elif chance < 0.56:
            library.rotate()
        number += 1


def check(workload: Workload, directory: Path, kills: int, seed: int) -> Iterator[str]:
    """One line a kill: empty where all is well, else what is wrong."""
    rng = random.Random(seed)
    expected: set[int] = set()
    shared: dict[int, str] = {}  # by document, the readers that were acknowledged
    next_number = 0
    for kill in range(kills):
        process = workload.start(directory, next_number, rng.randrange(1 << 30))
        lines = _run_and_kill(workload, directory, process, rng.uniform(0.0, 1.5))
        unsure: set[int] = set()
        sharing: dict[int, str] = {}
        begun = next_number  # the first whose acknowledgement the kill may have swallowed
        for line in lines:
            if line == BEGUN:
                continue
            what, number, *readers = line.split(" ")
            if readers:
                {"sharing": sharing, "shared": shared}[what][int(number)] = readers[0]
                continue
            {"added": expected.add, "deleting": unsure.add, "deleted": expected.discard}[what](int(number))
            begun = int(number) + 1 if what == "added" else begun
        stored = workload.stored(directory)
        missing = expected - stored.keys() - unsure
        halves = [number for number, one in stored.items() if one.pages != pages_of(number)]
        astray = [
            number
            for number, one in stored.items()
            if named(one.readers) not in (shared.get(number, named(GROUPS)), sharing.get(number))
        ]
        shared = {number: named(one.readers) for number, one in stored.items()}
        surplus = stored.keys() - expected - set(range(begun, begun + workload.ahead))
        expected, next_number = set(stored), begun + workload.ahead
        silent = [] if lines else ["the writer said nothing"]
        problems = [
            ("missing", sorted(missing)),
            ("half", halves),
            ("for others", astray),
            ("unexpected", sorted(surplus)),
            ("silent", silent),
        ]
        yield "; ".join(f"kill {kill}: {what} {numbers}" for what, numbers in problems if numbers)


def _run_and_kill(
    workload: Workload, directory: Path, process: "subprocess.Popen[str]", seconds: float
) -> Sequence[str]:
    """What it acknowledged, up to a kill that comes some time after its first word."""
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(seconds)
    workload.kill(directory, process)
    text = first + process.stdout.read()
    process.stdout.close()
    process.wait()
    return [line for line in text.split("\n")[:-1] if line]


def report(workload: Workload, kills: int, seed: int, at_once: int) -> int:
    """Print what is wrong, and last `N passed, M failed`; the exit code. at_once: stores."""
    print(f"seed {seed}", flush=True)
    done = failed = 0
    firsts = range(0, kills, KILLS_A_STORE)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(at_once) as pool:

        def problems(first: int) -> list[str]:
            store = Path(scratch) / str(first)
            store.mkdir()
            expected, found = min(KILLS_A_STORE, kills - first), list[str]()
            try:
                found += check(workload, store, expected, seed + first)
            except Exception as error:  # the store does not open: none of its kills counts as passed
                return [f"store {first}, seed {seed + first}: {type(error).__name__}: {error}"] * expected
            finally:
                workload.close(store)
            shutil.rmtree(store)
            return found

        for found in pool.map(problems, firsts):
            done += len(found)
            failed += sum(map(bool, found))
            for problem in filter(None, found):
                print(problem, flush=True)
            print(f"{done} kills, {failed} failed", file=sys.stderr, flush=True)
    print(f"{kills - failed} passed, {failed} failed")
    return 1 if failed else 0


def options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="stores")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--write", nargs=3, metavar=("DIRECTORY", "FIRST", "SEED"), help=argparse.SUPPRESS)
    return parser


def main() -> int:
    given = options(__doc__).parse_args()
    if given.write:
        write(Path(given.write[0]), int(given.write[1]), int(given.write[2]))
    return report(LibraryWorkload(), given.kills, given.seed, given.at_once)


if __name__ == "__main__":
    sys.exit(main())
