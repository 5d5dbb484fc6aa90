"""Collections that leave the box and come into it: exports that a passphrase opens, backups that this box opens."""
