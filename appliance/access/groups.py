"""Groups of users, each tenant's own: documents name them as readers. A group opens documents and never a method.

    <data>/access/groups.json   {"signature": hex, "groups": {tenant: {group: [user, …]}}}

The file is signed by the box and replaced in one step: who can write it can still put nobody into a group.
"""

import re
import threading
from collections.abc import Collection, Mapping
from pathlib import Path

import structlog

from appliance.access.signed import SignedFile
from appliance.errors import InvalidArgument, NotFound
from appliance.ports import Keyring
from appliance.types import Group

MAX_USERS, MAX_GROUPS = 10_000, 1_000  # of a group; of a tenant
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)  # of a group, and of a user as certificates have it
PURPOSE = b"groups 1\n"
log = structlog.get_logger()

_Groups = Mapping[str, Mapping[str, Group]]  # by tenant and name


class GroupBook:
    """The groups of all tenants. Safe to use from many threads.

    What is asked comes from memory and waits for nothing; a change is durable, and counts, when it returns.
    """

    def __init__(self, path: Path, keyring: Keyring) -> None:
        """Raises StoreDamaged where the file is not what was written for this box."""
        self._file = SignedFile(path, keyring, PURPOSE)
        self._changing = threading.Lock()
        self._groups = _read(self._file)  # replaced whole, never changed: who reads takes no lock

    def of(self, tenant: str, user: str) -> frozenset[str]:
        """The groups that a user is in, as a document's readers name them: "group:hr", …"""
        return frozenset(group.reader for group in self._of_tenant(tenant).values() if user in group.users)

    def readers(self, tenant: str) -> frozenset[str]:
        """Every group that there is, as a document's readers name it."""
        return frozenset(group.reader for group in self._of_tenant(tenant).values())

    def list(self, tenant: str) -> tuple[Group, ...]:
        """By name."""
        return tuple(group for _, group in sorted(self._of_tenant(tenant).items()))

    def get(self, tenant: str, name: str) -> Group:
        """Raises NotFound."""
        found = self._of_tenant(tenant).get(name)
        if found is None:
            raise NotFound(f"There is no group {name}.")
        return found

    def set(self, tenant: str, name: str, users: Collection[str]) -> Group:
        """Make a group, or give it other users: these, and nobody else. Raises InvalidArgument, DiskFull."""
        made = Group(_require_name(name), _require_users(users))
        with self._changing:
            groups = self._of_tenant(tenant)
            if name not in groups and len(groups) >= MAX_GROUPS:
                raise InvalidArgument.of("group.name", f"would be one too many: a tenant has at most {MAX_GROUPS}.")
            self._write(tenant, {**groups, name: made})
        log.info("access.group_set", group=name, tenant=tenant, users=len(made.users))
        return made

    def delete(self, tenant: str, name: str) -> None:
        """Documents keep its name among their readers: who makes a group of that name lets its users read them.

        Raises NotFound, DiskFull.
        """
        with self._changing:
            self.get(tenant, name)
            self._write(tenant, {key: group for key, group in self._of_tenant(tenant).items() if key != name})
        log.info("access.group_deleted", group=name, tenant=tenant)

    def _of_tenant(self, tenant: str) -> Mapping[str, Group]:
        return self._groups.get(tenant, {})

    def _write(self, tenant: str, groups: Mapping[str, Group]) -> None:
        changed = {**self._groups, tenant: groups}
        self._file.write({"groups": {tenant: _record(held) for tenant, held in changed.items() if held}})
        self._groups = changed


def _require_name(name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise InvalidArgument.of("group.name", "must have 1 to 64 letters, digits, '.', '_', '-', and no sign first.")
    return name


def _require_users(users: Collection[str]) -> frozenset[str]:
    if len(users) > MAX_USERS:
        raise InvalidArgument.of("group.users", f"{len(users)} were named; at most {MAX_USERS} are taken.")
    for user in users:
        if NAME.fullmatch(user) is None:
            raise InvalidArgument.of("group.users", f"{user[:80]!r} is no user's name.")
    return frozenset(users)


def _record(groups: Mapping[str, Group]) -> dict[str, list[str]]:
    return {name: sorted(group.users) for name, group in groups.items()}


def _read(file: SignedFile) -> _Groups:
    """Raises StoreDamaged."""
    content = file.read()
    if content is None:
        return {}
    try:
        return {
            tenant: {name: Group(name, frozenset(users)) for name, users in groups.items()}
            for tenant, groups in content["groups"].items()
        }
    except (KeyError, TypeError, AttributeError):
        raise file.damaged() from None
