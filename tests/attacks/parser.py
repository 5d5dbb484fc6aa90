"""A parser that does what the document says: its text names an attack. Imported by the zygote, as any parser."""

import errno
import os
from collections.abc import Mapping

from tests.attacks import answers, files, kernel, network, processes, resources  # noqa: F401 - declare their attacks
from tests.attacks.attack import ATTACKS, World

Page = tuple[str, str, tuple[str, ...], tuple[()], tuple[()]]


class Hostile:
    warm_documents = ((".txt", b"harmless"),)

    def __init__(self, world: World) -> None:
        self._world = world

    def parse(self, data: bytes, suffix: str) -> Page:
        """One page: "free: " and what the attack returned, or "stopped: " and the name of the error."""
        name = data.decode().strip("\0")
        if name == "harmless":
            return "text/plain", "hostile 1", ("harmless",), (), ()
        os.close(2)  # a descriptor is free for the attack
        try:
            said = f"free: {ATTACKS[name].run(self._world)!r}"[:200]
        except MemoryError:
            said = "stopped: ENOMEM"
        except OSError as error:
            said = f"stopped: {errno.errorcode.get(error.errno or 0, type(error).__name__)}"
        except RecursionError:
            said = "stopped: RecursionError"
        printable = "".join(letter if letter.isprintable() else "?" for letter in said)
        return "text/plain", "hostile 1", (printable,), (), ()


def reader(settings: Mapping[str, int | str]) -> Hostile:
    return Hostile(World(**{**settings, "parent_pid": os.getpid()}))  # type: ignore[arg-type]
