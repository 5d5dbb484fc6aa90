"""JobService: the one shape of long work. A caller meets the jobs of its own tenant, and those of the box."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from appliance.access.callers import Callers
from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import NotFound
from appliance.gen.v1 import job_pb2 as pb
from appliance.gen.v1 import job_pb2_grpc
from appliance.ports import Jobs
from appliance.types import Job


@dataclass(frozen=True)
class JobService(job_pb2_grpc.JobServiceServicer):
    callers: Callers
    jobs: Jobs

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=messages.job(self._shown(request.name, context)))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        items, token = requests.page(self._all_shown(context), request.page_size, request.page_token)
        return pb.ListJobsResponse(jobs=map(messages.job, items), next_page_token=token)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.WatchJobResponse]:
        async for job in self.jobs.watch(self._shown(request.name, context).id):
            yield pb.WatchJobResponse(job=messages.job(job))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        return pb.CancelJobResponse(job=messages.job(self.jobs.cancel(self._shown(request.name, context).id)))

    def _shown(self, name: str, context: Context) -> Job:
        """Raises InvalidArgument; NotFound, of another tenant's as of one that there is not."""
        job = self.jobs.get(requests.job(name))
        if not job.shown_to(self._tenant(context)):
            raise NotFound(f"There is no job {job.name}.")
        return job

    def _all_shown(self, context: Context) -> list[Job]:
        tenant = self._tenant(context)
        return [job for job in self.jobs.list() if job.shown_to(tenant)]

    def _tenant(self, context: Context) -> str:
        return self.callers.by_certificate(context.auth_context()).tenant
