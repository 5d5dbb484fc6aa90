"""AccessService: app keys, for administrators."""

import asyncio
from dataclasses import dataclass

from appliance.access import roles
from appliance.access.apps import DEFAULT_LIFETIME, AppKeys
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


@dataclass(frozen=True)
class AccessService(access_pb2_grpc.AccessServiceServicer):
    keys: AppKeys

    async def CreateAppKey(self, request: pb.CreateAppKeyRequest, context: Context) -> pb.CreateAppKeyResponse:
        tenant = request.tenant or roles.principal(context.auth_context()).tenant
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
