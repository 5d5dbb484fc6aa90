"""Documents on their way into a collection: sources, ingestions, uploads, quarantine."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

from appliance import types
from appliance.client import messages as convert
from appliance.client.calls import WORK_SECONDS, Calls, Stream
from appliance.client.messages import named
from appliance.gen.v1 import ingest_pb2
from appliance.gen.v1.ingest_pb2_grpc import IngestServiceStub

PIECE_BYTES = 256 << 10


class IngestCalls(Calls):
    """Documents on their way into a collection: sources, ingestions, uploads, quarantine."""

    def __init__(self, *connection: Any) -> None:
        super().__init__(*connection)
        self._ingest = IngestServiceStub(self._channel)

    # --- sources

    def sources(self) -> tuple[types.Source, ...]:
        """Sticks that are plugged in, shares and folders that are watched."""
        answer = self._call(self._ingest.ListSources, ingest_pb2.ListSourcesRequest())
        return tuple(map(convert.source, answer.sources))

    def source_rules(self) -> tuple[tuple[str, ...], Mapping[str, str]]:
        """Serial numbers of sticks that may come in; public keys of trusted signers by their names."""
        answer = self._call(self._ingest.ListSources, ingest_pb2.ListSourcesRequest())
        return tuple(answer.allowed_serials), dict(answer.signers)

    def watch_source(self, path: str, watch: types.Watch, *, share: bool = False) -> types.Source:
        """Take whole files from a folder of the box, or a stick ("sources/ID"), from now on; share: it is a mount of
        another machine's."""
        wanted = ingest_pb2.Watch(
            collection=named("collections", watch.collection),
            readers=sorted(watch.readers),
            approve=watch.approve,
            settle_polls=watch.settle_polls,
        )
        request = ingest_pb2.WatchSourceRequest(path=path, share=share, watch=wanted)
        return convert.source(self._call(self._ingest.WatchSource, request).source)

    def unwatch_source(self, source: str) -> None:
        self._call(self._ingest.UnwatchSource, ingest_pb2.UnwatchSourceRequest(name=named("sources", source)))

    def allow_device(self, serial: str, *, allowed: bool = True) -> None:
        """Let sticks of this serial number in, or no longer."""
        self._call(self._ingest.AllowDevice, ingest_pb2.AllowDeviceRequest(serial=serial, allowed=allowed))

    def trust_signer(self, signer: str, public_key: str) -> None:
        """Trust the manifests of an Ed25519 key (64 hex digits) under that name; '' trusts the name no more."""
        self._call(self._ingest.TrustSigner, ingest_pb2.TrustSignerRequest(signer=signer, public_key=public_key))

    # --- ingestions

    def start_ingestion(
        self, source: str, collection: str, readers: Sequence[str] = (), *, approve: bool = False
    ) -> types.Ingestion:
        """Look at a source ("sources/ID", or a path of the box in `ingest_roots`) and stop there, unless `approve`.

        No `readers`: everyone may read the documents. Its job is watched with `watch_job`.
        """
        request = ingest_pb2.StartIngestionRequest(
            source=source, collection=named("collections", collection), readers=readers, approve=approve
        )
        return convert.ingestion(self._call(self._ingest.StartIngestion, request, WORK_SECONDS).ingestion)

    def ingest(self, path: str, collection: str, readers: Sequence[str] = ()) -> types.Ingestion:
        """Take a folder, a file or a stick's image of the box into a collection, without a stop after the preview."""
        return self.start_ingestion(path, collection, readers, approve=True)

    def ingestion(self, ingestion: str) -> types.Ingestion:
        request = ingest_pb2.GetIngestionRequest(name=named("ingestions", ingestion))
        return convert.ingestion(self._call(self._ingest.GetIngestion, request).ingestion)

    def ingestions(self) -> Iterator[types.Ingestion]:
        """Newest first."""
        request = ingest_pb2.ListIngestionsRequest()
        return map(convert.ingestion, self._pages(self._ingest.ListIngestions, request, "ingestions"))

    def approve_ingestion(self, ingestion: str) -> types.Ingestion:
        """Let one that was previewed go on."""
        request = ingest_pb2.ApproveIngestionRequest(name=named("ingestions", ingestion))
        return convert.ingestion(self._call(self._ingest.ApproveIngestion, request).ingestion)

    def resume_ingestion(self, ingestion: str) -> types.Ingestion:
        """Go on with one that was interrupted or failed."""
        request = ingest_pb2.ResumeIngestionRequest(name=named("ingestions", ingestion))
        return convert.ingestion(self._call(self._ingest.ResumeIngestion, request, WORK_SECONDS).ingestion)

    def cancel_ingestion(self, ingestion: str) -> types.Ingestion:
        """End it; what was committed stays. Returns when the files that are being written are."""
        request = ingest_pb2.CancelIngestionRequest(name=named("ingestions", ingestion))
        return convert.ingestion(self._call(self._ingest.CancelIngestion, request, WORK_SECONDS).ingestion)

    def files(self, ingestion: str, states: Sequence[types.FileState] = ()) -> Iterator[types.FileOutcome]:
        """How each file stands; states: of these only."""
        request = ingest_pb2.ListFilesRequest(
            ingestion=named("ingestions", ingestion),
            states=[ingest_pb2.FileOutcome.State.Value(f"STATE_{state.name}") for state in states],
        )
        return map(convert.file_outcome, self._pages(self._ingest.ListFiles, request, "files"))

    def report(self, ingestion: str, form: str = "json") -> Stream[bytes]:
        """The whole story of an ingestion as the pieces of a file: json, csv or html."""
        request = ingest_pb2.GetReportRequest(
            ingestion=named("ingestions", ingestion),
            format=ingest_pb2.GetReportRequest.Format.Value(f"FORMAT_{form.upper()}"),
        )
        return self._stream(self._ingest.GetReport, request, lambda answer: answer.data, WORK_SECONDS)

    def lineage(self, document: str) -> tuple[types.Document, types.Lineage | None, types.Ingestion | None]:
        """A document by its whole resource name, with its pipeline; how it came in, None where no ingestion made it;
        and that ingestion, None where it is no longer kept."""
        answer = self._call(self._ingest.GetLineage, ingest_pb2.GetLineageRequest(document=document))
        return (
            replace(convert.document(answer.document), pipeline=answer.pipeline),
            convert.lineage(answer.lineage) if answer.HasField("lineage") else None,
            convert.ingestion(answer.ingestion) if answer.HasField("ingestion") else None,
        )

    # --- uploads

    def create_upload(self, path: str, collection: str, readers: Sequence[str] = (), *, size_bytes: int = 0) -> str:
        """Begin to send a file of that name from here; the upload's name, for `upload`. size_bytes: 0 is not known."""
        request = ingest_pb2.CreateUploadRequest(
            path=path, collection=named("collections", collection), readers=readers, size_bytes=size_bytes
        )
        return str(self._call(self._ingest.CreateUpload, request).upload)

    def uploads(self) -> Iterator[types.Upload]:
        """Those of every user that are open, the oldest first."""
        return map(convert.upload, self._pages(self._ingest.ListUploads, ingest_pb2.ListUploadsRequest(), "uploads"))

    def cancel_upload(self, upload: str) -> None:
        """Destroy what came of a file, whoever sends it."""
        self._call(self._ingest.CancelUpload, ingest_pb2.CancelUploadRequest(upload=named("uploads", upload)))

    def upload(self, upload: str, file: BinaryIO, sent: Callable[[int], None] | None = None) -> types.Ingestion:
        """Send the rest of a file, from where the box has it durably; again after it broke off: it goes on there.

        file: open for reading, at its beginning. sent: told how many of its bytes are on their way.
        Raises InvalidArgument where the whole is not the file that was begun: the upload is dropped then; OSError where
        the file cannot be read: it stays.
        """
        asked = ingest_pb2.GetUploadRequest(upload=named("uploads", upload))
        durable = int(self._call(self._ingest.GetUpload, asked).size_bytes)
        faults: list[OSError] = []

        def pieces() -> Iterator[ingest_pb2.UploadFileRequest]:
            try:
                yield from _pieces(asked.upload, file, durable, sent or _ignore)
            except OSError as error:  # gRPC would not say which: the stream ends, and it is raised here
                faults.append(error)

        try:
            return convert.ingestion(self._call(self._ingest.UploadFile, pieces(), WORK_SECONDS).ingestion)
        finally:
            if faults:
                raise faults[0]

    # --- quarantine

    def quarantine(self) -> Iterator[types.FileOutcome]:
        """Files that were refused, of all ingestions, newest first."""
        request = ingest_pb2.ListQuarantineRequest()
        return map(convert.file_outcome, self._pages(self._ingest.ListQuarantine, request, "files"))

    def release_files(self, files: Sequence[str], readers: Sequence[str] = ()) -> types.Ingestion:
        """Send refused files of one ingestion (by id) on their way again, as a new one; no `readers`: as before."""
        request = ingest_pb2.ReleaseFilesRequest(ids=files, readers=readers)
        return convert.ingestion(self._call(self._ingest.ReleaseFiles, request, WORK_SECONDS).ingestion)

    def purge_files(self, files: Sequence[str] = (), *, all_: bool = False) -> int:
        """Destroy the kept bytes of refused files (by id), or of all of them; how many."""
        request = ingest_pb2.PurgeFilesRequest(ids=files, all=all_)
        return int(self._call(self._ingest.PurgeFiles, request, WORK_SECONDS).purged)


def _pieces(
    upload: str, file: BinaryIO, durable: int, sent: Callable[[int], None]
) -> Iterator[ingest_pb2.UploadFileRequest]:
    """The file's bytes from `durable` on, then the sha256 of it all. gRPC asks for one when the last was read."""
    digest, offset = hashlib.sha256(), 0
    while data := file.read(PIECE_BYTES):
        digest.update(data)
        fresh = data[max(durable - offset, 0) :]
        offset += len(data)
        if fresh:
            yield ingest_pb2.UploadFileRequest(upload=upload, offset=offset - len(fresh), data=fresh)
            sent(offset)
    yield ingest_pb2.UploadFileRequest(upload=upload, offset=offset, sha256=digest.hexdigest())


def _ignore(sent_bytes: int) -> None:
    """What is told to nobody."""
