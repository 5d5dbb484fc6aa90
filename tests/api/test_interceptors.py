"""The gate in front of every service, over a real TLS connection."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from appliance.access import ca
from appliance.api.interceptors import Gate, to_status
from appliance.client import Client
from appliance.errors import MAX_MESSAGE_CHARACTERS, ApplianceError, Draining, InvalidArgument, QueueFull, StoreDamaged
from appliance.gen.v1 import job_pb2, job_pb2_grpc


@dataclass
class ScriptedJobs(job_pb2_grpc.JobServiceServicer):
    """Raises what the test says; a watch sends one state and then waits for ever."""

    error: Exception | None = None
    watched: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetJob(self, request: job_pb2.GetJobRequest, context: Any) -> job_pb2.GetJobResponse:
        if self.error:
            raise self.error
        return job_pb2.GetJobResponse(job=job_pb2.Job(name="jobs/a", state=job_pb2.Job.STATE_RUNNING))

    async def WatchJob(self, request: job_pb2.WatchJobRequest, context: Any) -> AsyncIterator[job_pb2.WatchJobResponse]:
        yield job_pb2.WatchJobResponse(job=job_pb2.Job(name="jobs/a", state=job_pb2.Job.STATE_RUNNING))
        self.watched.set()
        await asyncio.Event().wait()


@dataclass
class Guarded:
    """A server behind a gate, and a client of it."""

    jobs: ScriptedJobs
    gate: Gate
    client: Client


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    identity = ca.prepare(tmp_path, "127.0.0.1")
    jobs, gate = ScriptedJobs(), Gate()  # type: ignore[abstract]
    server = grpc.aio.server(interceptors=[gate])
    job_pb2_grpc.add_JobServiceServicer_to_server(jobs, server)
    pair = [(identity.key, identity.certificate)]
    credentials = grpc.ssl_server_credentials(pair, identity.client_authority, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    with Client.local(tmp_path, f"127.0.0.1:{port}") as client:
        yield Guarded(jobs, gate, client)
    await server.stop(0)


async def test_our_errors_cross_with_reason_remedy_and_retry_delay(guarded: Guarded) -> None:
    guarded.jobs.error = QueueFull("8 requests wait.", retry_after_seconds=2.5)
    with pytest.raises(QueueFull, match="8 requests wait") as refused:
        await asyncio.to_thread(guarded.client.job, "a")
    assert refused.value.retry_after_seconds == 2.5
    assert refused.value.remedy


async def test_a_bug_in_a_service_is_internal_and_quotes_nothing(
    guarded: Guarded, capsys: pytest.CaptureFixture[str]
) -> None:
    guarded.jobs.error = ValueError("the patient's name")
    with pytest.raises(ApplianceError, match="failed inside: ValueError") as broken:
        await asyncio.to_thread(guarded.client.job, "a")
    assert "patient" not in str(broken.value)


async def test_a_very_long_message_is_cut_and_still_arrives(guarded: Guarded) -> None:
    guarded.jobs.error = InvalidArgument("\\u202e" * 4000)
    with pytest.raises(InvalidArgument) as refused:
        await asyncio.to_thread(guarded.client.job, "a")
    assert len(str(refused.value)) == MAX_MESSAGE_CHARACTERS


async def test_draining_ends_watches_and_refuses_new_calls(guarded: Guarded) -> None:
    stream = guarded.client.watch_job("a")
    assert (await asyncio.to_thread(next, stream)).id == "a"
    await guarded.jobs.watched.wait()
    guarded.gate.drain()
    with pytest.raises(Draining):
        await asyncio.to_thread(next, stream, None)
    with pytest.raises(Draining):
        await asyncio.to_thread(guarded.client.job, "a")


@pytest.mark.parametrize(("runs_the_box", "told"), [(True, True), (False, False)])
def test_only_those_who_run_the_box_learn_of_its_files(runs_the_box: bool, told: bool) -> None:
    error = StoreDamaged("/srv/box/index.json is damaged.")
    assert ("/srv" in to_status(error, runs_the_box).message) is told


def test_a_status_names_its_domain_and_exit_code() -> None:
    status = to_status(InvalidArgument.of("limit", "must be positive."))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason, info.metadata["exit_code"]) == ("appliance", "INVALID_ARGUMENT", "3")
    assert rpc_status.to_status(status).code is grpc.StatusCode.INVALID_ARGUMENT
