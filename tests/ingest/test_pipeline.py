"""Folders into a collection, through the real locked extractor; the knowledge base is in memory."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from appliance.config import Config
from appliance.errors import DiskFull, DocumentRefused, InvalidArgument, NotFound, SandboxUnavailable, StoreDamaged
from appliance.ingest.caps import Caps
from appliance.ingest.pipeline import COPIES, KEPT_JOBS, PIPELINE, STORED_FOR_OTHERS, Ingest
from appliance.ingest.sources import Folder
from appliance.jobs import JobRunner
from appliance.ports import Extractor
from appliance.sandbox.extractor import LockedExtractor
from appliance.types import (
    EVERYONE,
    BlockKind,
    Document,
    Extracted,
    FileOutcome,
    FileState,
    Job,
    JobState,
    NewDocument,
    Principal,
    Role,
)
from tests import pdf_files
from tests.fakes import MemoryLibrary, OneLibrary

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = Config(data_dir=Path("/nowhere"), parse_memory_mib=128, document_max_mib=1)
EVERYBODY = frozenset({EVERYONE})
OPERATOR = Principal("clinic", "olga", Role.OPERATOR)


@dataclass
class WatchedLibrary(MemoryLibrary):
    """Calls `before_add` first, from the thread that adds."""

    before_add: Callable[[NewDocument], None] = lambda document: None

    def add(self, collection: str, document: NewDocument) -> Document:
        self.before_add(document)
        return super().add(collection, document)


@dataclass
class PlainExtractor:
    """ports.Extractor of this test's own bytes, in this process; `error` in place of a result."""

    error: Exception | None = None
    names: list[str] = field(default_factory=list)

    async def extract(self, fd: int, name: str) -> Extracted:
        await asyncio.sleep(0)
        self.names.append(name)
        if self.error:
            raise self.error
        text = os.pread(fd, os.fstat(fd).st_size, 0).decode()
        return Extracted(media_type="text/plain", parser="plain 1", pages=(text,))


@dataclass
class GatedExtractor(PlainExtractor):
    """Reads nothing until it may."""

    may_read: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0

    async def extract(self, fd: int, name: str) -> Extracted:
        self.waiting += 1
        await self.may_read.wait()
        return await super().extract(fd, name)


class Bench:
    """An ingest with what it stands on, and a folder to read."""

    def __init__(self, folder: Path, extractor: Extractor, config: Config = LIMITS) -> None:
        self.folder = folder / "folder"
        self.folder.mkdir()
        self.library = WatchedLibrary()
        self.jobs = JobRunner()
        self.config = replace(config, data_dir=folder / "data")
        self.ingest = Ingest(self.config, OneLibrary(self.library), extractor, self.jobs)

    def write(self, name: str, content: bytes | str) -> None:
        (self.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    async def start(self, readers: frozenset[str] = EVERYBODY, caller: Principal = OPERATOR) -> Job:
        return await self.ingest.start(caller, str(self.folder), "handbook", readers)

    async def wait(self, job: Job) -> Job:
        async for state in self.jobs.watch(job.id):
            job = state
        return job

    async def run(self) -> tuple[Job, dict[str, FileOutcome]]:
        job = await self.wait(await self.start())
        return job, {outcome.path: outcome for outcome in self.ingest.files("clinic", job.id)}

    def titles(self) -> list[str]:
        return [document.title for document in self.library.documents("handbook", EVERYBODY)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked() -> AsyncIterator[LockedExtractor]:
    extractor = LockedExtractor(LIMITS, "appliance.ingest.extract", Caps().settings())
    yield extractor
    await extractor.close()


@pytest.fixture
def bench(tmp_path: Path, locked: LockedExtractor) -> Bench:
    return Bench(tmp_path, locked)


@pytest.fixture
def plain(tmp_path: Path) -> Bench:
    return Bench(tmp_path, PlainExtractor())


# --- outcomes --------------------------------------------------------------------------------------------------------


@pytest.mark.long
async def test_every_file_ends_as_committed_duplicate_or_quarantined(bench: Bench) -> None:
    bench.write("a.txt", "Badges expire after 90 days.")
    bench.write("b.md", "# Keys\n\nKeys are signed for.")
    bench.write("c.html", "<title>Fire</title><p>Nobody goes back.")
    bench.write("d.pdf", pdf_files.text_pdf())
    bench.write("e-copy.txt", "Badges expire after 90 days.")
    bench.write("f-broken.pdf", b"%PDF-1.7\nno")
    bench.write("g-locked.pdf", pdf_files.encrypted_pdf("AES-256"))
    bench.write("h-latin.txt", "Grüße".encode("latin-1"))
    bench.write("i-empty.txt", b"")
    bench.write("j-huge.txt", bytes((1 << 20) + 1))
    bench.write("k.exe", b"MZ")
    bench.write("l-two\nlines\u202e.txt", "Named badly.")
    bench.write("m-image.pdf", pdf_files.image_pdf())
    bench.write("n-bomb.pdf", pdf_files.bomb_pdf(8))
    os.mkfifo(bench.folder / "o-pipe.txt")
    (bench.folder / "p-link.txt").symlink_to("/etc/passwd")
    bench.write("q-mismatch.txt", pdf_files.text_pdf(["another"]))
    job, files = await bench.run()
    assert {path: (outcome.state.value, outcome.reason) for path, outcome in files.items()} == {
        "a.txt": ("committed", ""),
        "b.md": ("committed", ""),
        "c.html": ("committed", ""),
        "d.pdf": ("committed", ""),
        "e-copy.txt": ("duplicate", ""),
        "f-broken.pdf": ("quarantined", "PDF_BROKEN"),
        "g-locked.pdf": ("quarantined", "PDF_ENCRYPTED"),
        "h-latin.txt": ("quarantined", "NOT_UTF8"),
        "i-empty.txt": ("quarantined", "EMPTY"),
        "j-huge.txt": ("quarantined", "TOO_LARGE"),
        "k.exe": ("quarantined", "UNKNOWN_TYPE"),
        "l-two\\nlines\\u202e.txt": ("committed", ""),
        "m-image.pdf": ("quarantined", "EMPTY"),
        "n-bomb.pdf": ("quarantined", "TOO_MUCH_MEMORY"),
        "o-pipe.txt": ("quarantined", "NOT_A_FILE"),
        "p-link.txt": ("quarantined", "LINK"),
        "q-mismatch.txt": ("quarantined", "TYPE_MISMATCH"),
    }
    assert job.state is JobState.SUCCEEDED
    assert (job.done, job.total, job.unit) == (17, 17, "files")
    assert files["e-copy.txt"].document == files["a.txt"].document
    assert all(outcome.job == job.name and outcome.time for outcome in files.values())


async def test_a_document_knows_where_it_came_from(bench: Bench) -> None:
    (bench.folder / "sub").mkdir()
    bench.write("sub/manual.pdf", pdf_files.text_pdf())
    job = await bench.wait(await bench.start(readers=frozenset({"role:operator"})))
    (outcome,) = bench.ingest.files("clinic", job.name)
    (document,) = bench.library.documents("handbook", frozenset({"role:operator"}))
    assert document.name == outcome.document
    assert (document.title, document.page_count, document.pipeline) == ("sub/manual.pdf", 3, PIPELINE)
    assert document.source == f"file://{bench.folder}/sub/manual.pdf"
    assert document.parser.startswith("pdfium")
    assert document.media_type == "application/pdf"
    assert (document.sha256, document.size_bytes) == (outcome.sha256, outcome.size_bytes)
    assert bench.library.documents("handbook", EVERYBODY) == ()


@pytest.mark.long
async def test_a_pdf_that_spins_is_stopped_and_the_next_file_is_read(tmp_path: Path) -> None:
    limits = replace(LIMITS, parse_cpu_seconds=1, parse_memory_mib=4096)
    extractor = LockedExtractor(limits, "appliance.ingest.extract", Caps().settings())
    bench = Bench(tmp_path, extractor, limits)
    bench.write("a.pdf", pdf_files.bomb_pdf(8))
    bench.write("b.txt", "Still read.")
    _, files = await bench.run()
    await extractor.close()
    assert files["a.pdf"].reason == "SPUN"
    assert files["b.txt"].state is FileState.COMMITTED


async def test_a_second_run_finds_only_duplicates(plain: Bench) -> None:
    plain.write("a.txt", "One.")
    plain.write("b.txt", "Two.")
    _, first = await plain.run()
    _, second = await plain.run()
    assert [outcome.state for outcome in second.values()] == [FileState.DUPLICATE] * 2
    assert [outcome.document for outcome in second.values()] == [outcome.document for outcome in first.values()]
    assert plain.titles() == ["a.txt", "b.txt"]


async def test_a_changed_file_takes_the_place_of_what_it_was(plain: Bench) -> None:
    plain.write("a.txt", "One.")
    plain.write("b.txt", "Two.")
    await plain.run()
    plain.write("a.txt", "One, and more.")
    _, files = await plain.run()
    assert [files[name].state for name in ("a.txt", "b.txt")] == [FileState.COMMITTED, FileState.DUPLICATE]
    assert sorted(plain.titles()) == ["a.txt", "b.txt"]
    document = files["a.txt"].document.rpartition("/")[2]
    assert plain.library.pages("handbook", document, EVERYBODY) == ("One, and more.",)


async def test_a_changed_file_takes_no_place_of_what_is_for_others(plain: Bench) -> None:
    plain.write("a.txt", "Pay.")
    await plain.run()
    before = plain.library.documents("handbook", EVERYBODY)
    plain.write("a.txt", "Pay, and more.")
    job = await plain.wait(await plain.start(readers=frozenset({"role:admin"})))
    [outcome] = plain.ingest.files("clinic", job.id)
    assert (outcome.state, outcome.reason) == (FileState.QUARANTINED, "READERS_DIFFER")
    assert plain.library.documents("handbook", EVERYBODY) == before


async def test_a_file_that_is_there_for_other_readers_is_not_called_a_duplicate(plain: Bench) -> None:
    plain.write("a.txt", "Pay.")
    await plain.run()
    [stored] = plain.library.documents("handbook", EVERYBODY)
    job = await plain.wait(await plain.start(readers=frozenset({"role:admin", "user:ann"})))
    [outcome] = plain.ingest.files("clinic", job.id)
    assert (outcome.state, outcome.reason) == (FileState.QUARANTINED, "READERS_DIFFER")
    assert (outcome.document, outcome.detail) == (stored.name, STORED_FOR_OTHERS)
    assert plain.library.documents("handbook", EVERYBODY) == (stored,)


@pytest.mark.parametrize(
    ("caller", "named"),
    [
        (OPERATOR, False),
        (Principal("clinic", "ann", Role.OPERATOR), True),
        (Principal("clinic", "olga", Role.OPERATOR, frozenset({"group:hr"})), True),
        (Principal("clinic", "root", Role.ADMIN), True),
    ],
)
async def test_who_holds_a_copy_of_a_file_learns_nothing_of_a_document_that_is_not_for_him(
    plain: Bench, caller: Principal, named: bool
) -> None:
    plain.write("a.txt", "Pay.")
    secret = frozenset({"group:hr", "user:ann"})
    await plain.wait(await plain.start(secret))
    [stored] = plain.library.documents("handbook", secret)
    found: list[FileOutcome] = []
    for readers in (EVERYBODY, secret):
        job = await plain.wait(await plain.start(readers, caller))
        found += plain.ingest.files("clinic", job.id)
    assert [outcome.state for outcome in found] == [FileState.QUARANTINED, FileState.DUPLICATE]
    assert [outcome.document for outcome in found] == [stored.name if named else ""] * 2
    [refused] = plain.ingest.quarantined("clinic")
    assert (refused.reason, refused.document) == ("READERS_DIFFER", found[0].document)
    assert not any(reader in refused.detail for reader in secret)


async def test_what_became_of_files_is_told_to_their_own_tenant_only(plain: Bench) -> None:
    plain.write("a.txt", "One.")
    (plain.folder / "b.txt").symlink_to("/etc/passwd")
    job = await plain.wait(await plain.start())
    assert job.tenant == "clinic"
    for asked in (job.id, job.name):
        assert len(plain.ingest.files("clinic", asked)) == 2
        with pytest.raises(NotFound) as of_another:
            plain.ingest.files("rival", asked)
        assert str(of_another.value) == f"There is no record of the files of {job.name}."
    assert [outcome.path for outcome in plain.ingest.quarantined("clinic")] == ["b.txt"]
    assert plain.ingest.quarantined("rival") == plain.ingest.quarantined("") == ()
    again = Ingest(plain.config, OneLibrary(plain.library), PlainExtractor(), plain.jobs)
    assert (len(again.quarantined("clinic")), again.quarantined("rival")) == (1, ())


async def test_equal_files_for_different_readers_in_two_jobs_at_once_are_never_called_duplicates(plain: Bench) -> None:
    plain.write("a.txt", "Pay.")
    jobs = [await plain.start(readers=frozenset({reader})) for reader in ("role:admin", "role:operator")]
    for job in jobs:
        await plain.wait(job)
    outcomes = [outcome for job in jobs for outcome in plain.ingest.files("clinic", job.id)]
    assert {(outcome.state, outcome.reason) for outcome in outcomes} == {
        (FileState.COMMITTED, ""),
        (FileState.QUARANTINED, "READERS_DIFFER"),
    }


async def test_a_file_of_an_unknown_type_is_refused_without_being_opened(
    plain: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = Folder.open

    def watched(self: Folder, name: str) -> int:
        opened.append(name)
        return real(self, name)

    monkeypatch.setattr(Folder, "open", watched)
    for name in ("film.mp4", "private.key", "shadow"):
        plain.write(name, "secret")
    plain.write("RULES.TXT", "Rule.")
    _, files = await plain.run()
    assert opened == ["RULES.TXT"]
    assert files["RULES.TXT"].state is FileState.COMMITTED
    for name in ("film.mp4", "private.key", "shadow"):
        assert (files[name].reason, files[name].sha256, files[name].size_bytes) == ("UNKNOWN_TYPE", "", 0)


async def test_many_jobs_hold_no_more_files_in_memory_than_one(tmp_path: Path) -> None:
    extractor = GatedExtractor()
    bench = Bench(tmp_path, extractor)
    for number in range(COPIES + 2):
        bench.write(f"{number}.txt", f"Text {number}.")
    jobs = [await bench.start() for _ in range(4)]
    await until(lambda: all(bench.jobs.get(job.id).total for job in jobs) and extractor.waiting >= COPIES)
    assert memfds() == COPIES
    extractor.may_read.set()
    assert [(await bench.wait(job)).state for job in jobs] == [JobState.SUCCEEDED] * 4
    assert memfds() == 0
    assert len(bench.titles()) == COPIES + 2


def memfds() -> int:
    links = (os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink())
    return sum(link.startswith("/memfd:document") for link in links)


async def test_equal_files_in_two_jobs_at_once_are_stored_once(plain: Bench) -> None:
    for number in range(10):
        plain.write(f"{number}.txt", "The same.")
    jobs = [await plain.start() for _ in range(3)]
    assert [(await plain.wait(job)).state for job in jobs] == [JobState.SUCCEEDED] * 3
    assert plain.titles() == ["0.txt"]


async def test_what_the_library_finds_no_text_in_is_quarantined(plain: Bench) -> None:
    def refuse(document: NewDocument) -> None:
        raise DocumentRefused("NO_TEXT", "There are no words in it.")

    plain.library.before_add = refuse
    plain.write("a.txt", "...")
    job, files = await plain.run()
    assert job.state is JobState.SUCCEEDED
    assert (files["a.txt"].state, files["a.txt"].reason) == (FileState.QUARANTINED, "NO_TEXT")


async def test_refusals_are_remembered_newest_first_and_after_a_restart(plain: Bench, tmp_path: Path) -> None:
    (plain.folder / "a.txt").symlink_to("/etc/passwd")
    (plain.folder / "b.txt").symlink_to("/etc/passwd")
    await plain.run()
    again = Ingest(plain.config, OneLibrary(plain.library), PlainExtractor(), plain.jobs)
    assert [outcome.path for outcome in again.quarantined("clinic")] == ["b.txt", "a.txt"]
    assert [outcome.reason for outcome in plain.ingest.quarantined("clinic")] == ["LINK", "LINK"]


async def test_a_file_swapped_during_ingest_is_stored_as_it_was_hashed_or_refused(plain: Bench) -> None:
    plain.write("a.txt", "First.")
    plain.write("b.txt", "Second.")

    def swap(document: NewDocument) -> None:
        plain.write("a.txt", "Swapped.")
        (plain.folder / "b.txt").unlink(missing_ok=True)

    plain.library.before_add = swap
    _, files = await plain.run()
    assert [files[name].state for name in ("a.txt", "b.txt")] == [FileState.COMMITTED] * 2
    pages = [plain.library.pages("handbook", f"{number:032x}", EVERYBODY) for number in (1, 2)]
    assert pages == [("First.",), ("Second.",)]


async def test_an_empty_folder_is_no_error(plain: Bench) -> None:
    job, files = await plain.run()
    assert (job.state, job.total, files) == (JobState.SUCCEEDED, 0, {})


async def test_a_single_file_is_taken(plain: Bench) -> None:
    plain.write("a.txt", "One.")
    plain.write("b.txt", "Two.")
    job = await plain.ingest.start(OPERATOR, str(plain.folder / "b.txt"), "handbook", EVERYBODY)
    await plain.wait(job)
    assert plain.titles() == ["b.txt"]
    (document,) = plain.library.documents("handbook", EVERYBODY)
    assert document.source == f"file://{plain.folder}/b.txt"


# --- before a job starts ---------------------------------------------------------------------------------------------


async def test_a_bad_path_starts_no_job(plain: Bench) -> None:
    with pytest.raises(InvalidArgument):
        await plain.ingest.start(OPERATOR, "folder", "handbook", EVERYBODY)
    with pytest.raises(NotFound):
        await plain.ingest.start(OPERATOR, "/no/such/folder", "handbook", EVERYBODY)
    assert plain.jobs.list() == ()
    assert plain.library.collections() == ()


async def test_the_boxs_own_data_cannot_be_ingested(plain: Bench) -> None:
    keys = plain.config.data_dir / "keys"
    keys.mkdir()
    (keys / "private.txt").write_text("secret")
    with pytest.raises(InvalidArgument, match=r"path: .*/keys lies in the box's own data directory"):
        await plain.ingest.start(OPERATOR, str(keys), "handbook", EVERYBODY)
    assert plain.jobs.list() == ()
    job = await plain.ingest.start(OPERATOR, str(plain.config.data_dir.parent), "handbook", EVERYBODY)
    await plain.wait(job)
    assert [(one.path, one.reason) for one in plain.ingest.files("clinic", job.id)] == [("data", "OWN_DATA")]


async def test_files_of_an_unknown_job_are_not_found(plain: Bench) -> None:
    with pytest.raises(NotFound, match="jobs/none"):
        plain.ingest.files("clinic", "none")


async def test_outcomes_are_kept_for_the_newest_jobs(plain: Bench) -> None:
    jobs = [await plain.start() for _ in range(KEPT_JOBS + 1)]
    for job in jobs:
        await plain.wait(job)
    with pytest.raises(NotFound):
        plain.ingest.files("clinic", jobs[0].id)
    assert plain.ingest.files("clinic", jobs[1].id) == ()


# --- stopping --------------------------------------------------------------------------------------------------------


async def until_it_is_heard() -> None:
    """Let the loop turn until a cancellation has gone wherever it goes without the thread."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in another process or thread."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_cancelling_even_twice_stops_at_the_next_file_and_keeps_what_is_committed(plain: Bench) -> None:
    for number in range(8):
        plain.write(f"{number}.txt", f"Text {number}.")
    third, go_on = threading.Event(), threading.Event()

    def wait_in_the_third(document: NewDocument) -> None:
        if document.title == "2.txt":
            third.set()
            assert go_on.wait(30)

    plain.library.before_add = wait_in_the_third
    job = await plain.start()
    assert await asyncio.to_thread(third.wait, 30)
    [task] = [task for task in asyncio.all_tasks() if task.get_name() == job.name]
    for _ in range(2):
        task.cancel()
        await until_it_is_heard()
        assert not plain.jobs.get(job.id).state.ended
    go_on.set()
    ended = await plain.wait(job)
    assert ended.state is JobState.CANCELLED
    assert [outcome.path for outcome in plain.ingest.files("clinic", job.id)] == ["0.txt", "1.txt", "2.txt"]
    assert plain.titles() == ["0.txt", "1.txt", "2.txt"]


def below_us() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


async def test_cancelling_kills_the_children_that_read_ahead(bench: Bench, locked: LockedExtractor) -> None:
    bench.write("a.pdf", pdf_files.bomb_pdf(8))
    await locked.start()
    zygotes = below_us()
    job = await bench.start()
    await until(lambda: below_us() > zygotes)
    for child in below_us() - zygotes:
        child.suspend()  # else it might end before it is killed
    bench.jobs.cancel(job.id)
    assert (await bench.wait(job)).state is JobState.CANCELLED
    assert bench.ingest.files("clinic", job.id) == ()
    await until(lambda: below_us() == zygotes)
    bench.write("a.pdf", pdf_files.text_pdf())
    _, files = await bench.run()
    assert files["a.pdf"].state is FileState.COMMITTED


@pytest.mark.parametrize("error", [DiskFull("The disk is full."), StoreDamaged("A segment is damaged.")])
async def test_a_store_that_fails_stops_the_job_with_its_reason_and_loses_nothing(
    plain: Bench, error: DiskFull | StoreDamaged
) -> None:
    for number in range(6):
        plain.write(f"{number}.txt", f"Text {number}.")

    def fail_at_the_third(document: NewDocument) -> None:
        if document.title == "2.txt":
            raise error

    plain.library.before_add = fail_at_the_third
    job, files = await plain.run()
    assert (job.state, job.error_reason, job.error_message) == (JobState.FAILED, error.reason, str(error))
    assert list(files) == ["0.txt", "1.txt"]
    assert plain.titles() == ["0.txt", "1.txt"]


async def test_without_a_sandbox_nothing_is_read(tmp_path: Path) -> None:
    extractor = PlainExtractor(error=SandboxUnavailable("This kernel offers no Landlock."))
    bench = Bench(tmp_path, extractor)
    bench.write("a.txt", "One.")
    bench.write("b.txt", "Two.")
    job, files = await bench.run()
    assert (job.state, job.error_reason) == (JobState.FAILED, "SANDBOX_UNAVAILABLE")
    assert files == {}
    assert bench.titles() == []


async def test_no_descriptor_is_left_open(plain: Bench) -> None:
    for number in range(20):
        plain.write(f"{number}.txt", f"Text {number}.")
    before = len(os.listdir("/proc/self/fd"))
    await plain.run()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_structure_that_the_parser_saw_reaches_the_knowledge_base(bench: Bench) -> None:
    added: list[NewDocument] = []
    bench.library.before_add = added.append
    bench.write("rules.md", "# Rules\n\nBadges expire.\n\n- one\n- two\n")
    await bench.run()
    (document,) = added
    seen = [(one.kind, one.level, document.pages[one.page - 1][one.start : one.end]) for one in document.blocks]
    assert seen == [(BlockKind.HEADING, 1, "Rules"), (BlockKind.LIST, 0, "- one\n- two")]
