"""The keys of what ingest keeps: tenant key → ingest key, one a tenant → file key, one a file, wrapped in its header.

<directory>/<tenant>/key holds the epoch of the tenant's key (4 bytes, big-endian) and the ingest key, wrapped under it.
When a tenant's key is rotated the ingest key alone is wrapped anew. When the last one is destroyed, nothing that ingest
kept of the tenant opens any more.
"""

from pathlib import Path
from threading import RLock

from appliance.errors import KeyUnavailable
from appliance.ingest import durable
from appliance.ports import Cipher, Keyring, TenantKeys

WRAPPED_BYTES = 61
"""Of a wrapped key, as `Keyring.wrap` gives it."""

_EPOCH_BYTES = 4


class IngestKeys:
    """Safe to use from many threads."""

    def __init__(self, directory: Path, keyring: Keyring, tenant_keys: TenantKeys) -> None:
        self._directory, self._keyring, self._tenant_keys = directory, keyring, tenant_keys
        self._lock = RLock()

    def new(self, tenant: str, context: bytes) -> tuple[Cipher, bytes]:
        """A file's new key: its cipher, and the key wrapped for that context. Raises KeyUnavailable, DiskFull."""
        key = self._keyring.new_key()
        return self._keyring.cipher(key), self._keyring.wrap(key, context, under=self._of(tenant))

    def open(self, tenant: str, wrapped: bytes, context: bytes) -> Cipher:
        """Raises StoreDamaged where it is not what was wrapped for that context, KeyUnavailable."""
        return self._keyring.cipher(self._keyring.unwrap(wrapped, context, under=self._of(tenant)))

    def prepare(self, tenant: str) -> bool:
        """Have an ingest key; whether it is a new one, and nothing older opens. Raises KeyUnavailable, DiskFull."""
        with self._lock:
            if self._path(tenant).exists() and self._epoch(tenant) in self._tenant_keys.epochs(tenant):
                self._of(tenant)
                return False
            self._keep(tenant, self._keyring.new_key())
            return True

    def retire(self, tenant: str, epoch: int) -> bool:
        """The tenant's key of that epoch is about to be destroyed: wrap under the newest what it wraps. Whether there
        is one; where there is none, the ingest key is destroyed. Raises KeyUnavailable, DiskFull, StoreDamaged.
        """
        with self._lock:
            if not self._path(tenant).exists() or self._epoch(tenant) != epoch:
                return True
            if self._tenant_keys.epochs(tenant)[-1:] == (epoch,):
                durable.destroy(self._path(tenant), _EPOCH_BYTES + WRAPPED_BYTES)
                return False
            self._keep(tenant, self._of(tenant))
            return True

    def _keep(self, tenant: str, key: bytes) -> None:
        epochs = self._tenant_keys.epochs(tenant)
        if not epochs:
            raise KeyUnavailable(f"The key of tenant {tenant} is missing.")
        under = self._tenant_keys.get(tenant, epochs[-1])
        path = self._path(tenant)
        with durable.disk_errors(path):
            durable.make_directory(path.parent)
        head = epochs[-1].to_bytes(_EPOCH_BYTES, "big")
        durable.replace_file(path, [head + self._keyring.wrap(key, _context(tenant), under=under)])

    def _of(self, tenant: str) -> bytes:
        with self._lock:
            epoch, wrapped = self._epoch(tenant), self._read(tenant)[_EPOCH_BYTES:]
            if epoch not in self._tenant_keys.epochs(tenant):
                raise KeyUnavailable(f"{self._path(tenant)} is wrapped under a tenant's key that is no more.")
            return self._keyring.unwrap(wrapped, _context(tenant), under=self._tenant_keys.get(tenant, epoch))

    def _epoch(self, tenant: str) -> int:
        return int.from_bytes(self._read(tenant)[:_EPOCH_BYTES], "big")

    def _read(self, tenant: str) -> bytes:
        try:
            return self._path(tenant).read_bytes()
        except OSError as error:
            raise KeyUnavailable(f"The key file {self._path(tenant)} cannot be read: {error.strerror}.") from None

    def _path(self, tenant: str) -> Path:
        return self._directory / tenant / "key"


def _context(tenant: str) -> bytes:
    return b"ingest key\x00" + tenant.encode()
