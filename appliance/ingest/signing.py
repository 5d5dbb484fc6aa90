"""Manifests that say which files somebody signed: made offline, by `appliance ingest sign`, checked by the box.

    appliance-manifest.json   {"version": 1, "files": [{"path": "a/b.pdf", "sha256": hex, "size": bytes}, …]}
    appliance-manifest.sig    128 hex digits: Ed25519 (RFC 8032) over CONTEXT and the manifest's exact bytes

Both lie at the root. Imports nothing of the appliance but its errors, so that a machine without a box can sign.
"""

import asyncio
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from appliance.errors import AlreadyExists, InvalidArgument, SigningRefused

MANIFEST, SIGNATURE = "appliance-manifest.json", "appliance-manifest.sig"
CONTEXT = b"appliance manifest 1\n"
MAX_MANIFEST_BYTES = 64 << 20
PUBLIC_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Listed:
    """What a manifest says of one file."""

    sha256: str
    size_bytes: int


def make_key(path: Path) -> str:
    """Write a new private key (PEM, PKCS #8, readable by its owner alone); its public key, 64 hex digits.

    Raises AlreadyExists, InvalidArgument.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    except FileExistsError:
        raise AlreadyExists(f"There is a file {path} already.") from None
    except OSError as error:
        raise InvalidArgument.of("key", f"{path} cannot be written: {error.strerror}.") from None
    return _public(key)


def public_key(path: Path) -> str:
    """The public key of a private key's file, 64 hex digits. Raises InvalidArgument."""
    return _public(_load(path))


async def sign_folder(folder: Path, key: Path) -> int:
    """Hash every file below, write manifest and signature at its root; how many files are listed.

    key: a private Ed25519 key in PEM. An older manifest is replaced. Raises InvalidArgument, SigningRefused, naming the
    file.
    """
    return await asyncio.to_thread(_sign_folder, folder, key)


def signer_of(manifest: bytes, signature: bytes, signers: Mapping[str, str]) -> str:
    """The name, in alphabetical order the first, whose key signed these bytes; '' for none of them.

    signers: public keys (64 hex digits) by name.
    """
    try:
        raw = bytes.fromhex(signature.decode("ascii").strip())
    except ValueError:
        return ""
    for name, key in sorted(signers.items()):
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(raw, CONTEXT + manifest)
        except (InvalidSignature, ValueError):
            continue
        return name
    return ""


def files_of(manifest: bytes) -> Mapping[str, Listed]:
    """What a manifest lists, by path. Only for bytes whose signature was found good. Raises InvalidArgument."""
    try:
        content = json.loads(manifest)
        version, files = content["version"], content["files"]
        listed = {str(file["path"]): Listed(str(file["sha256"]), int(file["size"])) for file in files}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidArgument.of(MANIFEST, "is not of the form that `appliance ingest sign` writes.") from None
    if version != 1:
        raise InvalidArgument.of(MANIFEST, "is of a version that this box does not know.")
    if len(listed) != len(files) or not all(_SHA256.fullmatch(file.sha256) for file in listed.values()):
        raise InvalidArgument.of(MANIFEST, "lists a file twice, or one without a sha256.")
    return listed


def _sign_folder(folder: Path, key: Path) -> int:
    private = _load(key)
    if not folder.is_dir():
        raise InvalidArgument.of("folder", f"{folder} is no folder.")
    paths = sorted(_below(folder))
    if any((folder / path).samefile(key) for path in paths):
        raise InvalidArgument.of("key", f"{key} lies in the folder that is to be signed: move it out of there.")
    files = [_entry(folder, path) for path in paths]
    manifest = json.dumps({"version": 1, "files": files}, indent=1).encode()
    _replace(folder / MANIFEST, manifest)
    _replace(folder / SIGNATURE, private.sign(CONTEXT + manifest).hex().encode() + b"\n")
    return len(files)


def _below(folder: Path) -> Iterator[str]:
    """Paths of all files, from the folder. Raises SigningRefused for what is no file."""
    for top, folders, names in os.walk(folder, onerror=_unreadable):
        for name in (*folders, *names):
            path = Path(top, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise SigningRefused(f"{path} is a link, a pipe or a device, which no box takes.")
            relative = path.relative_to(folder).as_posix()
            if stat.S_ISREG(mode) and relative not in (MANIFEST, SIGNATURE):
                yield relative


def _unreadable(error: OSError) -> None:
    raise SigningRefused(f"{error.filename} cannot be read: {error.strerror}.")


def _entry(folder: Path, relative: str) -> dict[str, str | int]:
    digest, size = hashlib.sha256(), 0
    try:
        with open(folder / relative, "rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise SigningRefused(f"{folder / relative} cannot be read: {error.strerror}.") from None
    return {"path": relative, "sha256": digest.hexdigest(), "size": size}


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(path.name + ".part")  # a name that no box takes
    try:
        with open(fresh, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise InvalidArgument.of("folder", f"{path} cannot be written: {error.strerror}.") from None


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise InvalidArgument.of("key", f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InvalidArgument.of("key", f"{path} holds no private key without a passphrase.") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidArgument.of("key", f"{path} holds a key of another kind than Ed25519.")
    return key


def _public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
