"""The box itself: health, keys of applications, groups of users."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from appliance import errors, types
from appliance.client import messages as convert
from appliance.client.calls import CALL_SECONDS, WATCH_SECONDS, Calls, Stream
from appliance.client.messages import named
from appliance.gen.v1 import access_pb2, telemetry_pb2
from appliance.gen.v1.access_pb2_grpc import AccessServiceStub
from appliance.gen.v1.telemetry_pb2_grpc import TelemetryServiceStub


class BoxCalls(Calls):
    """The box itself: health, keys of applications, groups of users."""

    def __init__(self, *connection: Any) -> None:
        super().__init__(*connection)
        self._telemetry = TelemetryServiceStub(self._channel)
        self._access = AccessServiceStub(self._channel)
        self._check: Any = health_pb2_grpc.HealthStub(self._channel).Check  # type: ignore[attr-defined]

    def serving(self) -> bool:
        """Whether the daemon takes calls (grpc.health.v1). False too where none answers."""
        try:
            answer = self._call(self._check, health_pb2.HealthCheckRequest(), 5.0)
        except (errors.Unreachable, errors.DeadlineExceeded):
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def status(self) -> types.Status:
        return convert.status(self._call(self._telemetry.GetStatus, telemetry_pb2.GetStatusRequest()))

    def health(self) -> types.HealthReport:
        """What there is to know now."""
        with self.watch_health(CALL_SECONDS) as reports:
            return next(reports)

    def watch_health(self, timeout_seconds: float = WATCH_SECONDS) -> Stream[types.HealthReport]:
        """The present report at once, then each change."""
        request = telemetry_pb2.WatchHealthRequest()
        return self._stream(self._telemetry.WatchHealth, request, convert.health, timeout_seconds)

    def create_app_key(
        self,
        user: str,
        scopes: Sequence[types.AppScope],
        collections: Sequence[str] = (),
        models: Sequence[str] = (),
        tenant: str = "",
        lifetime: timedelta | None = None,
    ) -> tuple[types.AppKey, str]:
        """A key for an application that speaks HTTP, and its token, told only here.

        No collections or models: all of them. '' is the caller's own tenant; without `lifetime` the box chooses.
        """
        request = access_pb2.CreateAppKeyRequest(
            tenant=tenant,
            user=user,
            scopes=[access_pb2.AppScope.Value(f"APP_SCOPE_{scope.name}") for scope in scopes],
            collections=[named("collections", name) for name in collections],
            models=[named("models", name) for name in models],
            lifetime=convert.duration(lifetime),
        )
        answer = self._call(self._access.CreateAppKey, request)
        return convert.app_key(answer.app_key), answer.token

    def app_keys(self) -> Iterator[types.AppKey]:
        """Newest first, revoked and expired ones too."""
        return map(convert.app_key, self._pages(self._access.ListAppKeys, access_pb2.ListAppKeysRequest(), "app_keys"))

    def revoke_app_key(self, key: str) -> types.AppKey:
        """No call with the key is taken from here on. `key`: the token's part before the dot."""
        request = access_pb2.RevokeAppKeyRequest(name=named("appKeys", key))
        return convert.app_key(self._call(self._access.RevokeAppKey, request).app_key)

    def set_group(self, name: str, users: Sequence[str]) -> types.Group:
        """Make a group of the caller's tenant, or give it other users: these, and nobody else."""
        request = access_pb2.SetGroupRequest(group=access_pb2.Group(name=named("groups", name), users=users))
        return convert.group(self._call(self._access.SetGroup, request).group)

    def group(self, name: str) -> types.Group:
        request = access_pb2.GetGroupRequest(name=named("groups", name))
        return convert.group(self._call(self._access.GetGroup, request).group)

    def groups(self) -> Iterator[types.Group]:
        """The groups of the caller's tenant, by name."""
        return map(convert.group, self._pages(self._access.ListGroups, access_pb2.ListGroupsRequest(), "groups"))

    def delete_group(self, name: str) -> None:
        """Documents keep its name: who makes a group of that name lets its users read them."""
        self._call(self._access.DeleteGroup, access_pb2.DeleteGroupRequest(name=named("groups", name)))
