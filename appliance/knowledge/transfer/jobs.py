"""Exports, imports, backups and restores as jobs."""

import os
from collections.abc import Callable, Set
from functools import partial
from pathlib import Path
from typing import Protocol

from appliance.errors import AlreadyExists, InvalidArgument, NotFound
from appliance.knowledge.library import Library
from appliance.knowledge.transfer import backup, export
from appliance.ports import Jobs, Keyring
from appliance.types import Job, PassphraseCost

MIN_PASSPHRASE_CHARACTERS = 12
_MAX_NAME_BYTES = 255


class Libraries(Protocol):
    """`ports.Libraries`, as this domain's own."""

    def of(self, tenant: str) -> Library: ...


class Transfers:
    """Belongs to one event loop. A job that fails or is cancelled leaves nothing that looks whole.

    Paths are of this box, absolute, and outside its data directory. Every method may block on the disk for a moment.
    """

    def __init__(
        self,
        libraries: Libraries,
        keyring: Keyring,
        jobs: Jobs,
        own: Path,
        groups: Callable[[str], Set[str]],
        cost: PassphraseCost = PassphraseCost(),  # noqa: B008  (frozen)
    ) -> None:
        """own: the box's data directory. groups: of a tenant, as readers name them: "group:hr", …. cost: of the
        passphrases of exports."""
        self._libraries, self._keyring, self._jobs, self._own = libraries, keyring, jobs, own
        self._groups, self._cost = groups, cost

    def export(self, tenant: str, collection: str, path: str, passphrase: str) -> Job:
        """All documents, whoever may read them, as one new file that the passphrase opens. Raises NotFound,
        AlreadyExists, InvalidArgument. The job counts documents.
        """
        library, target = self._library(tenant, collection), self._new(path)
        if len(passphrase) < MIN_PASSPHRASE_CHARACTERS:
            raise InvalidArgument.of("passphrase", f"must have {MIN_PASSPHRASE_CHARACTERS} characters or more.")
        if os.path.lexists(target):
            raise AlreadyExists(f"There is a file {target} already.")
        work = partial(export.export, library, collection, target, passphrase, self._keyring, cost=self._cost)
        return self._jobs.start_in_thread("export", f"collections/{collection}", "documents", work, tenant)

    def import_(self, tenant: str, collection: str, path: str, passphrase: str) -> Job:
        """A new collection of what was exported. Raises NotFound, InvalidArgument. The job counts documents, and fails
        with AlreadyExists, ArchiveRefused, PassphraseWrong, and InvalidArgument where a reader is a group that there is
        not.
        """
        library, archive, groups = self._libraries.of(tenant), self._present(path), self._groups(tenant)
        work = partial(export.import_, library, collection, archive, passphrase, self._keyring, groups)
        return self._jobs.start_in_thread("import", f"collections/{collection}", "documents", work, tenant)

    def backup(self, tenant: str, collection: str, path: str) -> Job:
        """The collection's encrypted files into a new folder, or what is new of them into that of an earlier backup.
        Raises NotFound, InvalidArgument. The job counts bytes, and fails with AlreadyExists, BackupRefused.
        """
        library, target = self._library(tenant, collection), self._new(path)
        work = partial(backup.backup, library, tenant, collection, target, self._keyring)
        return self._jobs.start_in_thread("backup", f"collections/{collection}", "bytes", work, tenant)

    def restore(self, tenant: str, collection: str, path: str, *, replace: bool = False) -> Job:
        """A collection of what was backed up, under a name that is free, or in place of itself where it is damaged, or
        if `replace`: what was written since is lost. Raises NotFound, InvalidArgument. The job counts bytes, and fails
        with AlreadyExists, BackupRefused.
        """
        library, folder = self._libraries.of(tenant), self._present(path)
        work = partial(backup.restore, library, tenant, collection, folder, self._keyring, replace=replace)
        return self._jobs.start_in_thread("restore", f"collections/{collection}", "bytes", work, tenant)

    def _library(self, tenant: str, collection: str) -> Library:
        library = self._libraries.of(tenant)
        library.require(collection)
        return library

    def _present(self, path: str) -> Path:
        checked = self._checked(path)
        if not os.path.lexists(checked):
            raise NotFound(f"There is no file or folder {checked} on this box.")
        return checked

    def _new(self, path: str) -> Path:
        checked = self._checked(path)
        if not os.access(checked.parent, os.W_OK | os.X_OK):
            raise InvalidArgument.of("path", f"the daemon may not write into {checked.parent}.")
        return checked

    def _checked(self, path: str) -> Path:
        """The path with its folder's links followed; what it names itself may be anything. Raises InvalidArgument."""
        if not path.startswith("/") or "\0" in path:
            raise InvalidArgument.of("path", "must be absolute.")
        named = Path(path)
        if named.name in ("", "..") or len(os.fsencode(named.name)) > _MAX_NAME_BYTES:
            raise InvalidArgument.of("path", "must name a file or a folder.")
        try:
            parent = named.parent.resolve(strict=True)
            own, above = os.stat(self._own), [os.stat(one) for one in (parent, *parent.parents)]
            if os.path.exists(named):
                above.append(os.stat(named))
        except (OSError, RuntimeError):
            raise InvalidArgument.of("path", f"there is no folder {named.parent} on this box.") from None
        if any(os.path.samestat(own, one) for one in above):
            raise InvalidArgument.of("path", f"{named} lies in the box's own data directory.")
        if not parent.is_dir():
            raise InvalidArgument.of("path", f"{parent} is no folder.")
        return parent / named.name
