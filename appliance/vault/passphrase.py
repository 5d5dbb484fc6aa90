"""A passphrase to key bytes by argon2id (RFC 9106), which this module alone knows."""

import unicodedata

from argon2.exceptions import HashingError
from argon2.low_level import Type, hash_secret_raw

from appliance.errors import Busy, InvalidArgument
from appliance.types import PassphraseCost

STRETCHED_BYTES = 64
MAX_MEMORY_KIB = 1 << 20
MAX_PASSES = 16
MAX_LANES = 16
_MIN_KIB_A_LANE = 8


def is_bearable(cost: PassphraseCost) -> bool:
    """Whether a cost that a file asks for may be spent: RFC 9106's least, and not so much that it stops the box."""
    return (
        1 <= cost.lanes <= MAX_LANES
        and 1 <= cost.passes <= MAX_PASSES
        and _MIN_KIB_A_LANE * cost.lanes <= cost.memory_kib <= MAX_MEMORY_KIB
    )


def stretch(passphrase: str, salt: bytes, cost: PassphraseCost) -> bytes:
    """64 bytes that can be had no cheaper. The same words typed on another keyboard give the same (NFC, RFC 8265).

    Raises InvalidArgument for a cost that is not bearable, or a passphrase that is no Unicode; Busy without the memory.
    """
    if not is_bearable(cost):
        raise InvalidArgument.of("cost", "is not one that this box would spend on a passphrase.")
    try:
        secret = unicodedata.normalize("NFC", passphrase).encode()
    except UnicodeEncodeError:
        raise InvalidArgument.of("passphrase", "holds characters that are not Unicode text.") from None
    try:
        return hash_secret_raw(secret, salt, cost.passes, cost.memory_kib, cost.lanes, STRETCHED_BYTES, Type.ID)
    except HashingError:
        raise Busy(f"{cost.memory_kib >> 10} MiB of memory for a passphrase are not free just now.") from None
