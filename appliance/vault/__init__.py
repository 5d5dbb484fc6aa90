"""Keys, and all that is done with them: the root key's slots, wrapping, authenticated encryption, the box's signature.

Root key → tenant key → collection key (wrapped in its key record) → file key (wrapped in the manifest). Alone imports
`cryptography`'s AEAD and Ed25519; everything else is handed a `ports.Keyring`.
"""

from appliance.vault.keyring import FileKeyring
from appliance.vault.tenants import FileTenantKeys

__all__ = ["FileKeyring", "FileTenantKeys"]
