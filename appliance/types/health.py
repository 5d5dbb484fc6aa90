"""What is wrong with the box, and how it does."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class Severity(Enum):
    OK = 1
    WARNING = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an admin may have to know, as seen at `since`. tenant: whose the subject is, '' of the box."""

    code: str
    severity: Severity
    subject: str
    title: str
    remedy: str
    since: datetime
    detail: str = ""
    impacts_serving: bool = False
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class HealthReport:
    severity: Severity
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Wall:
    """One layer around what reads untrusted bytes. stands: as was proven. needed: without it nothing is read.

    detail: of what it is made, or what it lacks.
    """

    name: str
    stands: bool
    needed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Walls:
    """All layers, in the order in which a call meets them, and when they were last proven."""

    layers: tuple[Wall, ...]
    proof_time: datetime


@dataclass(frozen=True, slots=True)
class Status:
    """The box at a glance, as a caller sees it: collections of its tenant, and documents that it may read.

    walls: around what reads documents and what reads sticks; None where none are proven, and nothing is read.
    """

    version: str
    uptime_seconds: float
    data_directory: str
    listen_address: str
    severity: Severity
    model_count: int
    collection_count: int
    document_count: int
    memory_used_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int
    principal: str = ""
    walls: Walls | None = None
