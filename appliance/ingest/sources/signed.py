"""A source with manifests that somebody trusted signed: files are held to their hashes, others may be refused."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from appliance.errors import DocumentRefused, InvalidArgument
from appliance.ingest import signing
from appliance.ingest.memfd import new_memfd
from appliance.ingest.signing import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Listed
from appliance.ingest.sources.found import Found, OpenSource
from appliance.types import Provenance

_SIGNATURE_BYTES = 1024
_NO_MANIFEST = "There is no manifest of a trusted signer that can be read, and only signed files are taken here."


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is signed of one volume. root: what its names begin with, '' or "partition-1/". signer: '' for none that is
    trusted. listed: by name of the source. why: the refusal of what is not listed, '' where it is taken all the same.
    """

    root: str
    signer: str
    listed: Mapping[str, Listed]
    why: str


class SignedSource:
    """Another open source as its manifests have it (`OpenSource`). Made by `signed`."""

    def __init__(self, inner: OpenSource, manifests: Sequence[Manifest], required: bool) -> None:
        self._inner, self._manifests = inner, manifests
        self._elsewhere = Manifest("", "", {}, _NO_MANIFEST if required else "")

    @property
    def provenance(self) -> Provenance:
        """Several signers with plus signs between."""
        signers = dict.fromkeys(manifest.signer for manifest in self._manifests if manifest.signer)
        return replace(self._inner.provenance, signer="+".join(signers))

    async def files(self) -> tuple[Found, ...]:
        """As OpenSource, without the manifests; a listed file that is not there is among them, and says so."""
        return await asyncio.to_thread(self._all_judged, await self._inner.files())

    async def copy(self, found: Found, target: int, max_bytes: int) -> tuple[str, int]:
        """As OpenSource. Raises DocumentRefused: NOT_SIGNED, SIGNATURE_MISMATCH."""
        manifest = self._manifest(found.name)
        listed = manifest.listed.get(found.name)
        if listed is None and manifest.why:
            raise DocumentRefused("NOT_SIGNED", manifest.why)
        copied = await self._inner.copy(found, target, max_bytes)
        if listed is not None and copied != (listed.sha256, listed.size_bytes):
            raise _mismatch()
        return copied

    async def close(self) -> None:
        """As OpenSource."""
        await self._inner.close()

    def _all_judged(self, files: Sequence[Found]) -> tuple[Found, ...]:
        own = {manifest.root + name for manifest in self._manifests for name in (MANIFEST, SIGNATURE)}
        found = [self._judged(one) for one in files if one.name not in own]
        refusal = DocumentRefused("MISSING", "The signed manifest lists it, and it is not there.")
        there = {one.name for one in found}
        for manifest in self._manifests:
            missing = sorted(manifest.listed.keys() - there, key=os.fsencode)
            found += (Found(name, refusal=refusal, signer=manifest.signer) for name in missing)
        return tuple(found)

    def _judged(self, found: Found) -> Found:
        manifest = self._manifest(found.name)
        listed = manifest.listed.get(found.name)
        if found.refusal is not None:
            return found
        if listed is None:
            return replace(found, refusal=DocumentRefused("NOT_SIGNED", manifest.why)) if manifest.why else found
        if listed.size_bytes != found.size_bytes:
            return replace(found, refusal=_mismatch())
        return replace(found, signer=manifest.signer)

    def _manifest(self, name: str) -> Manifest:
        """Of the volume that a file lies on; what lies on none is in none."""
        return next((one for one in self._manifests if name.startswith(one.root)), self._elsewhere)


async def signed(
    source: OpenSource, signers: Mapping[str, str], required: bool, roots: Sequence[str] = ("",)
) -> OpenSource:
    """The source as its manifests have it; as it is where it has no trusted one and none is required.

    signers: public keys by name. roots: what the names of each volume begin with: a volume's manifest lies at its root,
    and counts for that volume alone. Nothing of a manifest is parsed before its signature was found good. Raises
    SourceGone, SandboxUnavailable.
    """
    if not signers and not required:
        return source
    manifests = [await _manifest(source, root, signers, required) for root in roots]
    if not required and not any(manifest.signer for manifest in manifests):
        return source
    return SignedSource(source, manifests, required)


async def _manifest(source: OpenSource, root: str, signers: Mapping[str, str], required: bool) -> Manifest:
    signer, listed = "", dict[str, Listed]()
    why = "It is not in the signed manifest, and only signed files are taken here."
    try:
        manifest = await _content(source, root + MANIFEST, MAX_MANIFEST_BYTES)
        signature = await _content(source, root + SIGNATURE, _SIGNATURE_BYTES)
        signer = await asyncio.to_thread(signing.signer_of, manifest, signature, signers)
        listed = await asyncio.to_thread(_listed, root, manifest) if signer else {}
        if not signer:
            why = "No trusted key signed the manifest, and only signed files are taken here."
    except (DocumentRefused, InvalidArgument):
        signer, listed = "", {}
        why = _NO_MANIFEST
    return Manifest(root, signer, listed, why if required else "")


def _listed(root: str, manifest: bytes) -> dict[str, Listed]:
    """By name of the source. Raises InvalidArgument."""
    return {root + name: listed for name, listed in signing.files_of(manifest).items()}


async def _content(source: OpenSource, name: str, max_bytes: int) -> bytes:
    """Raises DocumentRefused."""
    memfd = new_memfd()
    try:
        _, size = await source.copy(Found(name), memfd, max_bytes)
        return os.pread(memfd, size, 0)
    finally:
        os.close(memfd)


def _mismatch() -> DocumentRefused:
    return DocumentRefused("SIGNATURE_MISMATCH", "It is not the file that was signed: another size or sha256.")
