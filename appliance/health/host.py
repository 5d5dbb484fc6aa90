"""What the machine says of itself, and what to make of it. Alone in health to import psutil."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from appliance.health.findings import DISK_ALMOST_FULL, MEMORY_LOW, Declared

DISK_LEAST_BYTES = 2 << 30
MEMORY_LEAST_BYTES = 512 << 20
LEAST_RATIO = 0.05
MOST_RATIO = 0.25  # on a small disk a fixed amount could never be free
HYSTERESIS = 1.2  # a finding stays until the value is this much better than its limit
MIB = 1 << 20

Shown = Mapping[Declared, Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Host:
    """One sample. `memory_used_bytes`: resident, of this process and its children."""

    memory_total_bytes: int
    memory_available_bytes: int
    memory_used_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int


def sample(data_dir: Path) -> Host:
    """The machine as it is now. Takes a few milliseconds; blocks on /proc."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(data_dir))
    return Host(memory.total, memory.available, _own_memory(), disk.total, disk.free)


def judge(host: Host, data_dir: str, shown: frozenset[Declared] = frozenset()) -> Shown:
    """Each finding that a sample can give, with its subjects and their evidence; none where the subjects are empty.

    `shown`: those raised at present. They need a value somewhat better than the limit to go away, so that a value which
    swings around the limit doesn't raise and clear at every look.
    """

    def slack(declared: Declared) -> float:
        return HYSTERESIS if declared in shown else 1.0

    disk_least = _least(DISK_LEAST_BYTES, host.disk_total_bytes) * slack(DISK_ALMOST_FULL)
    memory_least = _least(MEMORY_LEAST_BYTES, host.memory_total_bytes) * slack(MEMORY_LOW)
    disk = f"{host.disk_free_bytes // MIB} of {host.disk_total_bytes // MIB} MiB are free."
    memory = f"{host.memory_available_bytes // MIB} of {host.memory_total_bytes // MIB} MiB are available."
    return {
        DISK_ALMOST_FULL: {data_dir: disk} if host.disk_free_bytes < disk_least else {},
        MEMORY_LOW: {"memory": memory} if host.memory_available_bytes < memory_least else {},
    }


def _least(bytes_: int, total_bytes: int) -> float:
    return min(max(bytes_, LEAST_RATIO * total_bytes), MOST_RATIO * total_bytes)


def _own_memory() -> int:
    """Resident bytes of this process and its children; one that ends meanwhile counts for nothing."""
    me = psutil.Process()
    total = 0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_info().rss
    return total
