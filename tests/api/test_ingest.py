"""IngestService over a real TLS connection, before an ingest that keeps everything in memory."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
import pytest

from appliance.access import ca
from appliance.access.callers import Callers
from appliance.access.groups import GroupBook
from appliance.access.signed import SignedFile
from appliance.api.ingest import MAX_PIECE_BYTES, IngestService
from appliance.api.interceptors import Gate
from appliance.client import Client
from appliance.config import Config
from appliance.errors import ApplianceError, InvalidArgument, NotFound, RequestTooLarge, SecondPerson
from appliance.gen.v1 import ingest_pb2 as pb
from appliance.gen.v1 import ingest_pb2_grpc
from appliance.ingest import lineage
from appliance.ingest.report import ReportFormat
from appliance.ingest.service import MAX_FILES, Ingest
from appliance.ingest.sources import Device, SourceBook, Sources
from appliance.knowledge.libraries import Libraries
from appliance.ports import Volumes
from appliance.types import (
    EVERYONE,
    FileOutcome,
    FileState,
    Ingestion,
    IngestionState,
    Principal,
    Provenance,
    SourceKind,
    SourceState,
    Watch,
)
from appliance.vault.keyring import FileKeyring
from tests.fakes import WordEmbedder
from tests.knowledge.conftest import new_document, open_libraries

T = TypeVar("T")
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
STICK = Provenance(SourceKind.STICK, serial="4C53", volume="1A2B-3C4D", label="RECORDS", signer="records")
INGESTION = Ingestion(
    "7f",
    "default",
    "handbook",
    frozenset({EVERYONE}),
    STICK,
    "olga",
    IngestionState.WAITING,
    NOW,
    job="jobs/7f",
    counts={FileState.FOUND: 2, FileState.QUARANTINED: 1},
    by_format={"pdf": 2},
    size_bytes=99,
)
FILES = (
    FileOutcome("a.md", FileState.COMMITTED, document="collections/handbook/documents/1", id="7f-0", format="markdown"),
    FileOutcome("b.pdf", FileState.QUARANTINED, reason="PDF_ENCRYPTED", remedy="Unlock it.", id="7f-1", ingestion="7f"),
    FileOutcome("c.zip", FileState.UNPACKED, id="7f-2", released=True),
)


@dataclass
class KeptIngest(Ingest):
    """One ingestion of each tenant, and uploads, in memory."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    kept: dict[str, bytearray] = field(default_factory=dict)

    async def start(
        self, caller: Principal, source: str, collection: str, readers: frozenset[str], approve: bool = False
    ) -> Ingestion:
        self.calls.append((str(caller), source, collection, readers, approve))
        return replace(INGESTION, collection=collection, readers=readers)

    def get(self, tenant: str, name: str) -> Ingestion:
        if name.removeprefix("ingestions/") != "7f":
            raise NotFound(f"There is no ingestion {name}.")
        return replace(INGESTION, tenant=tenant)

    def list(self, tenant: str) -> tuple[Ingestion, ...]:
        return tuple(replace(INGESTION, id=f"{number:x}") for number in range(150))

    def files(
        self, tenant: str, name: str, states: Collection[FileState] = (), after: str = "", limit: int = MAX_FILES
    ) -> tuple[FileOutcome, ...]:
        self.get(tenant, name)
        wanted = (file for file in FILES if file.id > after and (not states or file.state in states))
        return tuple(islice(wanted, limit))

    async def approve(self, caller: Principal, name: str) -> Ingestion:
        return replace(self.get(caller.tenant, name), state=IngestionState.RUNNING, approver=caller.user)

    async def resume(self, caller: Principal, name: str) -> Ingestion:
        return replace(self.get(caller.tenant, name), state=IngestionState.SCANNING)

    async def cancel(self, caller: Principal, name: str) -> Ingestion:
        return replace(self.get(caller.tenant, name), state=IngestionState.CANCELLED, end_time=NOW)

    def quarantined(self, tenant: str, after: str = "", limit: int = MAX_FILES) -> tuple[FileOutcome, ...]:
        return tuple(file for file in FILES if file.state is FileState.QUARANTINED)

    async def release(
        self, caller: Principal, ids: Collection[str], readers: frozenset[str] | None = None
    ) -> Ingestion:
        self.calls.append((set(ids), readers))
        return INGESTION

    async def purge(self, caller: Principal, ids: Collection[str] = (), *, all_: bool = False) -> int:
        self.calls.append((set(ids), all_))
        return 3 if all_ else len(ids)

    def report(self, tenant: str, name: str, form: ReportFormat = ReportFormat.JSON) -> Iterator[bytes]:
        self.get(tenant, name)
        yield form.value.encode()
        yield b"x" * (3 * MAX_PIECE_BYTES + 1)

    async def begin_upload(
        self, caller: Principal, path: str, collection: str, readers: frozenset[str], size_bytes: int = 0
    ) -> str:
        self.calls.append((path, collection, readers, size_bytes))
        self.kept["5e"] = bytearray()
        return "5e"

    async def append(self, caller: Principal, upload: str, offset: int, data: bytes) -> int:
        kept = self.kept[upload]
        if offset > len(kept):
            raise InvalidArgument.of("offset", f"the box has {len(kept)} bytes of it; go on there.")
        kept[offset : offset + len(data)] = data
        return len(kept)

    def upload_size(self, caller: Principal, upload: str) -> int:
        if upload not in self.kept:
            raise NotFound(f"There is no upload {upload}.")
        return len(self.kept[upload])

    async def finish(self, caller: Principal, upload: str, sha256: str) -> Ingestion:
        if hashlib.sha256(self.kept[upload]).hexdigest() != sha256:
            raise InvalidArgument.of("sha256", "the upload is not that file.")
        return INGESTION


@dataclass
class Plugged:
    """USB disks that a test plugs in (`Devices`)."""

    devices: tuple[Device, ...] = ()

    def list(self) -> tuple[Device, ...]:
        return self.devices

    async def changed(self, timeout_seconds: float) -> None:
        await asyncio.sleep(timeout_seconds)


@dataclass
class Served:
    """A server with the service behind a gate, and an administrator's client of it."""

    service: IngestService
    ingest: KeptIngest
    plugged: Plugged
    groups: GroupBook
    libraries: Libraries
    client: Client

    def serve(self, **changed: Any) -> None:
        """Answer with another service from here on."""
        for name, value in changed.items():
            object.__setattr__(self.service, name, value)

    async def ask(self, call: Callable[..., T], *given: Any, **named: Any) -> T:
        return await asyncio.to_thread(call, *given, **named)

    async def upload(self, *pieces: pb.UploadFileRequest) -> pb.UploadFileResponse:
        """Pieces as no client of ours would send them."""
        answer: pb.UploadFileResponse = await self.ask(self.client._call, self.client._ingest.UploadFile, iter(pieces))
        return answer


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    data = tmp_path / "data"
    identity = ca.prepare(data, "127.0.0.1")
    keyring = FileKeyring.open(data / "keys", data / "knowledge")
    groups, plugged = GroupBook(data / "groups.json", keyring), Plugged()
    ingest, libraries = KeptIngest(), open_libraries(data, WordEmbedder())
    book = SourceBook(SignedFile(data / "access" / "sources.json", keyring, b"sources 1"))
    sources = Sources(Config(data_dir=data, ingest_roots=str(tmp_path)), plugged, cast(Volumes, None), book)
    service = IngestService(Callers(groups), ingest, sources, libraries)
    server = grpc.aio.server(interceptors=[Gate()])
    ingest_pb2_grpc.add_IngestServiceServicer_to_server(service, server)
    pair = [(identity.key, identity.certificate)]
    credentials = grpc.ssl_server_credentials(pair, identity.client_authority, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    with Client.local(data, f"127.0.0.1:{port}") as client:
        yield Served(service, ingest, plugged, groups, libraries, client)
    await server.stop(0)
    libraries.close()


# --- sources


async def test_a_folder_is_watched_with_its_settings_and_then_no_more(served: Served, tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    wanted = Watch("handbook", frozenset({"role:admin"}), approve=True, settle_polls=5)
    made = await served.ask(served.client.watch_source, str(tmp_path / "drop"), wanted, share=True)
    assert (made.provenance.kind, made.provenance.path) == (SourceKind.SHARE, str(tmp_path / "drop"))
    assert made.watch == wanted
    assert await served.ask(served.client.sources) == (made,)
    await served.ask(served.client.unwatch_source, made.id)
    assert await served.ask(served.client.sources) == ()
    with pytest.raises(NotFound):
        await served.ask(served.client.unwatch_source, made.id)


@pytest.mark.parametrize(
    ("watch", "named"),
    [
        (Watch("Hand Book", frozenset({EVERYONE})), "watch.collection: must be a name"),
        (Watch("handbook", frozenset({"admin"})), "readers: 'admin' is no reader"),
        (Watch("handbook", frozenset({EVERYONE}), settle_polls=-1), "watch.settle_polls: must be between 0 and 1000"),
    ],
)
async def test_a_watch_with_a_wrong_setting_is_refused(served: Served, watch: Watch, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        await served.ask(served.client.watch_source, "/srv", watch)
    assert await served.ask(served.client.sources) == ()


async def test_where_a_second_person_must_approve_no_watch_does(served: Served) -> None:
    served.serve(second_approves=True)
    with pytest.raises(SecondPerson, match="A watch may not approve"):
        await served.ask(served.client.watch_source, "/srv", Watch("a", frozenset({EVERYONE}), approve=True))


async def test_a_stick_is_refused_until_its_serial_number_is_allowed(served: Served) -> None:
    served.plugged.devices = (Device("/dev/sdz", "4C53", "SanDisk", "Cruzer", 8 << 30, removable=True),)
    [refused] = await served.ask(served.client.sources)
    assert (refused.id, refused.state, refused.size_bytes) == ("usb-4C53", SourceState.REFUSED, 8 << 30)
    assert "4C53" in refused.problem
    await served.ask(served.client.allow_device, "4C53")
    [ready] = await served.ask(served.client.sources)
    assert (ready.state, ready.problem, ready.provenance.serial) == (SourceState.READY, "", "4C53")
    assert (await served.ask(served.client.source_rules))[0] == ("4C53",)
    await served.ask(served.client.allow_device, "4C53", allowed=False)
    assert await served.ask(served.client.source_rules) == ((), {})


async def test_signers_are_trusted_by_name_and_forgotten(served: Served) -> None:
    await served.ask(served.client.trust_signer, "records", "ab" * 32)
    assert await served.ask(served.client.source_rules) == ((), {"records": "ab" * 32})
    with pytest.raises(InvalidArgument, match="public_key: "):
        await served.ask(served.client.trust_signer, "records", "no key")
    await served.ask(served.client.trust_signer, "records", "")
    assert await served.ask(served.client.source_rules) == ((), {})


# --- ingestions


async def test_an_ingestion_crosses_the_wire_whole(served: Served) -> None:
    found = await served.ask(served.client.ingestion, "7f")
    assert found == replace(INGESTION, tenant="")
    assert await served.ask(served.client.cancel_ingestion, "7f") == replace(
        INGESTION, tenant="", state=IngestionState.CANCELLED, end_time=NOW
    )


async def test_what_is_started_is_for_its_readers_and_for_everyone_where_none_is_named(served: Served) -> None:
    await served.ask(served.client.start_ingestion, "sources/usb-1", "handbook")
    await served.ask(served.client.ingest, "/srv/drop", "handbook", ["role:admin", "user:ann"])
    first, second = served.ingest.calls
    assert first[1:] == ("sources/usb-1", "handbook", frozenset({EVERYONE}), False)
    assert second[1:] == ("/srv/drop", "handbook", frozenset({"role:admin", "user:ann"}), True)


@pytest.mark.parametrize(
    ("source", "collection", "readers", "named"),
    [
        ("", "handbook", (), "source: must not be empty"),
        ("x" * 4097, "handbook", (), "source: has 4097 characters"),
        ("/srv", "Hand Book", (), "collection: must be a name"),
        ("/srv", "handbook", ("group:nobody",), "readers: 'group:nobody' names no group"),
        ("/srv", "handbook", ("admin",), "readers: 'admin' is no reader"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_starts(
    served: Served, source: str, collection: str, readers: tuple[str, ...], named: str
) -> None:
    with pytest.raises(InvalidArgument, match=named):
        await served.ask(served.client.start_ingestion, source, collection, readers)
    with pytest.raises(ApplianceError):
        await served.ask(served.client.create_upload, source or " ", collection, readers or ("group:nobody",))
    assert served.ingest.calls == []


@pytest.mark.parametrize("call", ["ingestion", "approve_ingestion", "resume_ingestion", "cancel_ingestion"])
async def test_an_ingestion_that_is_not_there_is_not_found(served: Served, call: str) -> None:
    with pytest.raises(NotFound):
        await served.ask(getattr(served.client, call), "ab")
    with pytest.raises(InvalidArgument, match="name: must be a name such as '7f3a', in full 'ingestions/7f3a'"):
        await served.ask(getattr(served.client, call), "../7f")


async def test_ingestions_are_listed_over_pages(served: Served) -> None:
    found = await served.ask(lambda: [one.id for one in served.client.ingestions()])
    assert found == [f"{number:x}" for number in range(150)]


async def test_files_are_listed_by_state(served: Served) -> None:
    everything = await served.ask(lambda: list(served.client.files("7f")))
    assert [replace(file, ingestion=file.ingestion.removeprefix("ingestions/")) for file in everything] == list(FILES)
    refused = await served.ask(lambda: list(served.client.files("7f", [FileState.QUARANTINED, FileState.UNPACKED])))
    assert [file.path for file in refused] == ["b.pdf", "c.zip"]


async def test_files_are_listed_over_pages_by_the_last_files_id(served: Served) -> None:
    request, told = pb.ListFilesRequest(ingestion="ingestions/7f", page_size=2), list[list[str]]()
    while not told or request.page_token:
        answer = await served.ask(served.client._call, served.client._ingest.ListFiles, request)
        told.append([file.id for file in answer.files])
        request.page_token = answer.next_page_token
    assert told == [["7f-0", "7f-1"], ["7f-2"]]


@pytest.mark.parametrize("token", ["7f", "7f-", "x-1", "7f-1 ", "-1", "7f-" + "9" * 11])
async def test_a_page_token_that_no_listing_gave_is_refused(served: Served, token: str) -> None:
    request = pb.ListFilesRequest(ingestion="ingestions/7f", page_token=token)
    with pytest.raises(InvalidArgument, match="page_token"):
        await served.ask(served.client._call, served.client._ingest.ListFiles, request)


async def test_a_state_that_no_file_can_have_is_refused(served: Served) -> None:
    request = pb.ListFilesRequest(ingestion="ingestions/7f", states=[99])  # type: ignore[list-item]
    with pytest.raises(InvalidArgument, match="states: 99 is no state"):
        await served.ask(served.client._call, served.client._ingest.ListFiles, request)


@pytest.mark.parametrize("form", ["json", "csv", "html"])
async def test_a_report_comes_in_pieces_that_a_call_can_carry(served: Served, form: str) -> None:
    pieces = await served.ask(lambda: list(served.client.report("7f", form)))
    assert b"".join(pieces) == form.encode() + b"x" * (3 * MAX_PIECE_BYTES + 1)
    assert max(map(len, pieces)) <= MAX_PIECE_BYTES


async def test_a_report_of_no_ingestion_is_not_found(served: Served) -> None:
    with pytest.raises(NotFound):
        await served.ask(lambda: list(served.client.report("ab")))


# --- quarantine


async def test_released_files_keep_their_readers_unless_others_are_named(served: Served) -> None:
    served.groups.set("default", "hr", ["ann"])
    await served.ask(served.client.release_files, ["7f-1"])
    await served.ask(served.client.release_files, ["7f-1", "7f-2"], ["group:hr"])
    assert served.ingest.calls == [({"7f-1"}, None), ({"7f-1", "7f-2"}, frozenset({"group:hr"}))]


async def test_a_purge_takes_files_or_all_and_never_nothing(served: Served) -> None:
    assert await served.ask(served.client.purge_files, ["7f-1"]) == 1
    assert await served.ask(served.client.purge_files, all_=True) == 3
    for files, everything in (((), False), (("7f-1",), True)):
        with pytest.raises(InvalidArgument, match="ids: "):
            await served.ask(served.client.purge_files, files, all_=everything)
    assert served.ingest.calls == [({"7f-1"}, False), (set(), True)]


# --- uploads


async def test_an_upload_that_broke_off_goes_on_where_the_box_has_it(served: Served) -> None:
    content = bytes(range(256)) * 4096
    upload = await served.ask(served.client.create_upload, "notes/a.md", "handbook")
    assert upload == "uploads/5e"
    halfway = pb.UploadFileRequest(upload=upload, data=content[:300_000])
    assert (await served.upload(halfway)).size_bytes == 300_000
    told: list[int] = []
    assert (await served.ask(served.client.upload, upload, io.BytesIO(content), told.append)).id == "7f"
    assert bytes(served.ingest.kept["5e"]) == content
    assert told == [512 << 10, 768 << 10, 1 << 20]


async def test_what_is_too_large_may_be_said_before_it_is_sent(served: Served) -> None:
    await served.ask(served.client.create_upload, "a.md", "handbook", size_bytes=5 << 30)
    assert served.ingest.calls == [("a.md", "handbook", frozenset({"everyone"}), 5 << 30)]
    with pytest.raises(InvalidArgument, match="size_bytes: must not be negative"):
        await served.ask(served.client.create_upload, "a.md", "handbook", size_bytes=-1)


async def test_a_piece_at_a_wrong_place_is_told_the_right_one(served: Served) -> None:
    upload = await served.ask(served.client.create_upload, "a.md", "handbook")
    with pytest.raises(InvalidArgument, match="offset: the box has 3 bytes of it"):
        await served.upload(
            pb.UploadFileRequest(upload=upload, data=b"one"), pb.UploadFileRequest(offset=9, data=b"two")
        )
    assert bytes(served.ingest.kept["5e"]) == b"one"


@pytest.mark.parametrize(
    ("pieces", "error", "words"),
    [
        ((), InvalidArgument, "upload: must be named in the first piece"),
        (
            (pb.UploadFileRequest(data=b"a"),),
            InvalidArgument,
            "upload: must be a name such as '7f3a', in full 'uploads/7f3a'",
        ),
        ((pb.UploadFileRequest(upload="uploads/ab"),), NotFound, "no upload ab"),
        (
            (pb.UploadFileRequest(upload="uploads/5e"), pb.UploadFileRequest(upload="uploads/ab", data=b"a")),
            InvalidArgument,
            "upload: must stay uploads/5e",
        ),
        ((pb.UploadFileRequest(upload="uploads/5e", offset=-1, data=b"a"),), InvalidArgument, "offset: must not be"),
        (
            (pb.UploadFileRequest(upload="uploads/5e", data=b"a" * (MAX_PIECE_BYTES + 1)),),
            RequestTooLarge,
            "a piece has at most 1048576",
        ),
        (
            (pb.UploadFileRequest(upload="uploads/5e", data=b"a", sha256="00" * 32),),
            InvalidArgument,
            "sha256: the upload is not that file",
        ),
    ],
)
async def test_a_bad_upload_is_refused_by_the_field_that_is_wrong(
    served: Served, pieces: tuple[pb.UploadFileRequest, ...], error: type[ApplianceError], words: str
) -> None:
    await served.ask(served.client.create_upload, "a.md", "handbook")
    with pytest.raises(error, match=words):
        await served.upload(*pieces)


async def test_pieces_are_not_read_faster_than_they_are_kept(served: Served) -> None:
    upload = await served.ask(served.client.create_upload, "a.md", "handbook")
    held, sent = asyncio.Event(), 0

    async def slow(caller: Principal, upload: str, offset: int, data: bytes) -> int:
        await held.wait()
        return await KeptIngest.append(served.ingest, caller, upload, offset, data)

    def pieces() -> Iterator[pb.UploadFileRequest]:
        nonlocal sent
        for number in range(200):
            sent = number
            yield pb.UploadFileRequest(upload=upload, offset=number << 18, data=bytes(1 << 18))

    served.ingest.append = slow  # type: ignore[method-assign]
    call = asyncio.create_task(served.ask(served.client._call, served.client._ingest.UploadFile, pieces()))
    for _ in range(20):
        await asyncio.sleep(0.01)
    before = sent
    held.set()
    assert (await call).size_bytes == 200 << 18
    assert before < 150


# --- lineage


async def test_a_document_is_traced_to_its_stick_and_its_ingestion(served: Served) -> None:
    library = served.libraries.of("default")
    library.create("handbook")
    metadata = lineage.to_metadata(lineage.of(replace(INGESTION, approver="ann"), container="box.zip"))
    stored = library.add("handbook", replace(new_document("Badges expire."), metadata=metadata))
    document, origin, ingestion = await served.ask(served.client.lineage, stored.name)
    assert (document.sha256, document.parser, document.pipeline) == (stored.sha256, stored.parser, stored.pipeline)
    assert origin == lineage.of(replace(INGESTION, approver="ann"), container="box.zip")
    assert ingestion is not None
    assert (ingestion.id, ingestion.create_time) == ("7f", NOW)


async def test_the_lineage_of_a_forgotten_ingestion_is_what_the_document_carries(served: Served) -> None:
    library = served.libraries.of("default")
    library.create("handbook")
    metadata = lineage.to_metadata(lineage.of(replace(INGESTION, id="ab")))
    stored = library.add("handbook", replace(new_document("Badges expire."), metadata=metadata))
    _, origin, ingestion = await served.ask(served.client.lineage, stored.name)
    assert origin is not None
    assert (origin.ingestion, origin.serial, ingestion) == ("ingestions/ab", "4C53", None)
    plain = library.add("handbook", new_document("Doors close at six."))
    assert (await served.ask(served.client.lineage, plain.name))[1:] == (None, None)


async def test_the_lineage_of_what_a_caller_may_not_read_is_not_found(served: Served) -> None:
    library = served.libraries.of("default")
    library.create("handbook")
    secret = library.add("handbook", new_document("Nobody knows.", readers=frozenset({"user:ann"})))
    with pytest.raises(NotFound):
        await served.ask(served.client.lineage, secret.name)
