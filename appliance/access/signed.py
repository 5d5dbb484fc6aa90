"""Small files that only this box writes: signed, private, and replaced in one step.

{"signature": hex, …}     the signature is over the purpose, then the rest as JSON, its keys in order
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.access.ca import write_private
from appliance.errors import DiskFull, StoreDamaged
from appliance.ports import Keyring


class SignedFile:
    """One JSON object. Not safe to write from two threads at once."""

    def __init__(self, path: Path, keyring: Keyring, purpose: bytes) -> None:
        """purpose: what it is and the version of its form: no other thing that this box signs can stand in for it."""
        self.path = path
        self._keyring, self._purpose = keyring, purpose
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self) -> dict[str, Any] | None:
        """The content, None where there is no file. Raises StoreDamaged where it is not what this box wrote."""
        if not self.path.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(self.path.read_bytes())
            signature = bytes.fromhex(content.pop("signature"))
            self._keyring.verify(self._signed(content), signature)
        except (ValueError, KeyError, TypeError, AttributeError, StoreDamaged):
            raise self.damaged() from None
        return content

    def damaged(self) -> StoreDamaged:
        return StoreDamaged(f"{self.path} is not what this box wrote.")

    def write(self, content: Mapping[str, Any]) -> None:
        """Survives power loss once it returns. Raises DiskFull, and then the old content stands."""
        signature = self._keyring.sign(self._signed(content)).hex()
        try:
            write_private(self.path, json.dumps({"signature": signature} | dict(content), indent=1).encode())
        except OSError as error:
            raise DiskFull(f"{self.path} cannot be written: {error.strerror or 'the disk failed'}.") from error

    def _signed(self, content: Mapping[str, Any]) -> bytes:
        return self._purpose + json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
