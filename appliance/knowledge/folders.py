"""The folders of one tenant's collections, and the keys in them.

<name>/           a collection: key.<epoch>, CURRENT, mf/, seg/, wal/ (docs/reference/storage-format.md)
.new-<random>/    one being made; the rename to its name is its commit
.dropped-<name>/  one being shredded; the rename to this name is the commit, and a start finishes what was begun
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock

import structlog

from appliance.errors import AlreadyExists, ApplianceError, Busy, InvalidArgument, NotFound, StoreDamaged
from appliance.knowledge.storage import durable, key, shred
from appliance.knowledge.storage.mark import MarkFile
from appliance.knowledge.storage.tenant import Tenant
from appliance.types import COLLECTION_NAME, ShredProof

log = structlog.get_logger()

_NAME = re.compile(COLLECTION_NAME)
_DROPPED = ".dropped-"


class Folders:
    """Safe to use from many threads, while those that change one collection's folder take turns.

    keys: to be held where keys of this tenant are made, wrapped or destroyed, and while folders that hold them move.
    """

    def __init__(self, directory: Path, tenant: Tenant) -> None:
        """Finishes what was begun when the process died. Raises DiskFull, KeyUnavailable."""
        self._directory, self._tenant = directory, tenant
        self._being_made: dict[Path, str] = {}
        self.keys = RLock()
        with durable.disk_errors(directory):
            durable.make_directory(directory)
        self._finish_what_was_begun()

    # --- what there is

    def of(self, name: str) -> Path:
        """Where a collection lies, or would."""
        return self._directory / name

    def names(self) -> list[str]:
        """Of all collections, sorted."""
        with durable.disk_errors(self._directory):
            return sorted(
                path.name for path in self._directory.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)
            )

    def going(self) -> dict[Path, str]:
        """By folder, the names of collections that are to be destroyed and are not yet."""
        paths = sorted(self._directory.glob(f"{_DROPPED}*"))
        return {path: path.name.removeprefix(_DROPPED).partition(".")[0] for path in paths}

    def is_going(self, uid: bytes) -> bool:
        """Whether the collection of that uid is to be destroyed and is not yet."""
        return any(path.name.endswith(f".{uid.hex()}") for path in self.going())

    def exists(self, name: str) -> bool:
        return bool(_NAME.fullmatch(name)) and self.of(name).is_dir()

    def check_exists(self, name: str) -> None:
        """Raises NotFound."""
        if not self.exists(name):
            raise NotFound(f"There is no collection {name}.")

    def check_free(self, name: str) -> None:
        """Raises AlreadyExists."""
        if _NAME.fullmatch(name) and self.of(name).exists():
            raise AlreadyExists(f"There is a collection {name} already.")

    def homes(self) -> dict[Path, str]:
        """Where key records lie, of collections and of those that are being made: their names, by folder."""
        making = {path: name for path, name in self._being_made.items() if name and path.is_dir()}
        return {self.of(name): name for name in self.names()} | making

    def named_by(self, uid: bytes) -> str:
        """The collection of that uid, '' for none."""
        return next((name for name in self.names() if key.uid_of(self.of(name)) == uid), "")

    def check_none_is_made(self) -> None:
        """Raises Busy."""
        with self.keys:
            if self._being_made:
                raise Busy(f"A collection of tenant {self._tenant.name} is being made or restored.")

    # --- making

    @contextmanager
    def staged(self, name: str, *, adopts: bool = False) -> Iterator[Path]:
        """A folder for a collection of that name, which is removed when the context does not end well.

        adopts: what key record comes into it belongs to a backup, and is none of this tenant's until it is installed.
        Raises InvalidArgument, DiskFull.
        """
        if not _NAME.fullmatch(name):
            problem = "must be 1 to 63 of the characters a-z, 0-9 and -, and neither begin nor end with -."
            raise InvalidArgument.of("collection_id", problem)
        making = self._directory / f"{durable.TEMPORARY}{secrets.token_hex(8)}"
        with self.keys:
            self._being_made[making] = "" if adopts else name
        try:
            with durable.disk_errors(making):
                making.mkdir(mode=0o700)
            yield making
        except Exception:
            self._discard(making)
            raise
        finally:
            with self.keys:
                del self._being_made[making]

    def install(self, making: Path, name: str) -> None:
        """What was being made is the collection. Raises AlreadyExists, DiskFull."""
        made = self.of(name)
        self.check_free(name)
        try:
            with durable.disk_errors(made):
                making.rename(made)
                durable.sync_directory(self._directory)
        except ApplianceError:
            self._discard(made)
            raise

    @contextmanager
    def swapped(self, making: Path, name: str) -> Iterator[None]:
        """What was being made is the collection, and what it replaces lies in its place; if the context fails, neither.

        Raises DiskFull, StoreDamaged.
        """
        made = self.of(name)
        swap = durable.exchange if made.exists() else os.rename
        with durable.disk_errors(made):
            swap(making, made)
            try:
                durable.sync_directory(self._directory)
                yield
            except Exception:
                with suppress(OSError):
                    swap(made, making)
                raise

    def _discard(self, directory: Path) -> None:
        """What was being made and did not come to be, or what a backup replaced."""
        with suppress(ApplianceError):
            if (uid := key.uid_of(directory)) and self.named_by(uid) in ("", directory.name):
                MarkFile(self._tenant.marks, uid, self._tenant.keyring).remove()
        shutil.rmtree(directory, ignore_errors=True)

    # --- shredding

    def withdraw(self, name: str) -> None:
        """Nobody can open the collection any more, and the next start destroys it. Raises DiskFull, StoreDamaged."""
        directory = self.of(name)
        uid = b""
        with suppress(StoreDamaged):
            uid = key.uid_of(directory)
        with durable.disk_errors(directory):
            os.rename(directory, self._directory / f"{_DROPPED}{name}.{(uid or secrets.token_bytes(16)).hex()}")
            durable.sync_directory(self._directory)

    def destroy(self, name: str) -> list[ShredProof]:
        """Destroy all that was withdrawn under that name: its keys, then its files. Raises as `shred.destroy`."""
        going = [path for path, withdrawn in self.going().items() if withdrawn == name]
        return [shred.destroy(path, name, self._tenant, self.homes()) for path in going]

    def _finish_what_was_begun(self) -> None:
        """Collections that were being made or dropped, and keys that were being rotated, when the process died."""
        with durable.disk_errors(self._directory):
            paths = sorted(self._directory.iterdir())
        for path in paths:
            if path.name.startswith(durable.TEMPORARY):
                self._discard(path)
        for path, name in self.going().items():
            with self._or_later():
                shred.destroy(path, name, self._tenant, self.homes())
        with self._or_later():
            shred.finish(self._tenant, self.homes())

    @contextmanager
    def _or_later(self) -> Iterator[None]:
        """What fails is logged: the old keys stay, and the next start or rotation goes on."""
        try:
            yield
        except ApplianceError as error:
            log.error("rotation_unfinished", tenant=self._tenant.name, reason=error.reason, error=str(error))
