"""kill -9 of a whole box at random points of ingest: what a client was told is committed is there afterwards and whole.

`python -m tests.crash_box --kills N` starts a daemon and a client that ingests a folder, and kills both, and with the
daemon its children, at a random moment; a new daemon then says what it holds, and is the next to be killed. Last line:
`N passed, M failed`.
"""

import random
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from appliance.client import Client
from appliance.errors import Busy, NotFound
from appliance.types import EVERYONE, Document, FileState, IngestionState
from tests import daemon
from tests.crash import BEGUN, Stored, check_found, last_words, named, options, pages_of, report
from tests.daemon import Daemon

COLLECTION = "crash"
FILES = 16
SEAL_PASSAGES = 24
OPTIONS = (f"--seal-passages={SEAL_PASSAGES}", "--log-level=warning", "--drain-seconds=0")


def text_of(number: int) -> str:
    """A document's file: its pages one after the other, as one page of text."""
    return "\n\n".join(page for page in pages_of(number) if page)


class BoxWorkload:
    """Ingest through the daemon, from file by locked child to log; now and then a deletion, other readers, a
    compaction, other keys."""

    ahead = FILES

    def __init__(self) -> None:
        self._boxes: dict[Path, Daemon] = {}

    def start(self, directory: Path, first_number: int, seed: int) -> "subprocess.Popen[str]":
        if directory not in self._boxes:
            self._boxes[directory] = daemon.start(directory / "data", *OPTIONS)
        argv = [sys.executable, "-m", "tests.crash_box", "--write", str(directory), str(first_number), str(seed)]
        with open(directory / "writer.log", "ab") as log:  # it may be told of the daemon's death before its own
            return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True)

    def kill(self, directory: Path, process: "subprocess.Popen[str]") -> None:
        self._boxes.pop(directory).kill()
        process.kill()

    def close(self, directory: Path) -> None:
        if box := self._boxes.pop(directory, None):
            box.stop()

    def stored(self, directory: Path) -> Mapping[int, Stored]:
        """Leaves the daemon to the next writer."""
        box = self._boxes[directory] = daemon.start(directory / "data", *OPTIONS)
        with box.client() as client:
            self._let_go_on(client)
            stored = documents(client)
            # Of a longer document its last words are a small part, and the embedder may like another's better.
            short = [d for d in stored if text_of(number_of(d.title)) == last_words(number_of(d.title))]
            for document in short[:3]:
                hits = client.search(COLLECTION, last_words(number_of(document.title)), limit=5)
                check_found(document.name, hits.passages)
            return {number_of(d.title): self._stored(client, d.name) for d in stored}

    def _let_go_on(self, client: Client) -> None:
        """What the kill cut short goes on by itself: it comes to its end, and leaves no copy behind; then it is as if
        the writer had gone on."""
        for ingestion in client.ingestions():
            while not (now := client.ingestion(ingestion.name)).state.ended:
                stopped = now.state in (IngestionState.FAILED, IngestionState.INTERRUPTED)
                assert not stopped, f"{now.name} stopped: {now.problem}"
                time.sleep(0.05)
            states = {file.state for file in client.files(ingestion.name)}
            assert states <= {FileState.COMMITTED}, f"{ingestion.name} ended with {states}"

    def _stored(self, client: Client, name: str) -> Stored:
        """With the pages that the file was made of, where the store has its text; else what the store has."""
        document, pages = client.document(name)
        number = number_of(document.title)
        return Stored(pages_of(number) if pages == (text_of(number),) else pages, document.readers)


def number_of(title: str) -> int:
    return int(Path(title).stem)


def documents(client: Client) -> list[Document]:
    try:
        return list(client.documents(COLLECTION))
    except NotFound:
        return []


def write(directory: Path, first_number: int, seed: int) -> None:
    """The process that is killed."""
    rng = random.Random(seed)
    stick = directory / f"stick-{first_number}"
    stick.mkdir()
    for number in range(first_number, first_number + FILES):
        (stick / f"{number:08}.txt").write_text(text_of(number))
    with Client.local(directory / "data") as client:
        ingestion = client.ingest(str(stick), COLLECTION)
        print(BEGUN, flush=True)
        told = 0
        while not client.ingestion(ingestion.name).state.ended:
            files = list(client.files(ingestion.name))
            ended = [file for file in files if file.state.ended]
            for file in ended[told:]:
                if file.state is not FileState.COMMITTED:
                    raise SystemExit(f"{file.path}: {file.reason} {file.detail}")
                print(f"added {number_of(file.path)}", flush=True)
            told = len(ended)
            if rng.random() < 0.1:
                delete_one(client, rng)
            if rng.random() < 0.1:
                change_readers(client, rng)
            if rng.random() < 0.03:
                with suppress(Busy):  # the box does it just now by itself
                    client.compact(COLLECTION)
            if rng.random() < 0.03:
                client.rotate_keys()


def change_readers(client: Client, rng: random.Random) -> None:
    """Of a document that everyone finds all the same."""
    if stored := documents(client):
        victim, readers = rng.choice(stored), frozenset({EVERYONE, f"role:{rng.choice(['app', 'admin'])}"})
        print(f"sharing {number_of(victim.title)} {named(readers)}", flush=True)
        client.set_readers(victim.name, sorted(readers))
        print(f"shared {number_of(victim.title)} {named(readers)}", flush=True)


def delete_one(client: Client, rng: random.Random) -> None:
    stored = documents(client)
    if stored:
        victim = rng.choice(stored)
        print(f"deleting {number_of(victim.title)}", flush=True)
        client.delete_document(victim.name)
        print(f"deleted {number_of(victim.title)}", flush=True)


def main() -> int:
    given = options(__doc__).parse_args()
    if given.write:
        write(Path(given.write[0]), int(given.write[1]), int(given.write[2]))
        return 0
    return report(BoxWorkload(), given.kills, given.seed, given.at_once)


if __name__ == "__main__":
    sys.exit(main())
