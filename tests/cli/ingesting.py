"""What a scripted box says of ingestions and uploads."""

import hashlib
from collections.abc import Iterator
from typing import Any

from appliance import errors
from appliance.gen.v1 import ingest_pb2 as pb
from appliance.gen.v1 import job_pb2
from tests.box import Box, refusal
from tests.cli import answers

State, FileState = pb.Ingestion, pb.FileOutcome
STICK = pb.Provenance(kind=pb.Provenance.KIND_STICK, serial="4C53", volume="1A2B-3C4D", label="RECORDS")
FILES = (
    pb.FileOutcome(path="a.md", state=FileState.STATE_FOUND, format="markdown", size_bytes=2048),
    pb.FileOutcome(path="b.pdf", state=FileState.STATE_FOUND, format="pdf", size_bytes=4096),
    pb.FileOutcome(path="known.md", state=FileState.STATE_DUPLICATE, format="markdown", size_bytes=10),
    pb.FileOutcome(path="x.exe", state=FileState.STATE_QUARANTINED, reason="UNKNOWN_TYPE", remedy="Save it as PDF."),
)


def ingestion(state: pb.Ingestion.State.ValueType, **more: Any) -> pb.Ingestion:
    return pb.Ingestion(
        name="ingestions/7f",
        collection="collections/handbook",
        readers=["everyone"],
        provenance=STICK,
        operator="olga",
        state=state,
        job="jobs/7f",
        create_time=answers.STAMP,
        **more,
    )


def script(box: Box, *states: pb.Ingestion, job: job_pb2.Job | None = None) -> None:
    """A box where an ingestion stands as the first of `states` when a call starts or changes it, then as the others."""
    begun, rest = states[0], iter((*states[1:], *[states[-1]] * 9))
    box.answers |= {
        "StartIngestion": lambda request, context: pb.StartIngestionResponse(ingestion=begun),
        "ApproveIngestion": lambda request, context: pb.ApproveIngestionResponse(ingestion=begun),
        "ResumeIngestion": lambda request, context: pb.ResumeIngestionResponse(ingestion=begun),
        "ReleaseFiles": lambda request, context: pb.ReleaseFilesResponse(ingestion=begun),
        "CancelIngestion": lambda request, context: pb.CancelIngestionResponse(ingestion=begun),
        "GetIngestion": lambda request, context: pb.GetIngestionResponse(ingestion=next(rest)),
        "WatchJob": answers.watched(job or answers.job(job_pb2.Job.STATE_SUCCEEDED)),
        "GetJob": lambda request, context: job_pb2.GetJobResponse(job=job),
        "ListFiles": lambda request, context: pb.ListFilesResponse(
            files=[file for file in FILES if not request.states or file.state in request.states]
        ),
    }


def methods(box: Box) -> list[str]:
    return [call.method for call in box.calls]


SCANNING, RUNNING, WAITING = (
    ingestion(State.STATE_SCANNING),
    ingestion(State.STATE_RUNNING),
    ingestion(State.STATE_WAITING),
)
ENDED = ingestion(State.STATE_SUCCEEDED, counts={"committed": 2, "duplicate": 1, "quarantined": 1})


class Uploads:
    """A box that keeps uploads in memory. breaks_after: pieces of the first call before it breaks off."""

    def __init__(self, box: Box, breaks_after: int | None = None) -> None:
        self.kept, self.sizes, self.names, self._breaks_after = bytearray(), list[int](), list[str](), breaks_after
        box.answers |= {
            "CreateUpload": self.create,
            "GetUpload": lambda request, context: pb.GetUploadResponse(size_bytes=len(self.kept)),
            "UploadFile": self.take,
        }

    def create(self, request: pb.CreateUploadRequest, context: Any) -> pb.CreateUploadResponse:
        self.kept.clear()
        self.names.append(request.path)
        return pb.CreateUploadResponse(upload="uploads/5e")

    def take(self, pieces: Iterator[pb.UploadFileRequest], context: Any) -> Any:
        breaks_after, self._breaks_after = self._breaks_after, None
        for number, piece in enumerate(pieces):
            if number == breaks_after:
                return refusal(errors.Draining("The daemon is stopping."))(None, context)
            assert (piece.upload, piece.offset) == ("uploads/5e", len(self.kept))
            self.kept += piece.data
            self.sizes.append(len(piece.data))
            if piece.sha256:
                assert piece.sha256 == hashlib.sha256(self.kept).hexdigest()
                return pb.UploadFileResponse(size_bytes=len(self.kept), ingestion=RUNNING)
        if not self.sizes:
            return refusal(errors.InvalidArgument.of("upload", "must be named in the first piece."))(None, context)
        return pb.UploadFileResponse(size_bytes=len(self.kept))
