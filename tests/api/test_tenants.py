"""What one tenant learns of another: nothing of its jobs, files, names and counts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from appliance.access.callers import Callers
from appliance.access.groups import GroupBook
from appliance.api.interceptors import Context
from appliance.api.job import JobService
from appliance.api.knowledge import KnowledgeService
from appliance.api.telemetry import TelemetryService
from appliance.errors import AlreadyExists, ApplianceError, NotFound
from appliance.gen.v1 import ingest_pb2, job_pb2, knowledge_pb2, telemetry_pb2
from appliance.health.findings import STORE_DAMAGED
from appliance.health.monitor import Monitor
from appliance.jobs import JobRunner
from appliance.knowledge.transfer.jobs import Transfers
from appliance.knowledge.upkeep import Upkeep
from appliance.ports import Progress
from appliance.types import Principal, Role, Severity, Status
from appliance.vault.keyring import FileKeyring
from tests.fakes import WordEmbedder
from tests.ingest.bench import Bench
from tests.ingest.test_service import CallOf, book_of, service_of
from tests.knowledge.conftest import new_document, open_libraries

OURS, THEIRS = Principal("clinic", "olga", Role.OPERATOR), Principal("rival", "rex", Role.ADMIN)


def call_of(caller: Principal) -> Context:
    return cast(Context, CallOf(caller))


@dataclass
class Started:
    """A box with a job of the clinic, "ours", and one of the box itself; both wait."""

    bench: Bench
    jobs: JobService
    ours: str
    of_box: str

    def list(self, caller: Principal) -> Any:
        return self.jobs.ListJobs(job_pb2.ListJobsRequest(), call_of(caller))

    async def names(self, caller: Principal) -> set[str]:
        return {job.name for job in (await self.list(caller)).jobs}


@pytest.fixture
async def started(tmp_path: Path) -> AsyncIterator[Started]:
    bench = Bench(tmp_path)

    async def work(progress: Progress) -> None:
        await asyncio.Event().wait()

    ours = bench.jobs.start("ingest", "collections/board", "files", work, "clinic")
    of_box = bench.jobs.start("import", "writer.gguf", "bytes", work)
    yield Started(bench, JobService(Callers(book_of(bench)), bench.jobs), ours.name, of_box.name)
    await bench.jobs.stop()


async def test_jobs_are_listed_to_their_own_tenant_and_those_of_the_box_to_all(started: Started) -> None:
    assert await started.names(OURS) == {started.ours, started.of_box}
    assert await started.names(THEIRS) == {started.of_box}


@pytest.mark.parametrize("method", ["GetJob", "WatchJob", "CancelJob"])
async def test_a_job_of_another_tenant_is_as_one_that_there_is_not(started: Started, method: str) -> None:
    async def ask(name: str, caller: Principal) -> job_pb2.Job:
        answer = getattr(started.jobs, method)(getattr(job_pb2, f"{method}Request")(name=name), call_of(caller))
        found: job_pb2.Job = (await (anext(answer) if method == "WatchJob" else answer)).job
        return found

    for name in (started.ours, "jobs/ab"):
        with pytest.raises(NotFound) as refused:
            await ask(name, THEIRS)
        assert str(refused.value) == f"There is no job {name}."
    await asyncio.sleep(0)
    assert not started.bench.jobs.get(started.ours.removeprefix("jobs/")).state.ended
    assert (await ask(started.ours, OURS)).name == started.ours
    assert (await ask(started.of_box, THEIRS)).name == started.of_box


async def test_files_and_refusals_are_told_to_their_own_tenant_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(a__exe="One.")
    service = service_of(bench)
    start = ingest_pb2.StartIngestionRequest(source="sources/usb", collection="collections/board", approve=True)
    begun = (await service.StartIngestion(start, call_of(OURS))).ingestion
    async for _ in bench.jobs.watch(begun.job.removeprefix("jobs/")):
        pass
    asked = ingest_pb2.ListFilesRequest(ingestion=begun.name)
    [file] = (await service.ListFiles(asked, call_of(OURS))).files
    assert file.path == "a.exe"
    with pytest.raises(ApplianceError, match="There is no ingestion"):
        await service.ListFiles(asked, call_of(THEIRS))
    everything = ingest_pb2.ListQuarantineRequest()
    assert [one.path for one in (await service.ListQuarantine(everything, call_of(OURS))).files] == ["a.exe"]
    assert list((await service.ListQuarantine(everything, call_of(THEIRS))).files) == []


async def test_an_ingestion_and_an_upload_of_another_tenant_are_as_ones_that_there_are_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(a__exe="One.")
    service = service_of(bench)
    start = ingest_pb2.StartIngestionRequest(source="sources/usb", collection="collections/board", approve=True)
    begun = (await service.StartIngestion(start, call_of(OURS))).ingestion
    await bench.wait(bench.ingest.get("clinic", begun.name))
    [file] = bench.ingest.quarantined("clinic")
    create = ingest_pb2.CreateUploadRequest(path="a.txt", collection="collections/board")
    upload = (await service.CreateUpload(create, call_of(OURS))).upload
    refused: dict[str, Any] = {
        **{f"{verb}Ingestion": {"name": begun.name} for verb in ("Get", "Approve", "Resume", "Cancel")},
        **{f"{verb}Files": {"ids": [file.id]} for verb in ("Release", "Purge")},
        "GetUpload": {"upload": upload},
        "CancelUpload": {"upload": upload},
    }
    for method, fields in refused.items():
        with pytest.raises(NotFound):
            await getattr(service, method)(getattr(ingest_pb2, f"{method}Request")(**fields), call_of(THEIRS))
    with pytest.raises(NotFound):
        await anext(service.GetReport(ingest_pb2.GetReportRequest(ingestion=begun.name), call_of(THEIRS)))
    with pytest.raises(NotFound):
        await service.GetUpload(ingest_pb2.GetUploadRequest(upload=upload), call_of(replace(OURS, user="otto")))
    everything = ingest_pb2.ListUploadsRequest()
    otto = call_of(replace(OURS, user="otto"))
    assert [one.name for one in (await service.ListUploads(everything, otto)).uploads] == [upload]
    assert list((await service.ListUploads(everything, call_of(THEIRS))).uploads) == []
    await service.CancelUpload(ingest_pb2.CancelUploadRequest(upload=upload), otto)
    assert list((await service.ListUploads(everything, call_of(OURS))).uploads) == []
    listed = ingest_pb2.ListIngestionsRequest()
    assert [one.name for one in (await service.ListIngestions(listed, call_of(OURS))).ingestions] == [begun.name]
    assert list((await service.ListIngestions(listed, call_of(THEIRS))).ingestions) == []


@dataclass
class Telling:
    """What a box says of itself: a damaged collection of the clinic, and whose status was asked for."""

    service: TelemetryService
    asked: list[Principal]


@pytest.fixture
def telling(tmp_path: Path) -> Telling:
    monitor, asked = Monitor(), list[Principal]()
    monitor.set_of_tenants(STORE_DAMAGED, {("clinic", "collections/board"): "/data/clinic/board/CURRENT"})

    def status(caller: Principal) -> Status:
        asked.append(caller)
        return Status("1", 0.0, "/data", "", Severity.OK, 1, 1, 1, 1, 1, 1, principal=str(caller))

    bench = Bench(tmp_path)
    return Telling(TelemetryService(Callers(book_of(bench)), monitor, status, dict), asked)


async def test_a_damaged_collection_is_named_to_its_own_tenant_alone(telling: Telling) -> None:
    def watch(caller: Principal) -> Any:
        return telling.service.WatchHealth(telemetry_pb2.WatchHealthRequest(), call_of(caller))

    [ours] = (await anext(watch(OURS))).findings
    assert (ours.subject, ours.detail) == ("collections/board", "/data/clinic/board/CURRENT")
    answer = await anext(watch(THEIRS))
    assert answer.severity == telemetry_pb2.SEVERITY_CRITICAL
    [theirs] = answer.findings
    assert (theirs.code, theirs.subject, theirs.detail) == ("STORE_DAMAGED", "", "")
    assert "clinic" not in str(answer)
    assert "board" not in str(answer)


async def test_the_status_is_that_of_the_caller(telling: Telling) -> None:
    answer = await telling.service.GetStatus(telemetry_pb2.GetStatusRequest(), call_of(THEIRS))
    assert answer.principal == str(THEIRS)
    assert telling.asked == [THEIRS]


# --- counts and sizes


async def test_the_size_of_a_collection_is_told_to_those_only_who_write_there(tmp_path: Path) -> None:
    libraries = open_libraries(tmp_path, WordEmbedder())
    libraries.of("clinic").create("board")
    libraries.of("clinic").add("board", new_document("Nobody knows.", readers=frozenset({"user:ann"})))
    unused = cast(Any, None)
    callers = Callers(GroupBook(tmp_path / "groups.json", FileKeyring.open(tmp_path / "keys", tmp_path / "data")))
    service = KnowledgeService(callers, libraries, unused, unused, unused, unused)
    sizes = {}
    for role in (Role.ADMIN, Role.OPERATOR, Role.APP):
        call = call_of(Principal("clinic", "olga", role))
        [listed] = (await service.ListCollections(knowledge_pb2.ListCollectionsRequest(), call)).collections
        asked = knowledge_pb2.GetCollectionRequest(name="collections/board")
        assert (await service.GetCollection(asked, call)).collection == listed
        assert listed.document_count == 0
        sizes[role] = listed.size_bytes > 0
    assert sizes == {Role.ADMIN: True, Role.OPERATOR: True, Role.APP: False}
    libraries.close()


def test_counts_are_of_what_a_caller_may_read_in_its_own_tenant(tmp_path: Path) -> None:
    libraries = open_libraries(tmp_path, WordEmbedder())
    for tenant, readers in (("clinic", "everyone"), ("clinic", "user:ann"), ("rival", "everyone")):
        with suppress(AlreadyExists):
            libraries.of(tenant).create("board")
        libraries.of(tenant).add("board", new_document(f"For {readers}.", readers=frozenset({readers})))
    libraries.of("rival").create("second")
    assert libraries.counts("clinic", OURS.groups) == (1, 1)
    assert libraries.counts("clinic", Principal("clinic", "ann", Role.APP).groups) == (1, 2)
    assert libraries.counts("rival", THEIRS.groups) == (2, 1)
    assert libraries.counts("stranger", THEIRS.groups) == (0, 0)
    assert not (tmp_path / "knowledge" / "stranger").exists()
    libraries.close()


async def test_long_work_on_a_collection_is_a_job_of_its_tenant(tmp_path: Path) -> None:
    embedder, jobs, data = WordEmbedder(), JobRunner(), tmp_path / "data"
    libraries = open_libraries(data, embedder)
    keyring = FileKeyring.open(data / "vault", data / "knowledge")
    libraries.of("clinic").create("board")
    upkeep = Upkeep(libraries, lambda name, identity, background=False: embedder, jobs)
    transfers = Transfers(libraries, keyring, jobs, data, lambda tenant: frozenset())
    (tmp_path / "there").touch()
    started = [
        upkeep.verify("clinic", "board"),
        upkeep.reembed("clinic", "board", ""),
        transfers.export("clinic", "board", f"{tmp_path}/new", "correct horse battery"),
        transfers.import_("clinic", "copy", f"{tmp_path}/there", "correct horse battery"),
        transfers.backup("clinic", "board", f"{tmp_path}/backup"),
        transfers.restore("clinic", "copy", f"{tmp_path}/there"),
    ]
    for job in started:
        jobs.cancel(job.id)
    assert [job.tenant for job in started] == ["clinic"] * 6
    await jobs.stop()
    libraries.close()
