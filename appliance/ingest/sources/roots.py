"""Which folders of the box files may be taken from: an allow-list, whatever the daemon itself may read.

Those of the option `ingest_roots`, and the tenant's import folder. A path must lie in one of them as it is written,
before anything of it is looked at, and again once its links were followed; then it is opened by a walk that follows no
link, so that it lies where its name says.
Source: openat2(2).
"""

import os
import stat
from contextlib import suppress
from pathlib import Path

from appliance.config import Config
from appliance.errors import InvalidArgument, NotFound, SourceRefused
from appliance.ingest.sources import kernel
from appliance.ingest.sources.folder import Folder
from appliance.ingest.sources.found import printable

IMPORTS = "import/documents"
"""In the data directory; below it each tenant has a folder of its name."""

_NO_LINKS = kernel.NO_MAGICLINKS | kernel.NO_SYMLINKS | kernel.BENEATH  # other file systems may lie on the way
_SHOWN_CHARACTERS = 200


class Roots:
    """Safe to use from many threads; blocks on the places that it is asked for, and on no others."""

    def __init__(self, config: Config) -> None:
        self._data_dir, self._own = config.data_dir, Path(os.path.realpath(config.data_dir))
        self._named = config.roots()

    def open(self, tenant: str, path: str) -> Folder:
        """A folder, or a file in one, for a tenant.

        Raises InvalidArgument, NotFound (of what may be looked for), SourceRefused, also within the box's own data.
        """
        if not path.startswith("/") or "\0" in path:
            raise InvalidArgument.of("path", "must be absolute.")
        asked = Path(os.path.normpath(f"/{path.lstrip('/')}"))
        self._require_inside(tenant, asked, asked)
        place = Path(os.path.realpath(asked.parent), asked.name)  # a link of that very name is refused as one
        self._require_inside(tenant, asked, place)
        try:
            self._require_foreign(tenant, asked, place)
            self._require_own_names(tenant, asked, place)
            fd = _open(place, os.O_PATH)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                return Folder(fd, place, self._own)
            os.close(fd)
            return Folder(_open(place.parent, os.O_PATH | os.O_DIRECTORY), place.parent, self._own, place.name)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"There is no file or folder {_shown(path)} on this box.") from None
        except OSError as error:
            raise InvalidArgument.of("path", f"{_shown(path)} cannot be opened: {error.strerror}.") from None

    def _require_inside(self, tenant: str, asked: Path, place: Path) -> None:
        """Raises SourceRefused."""
        if any(place.is_relative_to(data / IMPORTS / tenant) for data in (self._data_dir, self._own)):
            return
        if not self._may(tenant, place):
            raise self._outside(tenant, asked, place)
        inner = (folder for _, folder in self._named if folder.is_relative_to(place))
        if not all(self._may(tenant, folder) for folder in inner):
            raise SourceRefused(f"{_shown(asked)} holds what is another tenant's too: name folders in it one by one.")

    def _require_foreign(self, tenant: str, asked: Path, place: Path) -> None:
        """Raises SourceRefused for what is the box's own, by whatever mount it is reached; OSError."""
        if place.is_relative_to(self._own / IMPORTS / tenant):
            return
        own = os.stat(self._own)
        if any(os.path.samestat(os.lstat(folder), own) for folder in (*reversed(place.parents), place)):
            why = f"{_shown(asked)} lies in the box's own data directory, which is not read"
            raise SourceRefused(f"{why}. {self._other_ways(tenant)}")

    def _require_own_names(self, tenant: str, asked: Path, place: Path) -> None:
        """Raises SourceRefused for what may be another tenant's folder by another of its names (its short one, or in
        capitals where a file system ignores case); OSError.
        """
        for _, folder in self._named:
            around = Path(os.path.commonpath((folder, place)))
            if around == place or self._may(tenant, folder) or not self._may(tenant, around):
                continue
            if place.parts[len(around.parts)] not in os.listdir(around):
                raise SourceRefused(f"{_shown(asked)} is not how its folder lists it: name it as it is listed.")

    def _may(self, tenant: str, place: Path) -> bool:
        """Whether the innermost named folders around a place are everyone's, or this tenant's."""
        around = [(len(folder.parts), owner) for owner, folder in self._named if place.is_relative_to(folder)]
        owners = {owner for depth, owner in around if depth == max(around)[0]}
        return tenant in owners if owners - {""} else bool(owners)

    def _outside(self, tenant: str, asked: Path, place: Path) -> SourceRefused:
        leads = f", where {_shown(asked)} leads" if place != asked else ""
        named = ", ".join(str(folder) for _, folder in self._named if self._may(tenant, folder)) or "none"
        return SourceRefused(
            f"Nothing is taken from {_shown(place)}{leads}: it is in none of the folders that the option"
            f" `ingest_roots` gives you ({named}). {self._other_ways(tenant)}"
        )

    def _other_ways(self, tenant: str) -> str:
        imports = self._own / IMPORTS / tenant
        with suppress(OSError):  # it is there for who does as he is told
            imports.mkdir(mode=0o700, parents=True, exist_ok=True)
        where = f"{IMPORTS}/{tenant} in the data directory"
        return f"Send the files with `appliance ingest upload`, or copy them to {where} and name that."


def _open(place: Path, flags: int) -> int:
    """Raises OSError, also where a link is on the way."""
    top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = os.fsencode(place.relative_to("/"))
        return kernel.openat2(top, name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, _NO_LINKS)
    finally:
        os.close(top)


def _shown(path: Path | str) -> str:
    return printable(str(path))[:_SHOWN_CHARACTERS]
