"""Each tenant's keys: <directory>/<tenant>/<epoch>, a key file wrapped by the root key; its context names both.

An epoch is a number that rises with each rotation. A tenant has one, or two while what its key wraps is wrapped anew;
what is wrapped says under which epoch. An epoch that is destroyed is never used again, and neither is its number while
a later one lives. This module holds files; the order of a rotation is its caller's (knowledge/library.py).
"""

from collections.abc import Callable
from pathlib import Path

from appliance.errors import KeyUnavailable, StoreDamaged
from appliance.ports import Keyring
from appliance.vault import files


class FileTenantKeys:
    """`ports.TenantKeys`. Safe to use from many threads, but for two that change one tenant's."""

    def __init__(self, directory: Path, keyring: Keyring) -> None:
        """directory: keys/tenants, made at the first key. Raises KeyUnavailable."""
        self._directory, self._keyring = directory, keyring
        self._before_destroy: Callable[[str, int], None] = lambda tenant, epoch: None
        for left in directory.glob("*/.*.new"):  # by a writer that died
            files.remove_leftover(left.with_name(left.name[1 : -len(".new")]))
        for path in directory.glob("*/*"):
            if files.is_destroyed(path):  # overwritten, and not unlinked any more
                files.destroy_key_file(path)

    def epochs(self, tenant: str) -> tuple[int, ...]:
        """Those whose keys are there, ascending; none for a tenant that has no key yet."""
        folder = self._directory / tenant
        found = [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
        return tuple(sorted(int(path.name) for path in found if not files.is_destroyed(path)))

    def get(self, tenant: str, epoch: int) -> bytes:
        """The key, 32 bytes. Raises KeyUnavailable, naming the file."""
        path = self._path(tenant, epoch)
        try:
            return self._keyring.unwrap(files.read_key_file(path, files.KIND_TENANT), _context(tenant, epoch))
        except StoreDamaged:
            raise KeyUnavailable(f"The root key does not open {path}: one is of another box.") from None

    def add(self, tenant: str) -> int:
        """A new key, durable on return, and its epoch. Raises DiskFull, KeyUnavailable."""
        epoch = max(self.epochs(tenant), default=0) + 1
        path = self._path(tenant, epoch)
        files.destroy_key_file(path)
        wrapped = self._keyring.wrap(self._keyring.new_key(), _context(tenant, epoch))
        files.write_key_file(path, files.KIND_TENANT, wrapped)
        return epoch

    def before_destroy(self, call: Callable[[str, int], None]) -> None:
        """Have `call` wrap anew what it keeps under an epoch that is to be destroyed; if it raises, the epoch stays."""
        self._before_destroy = call

    def destroy(self, tenant: str, epoch: int) -> None:
        """Overwritten and unlinked on return; may be called again. Raises DiskFull, KeyUnavailable."""
        self._before_destroy(tenant, epoch)
        files.destroy_key_file(self._path(tenant, epoch))

    def rewrap(self) -> None:
        """Wrap every key anew, after the root key was changed. Raises DiskFull, KeyUnavailable."""
        for folder in sorted(self._directory.iterdir()) if self._directory.is_dir() else ():
            for epoch in self.epochs(folder.name):
                wrapped = self._keyring.wrap(self.get(folder.name, epoch), _context(folder.name, epoch))
                files.replace_key_file(self._path(folder.name, epoch), files.KIND_TENANT, wrapped)

    def _path(self, tenant: str, epoch: int) -> Path:
        return self._directory / tenant / str(epoch)


def _context(tenant: str, epoch: int) -> bytes:
    return b"tenant key\x00" + tenant.encode() + b"\x00" + epoch.to_bytes(4, "big")
