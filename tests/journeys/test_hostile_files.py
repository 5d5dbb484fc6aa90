"""Hostile files through a real box: each ends by name, and of what was read no process, file or byte is left behind."""

import hashlib
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from appliance.client import Client
from appliance.types import FileOutcome, FileState, Ingestion, IngestionState
from tests.daemon import Daemon, eventually, running
from tests.journeys.hostile_files import CAPS, COMMITTED, DUPLICATE, FILES, MEMBERS, WITHIN, marked, marker
from tests.pdf_files import crowded_pdf

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
FOREIGN = ROOT.parent / "shared" / "data" / "pdf"

WORLD = ("/tmp", "/var/tmp", "/dev/shm")
"""Where everyone may write: there the box has file systems of its own, for others write there at the same time."""
ALONE = """
    box=$1 root=$2 python=$3; shift 3; cd /tmp
    for place in /tmp /var/tmp /dev/shm; do mount -t tmpfs tmpfs $place || exit 1; done
    for kept in "$box" "$root" "$python"; do
        case "$kept" in /tmp/*) mkdir -p "$kept" && mount --no-canonicalize --bind "./${kept#/tmp/}" "$kept";; esac
    done
    cd "$root" && exec "$@"
"""
"""What lay in /tmp before and is needed stays, by the old /tmp that is the working directory still."""

RUN_BYTES, RUNS, HEAD_BYTES = 24, 16, 6


def alone(folder: Path) -> list[str]:
    """A command that runs another with empty places of its own where everyone may write; `folder` stays."""
    namespaces = ["--mount"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--mount"]
    return ["unshare", *namespaces, "sh", "-c", ALONE, "sh", str(folder), str(ROOT), sys.prefix]


def has_settled(box: Daemon) -> bool:
    """Both of its zygotes wait for work, and the starter's worker, which it tries at its start, has ended."""
    log = box.log()
    return log.count("sandbox.proven") == 2 and '"model": "starter", "state": "stored"' in log


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("box")


@pytest.fixture(scope="module")
def box(folder: Path) -> Iterator[Daemon]:
    with running(folder / "data", *CAPS, launcher=alone(folder)) as started:
        eventually(lambda: has_settled(started))
        yield started


@pytest.fixture(scope="module")
def client(box: Daemon) -> Iterator[Client]:
    with box.client() as connected:
        yield connected


# --- what there is of a box


def family(box: Daemon) -> list[psutil.Process]:
    """The daemon and all below it."""
    daemon = psutil.Process(box.process.pid)
    return [daemon, *sorted(daemon.children(recursive=True), key=lambda process: process.pid)]


def is_zygote(process: psutil.Process) -> bool:
    return "appliance.sandbox.zygote" in process.cmdline()


def held(process: psutil.Process) -> Counter[str]:
    """What its descriptors are of, and the files in its root where that is its own."""
    seen, found = Path(f"/proc/{process.pid}"), Counter[str]()
    with suppress(PermissionError, FileNotFoundError):  # a zygote shows them to root alone; it may end just now
        for name in os.listdir(seen / "fd"):
            with suppress(FileNotFoundError):
                found[re.sub(r"\d+", "", os.readlink(seen / "fd" / name))] += 1
        if is_zygote(process):
            found.update(os.listdir(seen / "root"))
    return found


def written(box: Daemon, folder: Path) -> Iterator[Path]:
    """All files and folders that the box may have made: of its data, where everyone may write, and its log."""
    root = Path(f"/proc/{box.process.pid}/root")
    yield box.data_dir.with_suffix(".log")
    for place in (box.files, *(Path(f"{root}{place}") for place in WORLD)):
        for at, folders, names in os.walk(place):
            if Path(at) == Path(f"{root}{folder}"):  # where the sources lie
                folders.clear()
                continue
            yield from (Path(at, name) for name in (*folders, *names))


def digests(box: Daemon, folder: Path) -> Mapping[Path, bytes]:
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in written(box, folder) if path.is_file()}


def in_the_world(box: Daemon, folder: Path) -> set[Path]:
    return {path for path in written(box, folder) if not path.is_relative_to(box.files)}


# --- what must not be left of it


def runs(content: bytes) -> set[bytes]:
    """Pieces from all over it that stand nowhere else by chance."""
    step = max(1, (len(content) - RUN_BYTES) // RUNS)
    pieces = (content[at : at + RUN_BYTES] for at in range(0, len(content) - RUN_BYTES + 1, step))
    return {piece for piece in pieces if len(set(piece)) >= RUN_BYTES // 2}


def secrets(client: Client, folder: Path, collection: str) -> set[bytes]:
    """Names, words and runs of all files, and of the texts that were read from them, as UTF-8 and UTF-16."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    found = {path.name.encode() for path in files} | {marker(path.name).encode() for path in files}
    for path in files:
        found |= runs(path.read_bytes())
    for document in client.documents(collection):
        for page in client.document(document.name)[1]:
            found |= runs(page.encode()) | runs(page.encode("utf-16-le"))
    return found


def told(secret: Collection[bytes], content: bytes) -> set[bytes]:
    """Which of them stand there; looked up by pairs of their first bytes, for they are thousands."""
    read = np.frombuffer(content.ljust(HEAD_BYTES, b"\0"), np.uint8).astype(np.uint16)
    pairs = read[:-1] << 8 | read[1:]
    places = np.arange(len(content) - HEAD_BYTES + 1)
    for offset in range(0, HEAD_BYTES, 2):
        known = np.zeros(1 << 16, bool)
        known[[one[offset] << 8 | one[offset + 1] for one in secret]] = True
        places = places[known[pairs[places + offset]]]
    starts = {content[at : at + HEAD_BYTES] for at in places.tolist()}
    return {one for one in secret if one[:HEAD_BYTES] in starts and one in content}


def readable(box: Daemon, folder: Path, secret: Collection[bytes], before: Mapping[Path, bytes]) -> dict[Path, object]:
    """Where something of it can be read, also in a name. before: digests of files that hold nothing of it."""
    found = {path: told(secret, os.fsencode(path)) for path in written(box, folder)}
    for path in found:
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).digest() != before.get(path):
            found[path] |= told(secret, content)
    return {path: some for path, some in found.items() if some}


@contextmanager
def nothing_left(box: Daemon, client: Client, source: Path, collection: str) -> Iterator[None]:
    """Whatever is taken from `source` within: after it the same processes run, the zygotes among them, with the same
    descriptors; where everyone may write there is no file more; and nothing of it can be read in what was written."""
    folder = source.parent
    warm = folder / f"{collection}.txt"
    warm.write_text(f"The collection {collection} is open.")
    assert ended(client, client.ingest(str(warm), collection).id).state is IngestionState.SUCCEEDED
    processes, world, before = family(box), in_the_world(box, folder), digests(box, folder)
    descriptors = [held(process) for process in processes]
    assert any(map(is_zygote, processes))
    yield
    eventually(lambda: len(family(box)) <= len(processes))
    assert family(box) == processes
    with suppress(TimeoutError):
        eventually(lambda: [held(process) for process in processes] == descriptors, seconds=20)
    assert [held(process) for process in processes] == descriptors
    assert in_the_world(box, folder) == world
    assert readable(box, folder, secrets(client, source, collection), before) == {}


def ended(client: Client, ingestion: str) -> Ingestion:
    """It has come to an end, whichever."""
    eventually(lambda: client.ingestion(ingestion).state.ended, seconds=600)
    return client.ingestion(ingestion)


def end(file: FileOutcome) -> str:
    """Its reason, or the state that it came to."""
    assert file.state.ended, file
    assert bool(file.reason) == bool(file.remedy) == (file.state is FileState.QUARANTINED), file
    return file.reason or file.state.value


def expected(path: str) -> set[str]:
    within = next((ends for container, ends in WITHIN.items() if path.startswith(f"{container}/")), "")
    return set((FILES[path][1] if path in FILES else MEMBERS.get(path, within)).split())


def kept(box: Daemon) -> list[Path]:
    """What is in the quarantine."""
    return list((box.files / "ingest").glob("*/*/held/*"))


# --- the journeys


def test_hostile_files_end_by_name_and_leave_nothing(box: Daemon, client: Client, folder: Path) -> None:
    source = folder / "hostile"
    source.mkdir()
    for name, (make, _) in FILES.items():
        (source / name).write_bytes(make())
    (source / "link.txt").symlink_to("/etc/passwd")
    os.mkfifo(source / "pipe.txt")
    with nothing_left(box, client, source, "hostile"):
        ingestion = ended(client, client.ingest(str(source), "hostile").id)
        assert ingestion.state is IngestionState.SUCCEEDED
        ends = {file.path: end(file) for file in client.files(ingestion.id)}
        assert (ends.pop("link.txt"), ends.pop("pipe.txt")) == ("LINK", "NOT_A_FILE")
        assert {path: how for path, how in ends.items() if how not in expected(path)} == {}
        assert ends.keys() >= FILES.keys() | MEMBERS.keys()
        assert sum(client.ingestion(ingestion.id).counts.values()) == len(ends) + 2
        assert client.search("hostile", marker("word.docx")).passages[0].title == "word.docx"
        assert {file.path for file in client.quarantine() if file.kept} >= {"bomb.pdf", "flat.zip", "locked.pdf"}

    secret, before = secrets(client, source, "hostile"), digests(box, folder)
    assert all(told(secret, path.read_bytes()) for path in source.glob("*.html")), "what is there is found"
    assert kept(box)
    client.purge_files(all_=True)
    assert kept(box) == []
    client.delete_collection("hostile")
    assert not (box.files / "knowledge" / "default" / "hostile").exists()
    assert readable(box, folder, secret, before) == {}


@pytest.mark.skipif(not FOREIGN.is_dir(), reason=f"{FOREIGN} is not there")
def test_pdfs_of_many_makers_end_by_name_and_leave_nothing(box: Daemon, client: Client, folder: Path) -> None:
    source = folder / "pdfs"
    source.mkdir()
    for path in FOREIGN.glob("*.pdf"):
        shutil.copy(path, source)
    with nothing_left(box, client, source, "pdfs"):
        ingestion = ended(client, client.ingest(str(source), "pdfs").id)
        assert ingestion.state is IngestionState.SUCCEEDED
        ends = {file.path: end(file) for file in client.files(ingestion.id)}
        assert ends.keys() >= set(os.listdir(source))
        assert set(ends.values()) <= {COMMITTED, DUPLICATE, "PDF_ENCRYPTED", "EMPTY"}
        assert list(ends.values()).count(COMMITTED) > len(ends) // 2


def test_an_ingestion_that_is_cancelled_while_a_child_spins_leaves_no_child_and_no_byte(
    box: Daemon, client: Client, folder: Path
) -> None:
    source = folder / "cancelled"
    source.mkdir()
    (source / "crowded.pdf").write_bytes(crowded_pdf(200_000))
    for number in range(9):
        (source / f"later-{number}.txt").write_bytes(marked(f"later-{number}.txt"))
    with nothing_left(box, client, source, "cancelled"):
        client.purge_files(all_=True)
        idle = len(family(box))
        begun = client.ingest(str(source), "cancelled")
        eventually(lambda: len(family(box)) > idle and len(kept(box)) == len(os.listdir(source)))
        client.cancel_ingestion(begun.id)
        assert client.ingestion(begun.id).state is IngestionState.CANCELLED
        assert kept(box) == []
        assert {file.state for file in client.files(begun.id)} <= {FileState.LEFT, FileState.COMMITTED}
