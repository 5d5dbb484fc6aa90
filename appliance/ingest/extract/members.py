"""What may be taken out of a container: names that stay inside it, sizes that its own size can account for."""

import re

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps, is_bomb
from appliance.ingest.extract.reading import Content, Member

# Why a member was left out.
OUTSIDE = "MEMBER_OUTSIDE"  # its name leads out of the container
NAME = "MEMBER_NAME"  # its name is empty, too long, or has characters that no name should have
LINK, DEVICE = "MEMBER_LINK", "MEMBER_DEVICE"
ENCRYPTED, BROKEN, METHOD = "MEMBER_ENCRYPTED", "MEMBER_BROKEN", "MEMBER_METHOD"
DUPLICATE = "MEMBER_DUPLICATE"  # a member before it has the same name
UNNAMED = "MEMBER_UNNAMED"  # a single compressed file that does not say its name

_PATH_BYTES, _PART_BYTES = 1024, 255
_SHOWN_CHARACTERS = 200
_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Members:
    """Collects the members of one container. Names are checked as they come, none is there twice."""

    def __init__(self) -> None:
        self._found: list[Member] = []
        self._names: set[str] = set()

    @property
    def found(self) -> tuple[Member, ...]:
        return tuple(self._found)

    def problem(self, path: str) -> str:
        """Why a member of that name cannot be taken, '' where it can; then the name is taken."""
        path = _without_dots(path)
        wrong = _name_problem(path) or (DUPLICATE if path in self._names else "")
        self._names.add(path)
        return wrong

    def add(self, path: str, content: Content) -> None:
        self._found.append((_without_dots(path), content, ""))

    def leave_out(self, path: str, reason: str) -> None:
        shown = path if len(path) <= _SHOWN_CHARACTERS else path[:_SHOWN_CHARACTERS] + "…"
        self._found.append((shown or "(no name)", b"", reason))


def check_count(count: int, caps: Caps) -> None:
    """Raises DocumentRefused: TOO_MANY_MEMBERS."""
    if count > caps.members:
        raise DocumentRefused("TOO_MANY_MEMBERS", f"More than {caps.members} files are in it (`archive_max_members`).")


def check_sizes(packed_bytes: int, unpacked_bytes: int, caps: Caps) -> None:
    """Raises DocumentRefused: ZIP_BOMB, ARCHIVE_TOO_LARGE."""
    if is_bomb(packed_bytes, unpacked_bytes, caps.ratio):
        raise DocumentRefused("ZIP_BOMB", f"It unpacks to more than {caps.ratio} times its size, as bombs do.")
    if unpacked_bytes > caps.member_bytes:
        problem = f"It unpacks to more than {caps.member_bytes >> 20} MiB (`archive_max_mib`)."
        raise DocumentRefused("ARCHIVE_TOO_LARGE", problem)


def _without_dots(path: str) -> str:
    return "/".join(part for number, part in enumerate(path.split("/")) if part != "." and (part or not number))


def _name_problem(path: str) -> str:
    parts = path.replace("\\", "/").split("/")
    if (not parts[0] and len(parts) > 1) or ".." in parts or _DRIVE.match(path):
        return OUTSIDE
    sizes = [len(part.encode("utf-8", "surrogateescape")) + 1 for part in parts]
    if not path or "\\" in path or _CONTROL.search(path) or max(sizes) > _PART_BYTES + 1 or sum(sizes) > _PATH_BYTES:
        return NAME
    return ""
