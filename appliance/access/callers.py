"""Who calls, with the groups that it is in: asked at every call, so that a change counts from the next one on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from appliance.access import roles
from appliance.access.groups import GroupBook
from appliance.types import AppKey, Principal, Role


@dataclass(frozen=True)
class Callers:
    """The one place where a caller gets its groups. Its role comes from its certificate, and an app key's is `app`."""

    groups: GroupBook

    def by_certificate(self, auth_context: Mapping[str, Iterable[bytes]]) -> Principal:
        """The caller from gRPC's authentication context. Raises Unauthenticated."""
        found = roles.principal(auth_context)
        return self._in_groups(found.tenant, found.user, found.role)

    def by_key(self, key: AppKey) -> Principal:
        """The application that holds the key."""
        return self._in_groups(key.tenant, key.user, Role.APP)

    def _in_groups(self, tenant: str, user: str, role: Role) -> Principal:
        return Principal(tenant, user, role, self.groups.of(tenant, user))
