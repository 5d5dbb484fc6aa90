"""Long work."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class JobState(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Job:
    """Long work. `total` 0: not known yet. tenant: whose it is, '' of the box."""

    id: str
    kind: str
    subject: str
    state: JobState
    create_time: datetime
    done: int = 0
    total: int = 0
    unit: str = ""
    note: str = ""
    error_reason: str = ""
    error_message: str = ""
    end_time: datetime | None = None
    tenant: str = ""

    @property
    def name(self) -> str:
        return f"jobs/{self.id}"

    def shown_to(self, tenant: str) -> bool:
        """What the box does for itself is shown to every tenant."""
        return self.tenant in ("", tenant)
