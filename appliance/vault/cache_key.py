"""The key of what may be lost: the salts and the files of prefix caches. It lies beside them, wrapped by the root key.

Missing, damaged or of another box, it is made anew: what it protected is then as good as dropped, and nothing else is.
"""

import hmac
from pathlib import Path

import structlog

from appliance.errors import DiskFull, KeyUnavailable, StoreDamaged
from appliance.ports import Keyring
from appliance.vault import files

_CONTEXT = b"caches of this box"
log = structlog.get_logger()


def load(path: Path, keyring: Keyring) -> bytes:
    """The 32 bytes kept at `path`, or new ones, kept there if the disk takes them."""
    try:
        if path.exists():
            return keyring.unwrap(files.read_key_file(path, files.KIND_CACHE), _CONTEXT)
    except (KeyUnavailable, StoreDamaged) as error:
        log.warning("cache_key.replaced", error=type(error).__name__)
    key = keyring.new_key()
    try:
        path.unlink(missing_ok=True)
        files.remove_leftover(path)
        files.write_key_file(path, files.KIND_CACHE, keyring.wrap(key, _CONTEXT))
    except (DiskFull, KeyUnavailable, OSError) as error:
        log.warning("cache_key.not_kept", error=type(error).__name__)
    return key


def rewrap(path: Path, keyring: Keyring) -> None:
    """Wrap the key at `path` anew, after the root key was changed. Raises DiskFull, KeyUnavailable."""
    if path.exists():
        files.replace_key_file(path, files.KIND_CACHE, keyring.wrap(load(path, keyring), _CONTEXT))


def derive(key: bytes, purpose: str, name: str = "") -> bytes:
    """A key for one purpose and name, 32 bytes; nothing of the others follows from it (HMAC as a PRF)."""
    return hmac.digest(key, purpose.encode() + b"\x00" + name.encode(), "sha256")
