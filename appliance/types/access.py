"""Who calls, and the keys of apps."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

EVERYONE = "everyone"


class Role(Enum):
    ADMIN = "admin"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    APP = "app"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a caller is: by the URI name of its certificate, or by its app key.

    memberships: the groups that it is in, as a document's readers name them: "group:hr", …
    """

    tenant: str
    user: str
    role: Role
    memberships: frozenset[str] = frozenset()

    @property
    def groups(self) -> frozenset[str]:
        """What a document's `readers` are compared with."""
        return self.memberships | {EVERYONE, f"user:{self.user}", f"role:{self.role.value}"}

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/users/{self.user} ({self.role.value})"


@dataclass(frozen=True, slots=True)
class Group:
    """Users of one tenant, under a name that documents may have among their readers."""

    name: str
    users: frozenset[str] = frozenset()

    @property
    def reader(self) -> str:
        """How a document's readers name it."""
        return f"group:{self.name}"


@dataclass(frozen=True, slots=True)
class PassphraseCost:
    """What argon2id spends on each guess of a passphrase (RFC 9106). lanes: how many threads may share it."""

    memory_kib: int = 256 << 10
    passes: int = 3
    lanes: int = 4


class AppScope(Enum):
    """What an app key opens."""

    INFERENCE = "inference"
    KNOWLEDGE = "knowledge"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class AppKey:
    """A key of an application, without its secret. No collections or models: all of them.

    last_use_time is coarse: to the hour.
    """

    id: str
    tenant: str
    user: str
    scopes: frozenset[AppScope]
    create_time: datetime
    expire_time: datetime
    collections: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    last_use_time: datetime | None = None
    revoke_time: datetime | None = None
