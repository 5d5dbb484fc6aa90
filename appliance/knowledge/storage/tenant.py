"""The key of the tenant that a collection belongs to: what its key record is wrapped under, by epoch."""

from dataclasses import dataclass
from pathlib import Path

from appliance.errors import KeyUnavailable, StoreDamaged
from appliance.ports import Keyring, TenantKeys


@dataclass(frozen=True, slots=True)
class Tenant:
    """marks: the directory of high-water marks (mark.py). Its repr shows no key."""

    name: str
    keyring: Keyring
    keys: TenantKeys
    marks: Path

    @property
    def proofs(self) -> Path:
        """The directory in which the proofs of shredding are kept."""
        return self.marks.parent / "proofs"

    @property
    def epoch(self) -> int:
        """Of the newest key. Raises KeyUnavailable where there is none."""
        if epochs := self.keys.epochs(self.name):
            return epochs[-1]
        raise KeyUnavailable(f"The key of tenant {self.name} is missing.")

    def wrap(self, secret: bytes, context: bytes, epoch: int) -> bytes:
        """Raises KeyUnavailable."""
        return self.keyring.wrap(secret, context, under=self.keys.get(self.name, epoch))

    def unwrap(self, wrapped: bytes, context: bytes, epoch: int) -> bytes:
        """Raises StoreDamaged; KeyUnavailable where the key of an epoch that is there cannot be read."""
        if epoch not in self.keys.epochs(self.name):
            raise StoreDamaged(f"It is wrapped under epoch {epoch} of tenant {self.name}'s key, which is no more.")
        return self.keyring.unwrap(wrapped, context, under=self.keys.get(self.name, epoch))
