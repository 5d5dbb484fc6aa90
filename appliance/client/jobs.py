"""Long work of a box."""

from collections.abc import Iterator
from typing import Any

from appliance import types
from appliance.client import messages as convert
from appliance.client.calls import WATCH_SECONDS, Calls, Stream
from appliance.client.messages import named
from appliance.gen.v1 import job_pb2
from appliance.gen.v1.job_pb2_grpc import JobServiceStub


class JobCalls(Calls):
    """Long work of a box."""

    def __init__(self, *connection: Any) -> None:
        super().__init__(*connection)
        self._jobs = JobServiceStub(self._channel)

    def job(self, job: str) -> types.Job:
        return convert.job(self._call(self._jobs.GetJob, job_pb2.GetJobRequest(name=named("jobs", job))).job)

    def jobs(self) -> Iterator[types.Job]:
        """Newest first."""
        return map(convert.job, self._pages(self._jobs.ListJobs, job_pb2.ListJobsRequest(), "jobs"))

    def watch_job(self, job: str, timeout_seconds: float = WATCH_SECONDS) -> Stream[types.Job]:
        """The present state at once, then each change, until the job has ended."""
        request = job_pb2.WatchJobRequest(name=named("jobs", job))
        return self._stream(self._jobs.WatchJob, request, lambda answer: convert.job(answer.job), timeout_seconds)

    def cancel_job(self, job: str) -> types.Job:
        return convert.job(self._call(self._jobs.CancelJob, job_pb2.CancelJobRequest(name=named("jobs", job))).job)
