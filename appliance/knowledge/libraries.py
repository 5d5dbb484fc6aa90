"""`ports.Libraries`: each tenant's library, <directory>/<tenant>/, and what they share: memory, the disk's time."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

import structlog

from appliance.errors import ApplianceError, InvalidArgument
from appliance.knowledge.embedders import Embedders
from appliance.knowledge.library import Forget, Library, nothing
from appliance.knowledge.storage import durable, upgrade
from appliance.knowledge.storage.durable import Pace
from appliance.knowledge.storage.resident import Memory
from appliance.knowledge.storage.tenant import Tenant
from appliance.ports import Keyring, TenantKeys
from appliance.types import Document, ShredProof

log = structlog.get_logger()

_TENANT = re.compile("[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all libraries share. hot_bytes: of sections ready to search; cache_bytes: of decrypted pieces read by range.

    background_bytes_per_second: of compaction, 0 for no limit. seal_seconds: how old what is in a log only may become.
    overlap_tokens: of running text, so much is at the start of the next passage as well.
    """

    hot_bytes: int
    cache_bytes: int
    seal_passages: int
    seal_seconds: float
    background_bytes_per_second: int = 0
    overlap_tokens: int = 0


class Libraries:
    """See `ports.Libraries`. A tenant's library is <directory>/<tenant>/; a start brings an older layout up to date."""

    def __init__(
        self,
        directory: Path,
        keys: Path,
        keyring: Keyring,
        tenant_keys: TenantKeys,
        embedders: Embedders,
        bounds: Bounds,
        forget: Forget = nothing,
    ) -> None:
        """keys: where the high-water marks lie, outside of `directory`. Opens no collection yet.

        forget: told from any thread of a collection that is gone, restored or embedded anew. Raises DiskFull,
        KeyUnavailable.
        """
        self._directory, self._keyring, self._tenant_keys = directory, keyring, tenant_keys
        self._marks = keys / "marks"
        self._embedders, self._bounds, self._forget = embedders, bounds, forget
        self._memory = Memory.of(bounds.hot_bytes, bounds.cache_bytes)
        rate = bounds.background_bytes_per_second
        self._pace: Pace = durable.TokenBucket(rate) if rate else durable.unpaced
        self._lock = RLock()
        self._before_delete: Callable[[str, Document], None] = lambda tenant, document: None
        self._open: dict[str, Library] = {}
        with durable.disk_errors(directory):
            durable.make_directory(directory)
        upgrade.bring_up_to_date(directory, self._tenant(upgrade.TENANT))

    def of(self, tenant: str) -> Library:
        """Raises InvalidArgument, DiskFull, KeyUnavailable."""
        if not _TENANT.fullmatch(tenant):
            raise InvalidArgument.of("tenant", "must be 1 to 63 of the characters a-z, 0-9 and -, no - first.")
        with self._lock:
            if tenant not in self._open:
                self._open[tenant] = Library(
                    self._directory / tenant,
                    self._tenant(tenant),
                    self._embedders,
                    seal_passages=self._bounds.seal_passages,
                    memory=self._memory,
                    pace=self._pace,
                    overlap_tokens=self._bounds.overlap_tokens,
                    forget=self._forget,
                    before_delete=lambda document: self._before_delete(tenant, document),
                )
            return self._open[tenant]

    def before_delete(self, call: Callable[[str, Document], None]) -> None:
        """Have `call` told, with its tenant, of a document that is about to be deleted; if it raises, that stays."""
        self._before_delete = call

    def open_all(self) -> None:
        """Open every collection of every tenant now, so that `damaged` tells of damage before a user meets it."""
        with durable.disk_errors(self._directory):
            tenants = sorted(path.name for path in self._directory.iterdir() if _TENANT.fullmatch(path.name))
        for tenant in tenants:
            try:
                self.of(tenant).collections()
            except ApplianceError as error:
                log.error("tenant_unusable", tenant=tenant, reason=error.reason, error=str(error))

    def damaged(self) -> Mapping[str, str]:
        """By "tenant/collection", of those that were found damaged, what is wrong: the file is named."""
        found = {f"{tenant}/{name}": why for tenant, one in self._each() for name, why in one.damaged().items()}
        return {**found, **upgrade.left_over(self._directory)}

    def counts(self, tenant: str, groups: frozenset[str]) -> tuple[int, int]:
        """The tenant's collections, and their documents that the groups may read; a tenant not in use has none."""
        found = [one for name, library in self._each() if name == tenant for one in library.collections(groups)]
        return len(found), sum(one.document_count for one in found)

    def compact_where_due(self) -> None:
        """See `Library.compact_where_due`."""
        for _, library in self._each():
            library.compact_where_due()

    def seal_where_old(self) -> None:
        """See `Library.seal_where_old`."""
        for _, library in self._each():
            library.seal_where_old(self._bounds.seal_seconds)

    def rotate(self, tenant: str) -> int:
        """See `Library.rotate`."""
        return self.of(tenant).rotate()

    def shred_tenant(self, tenant: str) -> tuple[ShredProof, ...]:
        """Every collection of a tenant, then its keys; a proof a collection. Raises as `Library.drop`."""
        return self.of(tenant).shred()

    def close(self) -> None:
        """Closes the files. Nothing is lost without it."""
        for _, library in self._each():
            library.close()

    def _tenant(self, name: str) -> Tenant:
        return Tenant(name, self._keyring, self._tenant_keys, self._marks)

    def _each(self) -> list[tuple[str, Library]]:
        with self._lock:
            return sorted(self._open.items())
