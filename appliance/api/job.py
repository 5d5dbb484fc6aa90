"""JobService: the one shape of long work."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.gen.v1 import job_pb2 as pb
from appliance.gen.v1 import job_pb2_grpc
from appliance.ports import Jobs


@dataclass(frozen=True)
class JobService(job_pb2_grpc.JobServiceServicer):
    jobs: Jobs

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=messages.job(self.jobs.get(requests.job(request.name))))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        items, token = requests.page(self.jobs.list(), request.page_size, request.page_token)
        return pb.ListJobsResponse(jobs=map(messages.job, items), next_page_token=token)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.WatchJobResponse]:
        async for job in self.jobs.watch(requests.job(request.name)):
            yield pb.WatchJobResponse(job=messages.job(job))

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.CancelJobResponse:
        return pb.CancelJobResponse(job=messages.job(self.jobs.cancel(requests.job(request.name))))
