"""AccessService: app keys, and the groups of the caller's own tenant. For administrators."""

import asyncio
from dataclasses import dataclass

from appliance.access.apps import DEFAULT_LIFETIME, AppKeys
from appliance.access.callers import Callers
from appliance.api import messages, requests
from appliance.api.interceptors import Context
from appliance.errors import InvalidArgument
from appliance.gen.v1 import access_pb2 as pb
from appliance.gen.v1 import access_pb2_grpc
from appliance.types import AppScope, Principal, Role

SCOPES = {
    pb.APP_SCOPE_INFERENCE: AppScope.INFERENCE,
    pb.APP_SCOPE_KNOWLEDGE: AppScope.KNOWLEDGE,
    pb.APP_SCOPE_METRICS: AppScope.METRICS,
}
GROUPS_A_PAGE = 5  # of 10,000 users each: a page fits into the 4 MiB that gRPC's clients take unless told otherwise


@dataclass(frozen=True)
class AccessService(access_pb2_grpc.AccessServiceServicer):
    callers: Callers
    keys: AppKeys

    async def CreateAppKey(self, request: pb.CreateAppKeyRequest, context: Context) -> pb.CreateAppKeyResponse:
        tenant = request.tenant or self._tenant(context)
        if unknown := set(request.scopes) - SCOPES.keys():
            raise InvalidArgument.of("scopes", f"{min(unknown)} is none; there are inference, knowledge and metrics.")
        key, token = await asyncio.to_thread(
            self.keys.create,
            Principal(tenant, request.user, Role.APP),
            [SCOPES[scope] for scope in request.scopes],
            [requests.collection(name, f"collections[{i}]") for i, name in enumerate(request.collections)],
            [requests.model(name, f"models[{i}]") for i, name in enumerate(request.models)],
            request.lifetime.ToTimedelta() if request.HasField("lifetime") else DEFAULT_LIFETIME,
        )
        return pb.CreateAppKeyResponse(app_key=messages.app_key(key), token=token)

    async def ListAppKeys(self, request: pb.ListAppKeysRequest, context: Context) -> pb.ListAppKeysResponse:
        items, token = requests.page(self.keys.list(), request.page_size, request.page_token)
        return pb.ListAppKeysResponse(app_keys=map(messages.app_key, items), next_page_token=token)

    async def RevokeAppKey(self, request: pb.RevokeAppKeyRequest, context: Context) -> pb.RevokeAppKeyResponse:
        revoked = await asyncio.to_thread(self.keys.revoke, requests.app_key(request.name))
        return pb.RevokeAppKeyResponse(app_key=messages.app_key(revoked))

    async def SetGroup(self, request: pb.SetGroupRequest, context: Context) -> pb.SetGroupResponse:
        name = requests.group(request.group.name, "group.name")
        made = await asyncio.to_thread(self.callers.groups.set, self._tenant(context), name, request.group.users)
        return pb.SetGroupResponse(group=messages.group(made))

    async def GetGroup(self, request: pb.GetGroupRequest, context: Context) -> pb.GetGroupResponse:
        found = self.callers.groups.get(self._tenant(context), requests.group(request.name))
        return pb.GetGroupResponse(group=messages.group(found))

    async def ListGroups(self, request: pb.ListGroupsRequest, context: Context) -> pb.ListGroupsResponse:
        size = min(request.page_size or GROUPS_A_PAGE, GROUPS_A_PAGE)
        items, token = requests.page(self.callers.groups.list(self._tenant(context)), size, request.page_token)
        return pb.ListGroupsResponse(groups=map(messages.group, items), next_page_token=token)

    async def DeleteGroup(self, request: pb.DeleteGroupRequest, context: Context) -> pb.DeleteGroupResponse:
        name = requests.group(request.name)
        await asyncio.to_thread(self.callers.groups.delete, self._tenant(context), name)
        return pb.DeleteGroupResponse()

    def _tenant(self, context: Context) -> str:
        return self.callers.by_certificate(context.auth_context()).tenant
