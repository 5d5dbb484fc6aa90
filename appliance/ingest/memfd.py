"""Anonymous files that nothing changes once they are whole: what is hashed is what is scanned, parsed and stored.

Source: memfd_create(2) and the seals of fcntl(2).
"""

import fcntl
import os

from appliance.ingest import durable

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def new_memfd() -> int:
    """An empty anonymous file that can be sealed; the caller closes it."""
    return os.memfd_create("document", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def memfd_of(content: bytes) -> int:
    """A sealed memfd; the caller closes it."""
    memfd = new_memfd()
    durable.write_at(memfd, content, 0)
    seal(memfd)
    return memfd


def seal(memfd: int) -> None:
    """Nothing changes it from now on."""
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
