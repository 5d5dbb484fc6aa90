"""Small JSON files that only this box writes: signed, and replaced in one step: a crash leaves the old or the new.

    {"signature": hex, KEY: value}

What is signed is bound to a purpose, so that no other thing that this box signs can stand in for it.
"""

import json
import os
from pathlib import Path
from typing import Any

from appliance.errors import StoreDamaged
from appliance.ports import Keyring


class SignedFile:
    """One value of JSON. Not safe to write from two threads at once."""

    def __init__(self, path: Path, keyring: Keyring, key: str, purpose: str) -> None:
        """key: the value's name in the file. purpose: what it is and the version of its form, 'model index 1'."""
        self.path = path
        self._keyring, self._key, self._purpose = keyring, key, purpose

    def read(self) -> Any:
        """The value, None where there is no file. Raises StoreDamaged where it is not what this box wrote."""
        try:
            document = json.loads(self.path.read_bytes())
            value, signature = document[self._key], bytes.fromhex(document["signature"])
            self._keyring.verify(self._canonical(value), signature)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, StoreDamaged):
            raise self.damaged() from None
        return value

    def damaged(self) -> StoreDamaged:
        return StoreDamaged(f"{self.path} is not what this box wrote.")

    def write(self, value: Any) -> None:
        """Survives power loss once it returns."""
        document = {"signature": self._keyring.sign(self._canonical(value)).hex(), self._key: value}
        temporary = self.path.with_suffix(".new")
        with open(temporary, "w") as target:
            json.dump(document, target, indent=1)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(self.path)
        flush_directory(self.path.parent)

    def _canonical(self, value: object) -> bytes:
        return f"{self._purpose}\n".encode() + json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def flush_directory(path: Path) -> None:
    """Make renames in a directory survive power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
