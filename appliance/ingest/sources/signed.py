"""A source with a manifest that somebody trusted signed: files are held to their hashes, others may be refused."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from appliance.errors import DocumentRefused, InvalidArgument
from appliance.ingest import signing
from appliance.ingest.memfd import new_memfd
from appliance.ingest.signing import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Listed
from appliance.ingest.sources.found import Found, OpenSource
from appliance.types import Provenance

_SIGNATURE_BYTES = 1024


class SignedSource:
    """Another open source as its manifest has it (`OpenSource`). Made by `signed`."""

    def __init__(self, inner: OpenSource, signer: str, listed: Mapping[str, Listed], why: str) -> None:
        """why: the refusal of what is not listed, '' where it is taken all the same."""
        self._inner, self._signer, self._listed, self._why = inner, signer, listed, why

    @property
    def provenance(self) -> Provenance:
        return replace(self._inner.provenance, signer=self._signer)

    async def files(self) -> tuple[Found, ...]:
        """As OpenSource, without the manifest itself; a listed file that is not there is among them, and says so."""
        return await asyncio.to_thread(self._all_judged, await self._inner.files())

    async def copy(self, found: Found, target: int, max_bytes: int) -> tuple[str, int]:
        """As OpenSource. Raises DocumentRefused: NOT_SIGNED, SIGNATURE_MISMATCH."""
        listed = self._listed.get(found.name)
        if listed is None and self._why:
            raise DocumentRefused("NOT_SIGNED", self._why)
        copied = await self._inner.copy(found, target, max_bytes)
        if listed is not None and copied != (listed.sha256, listed.size_bytes):
            raise _mismatch()
        return copied

    async def close(self) -> None:
        """As OpenSource."""
        await self._inner.close()

    def _all_judged(self, files: Sequence[Found]) -> tuple[Found, ...]:
        found = [self._judged(one) for one in files if one.name not in (MANIFEST, SIGNATURE)]
        missing = sorted(self._listed.keys() - {one.name for one in found}, key=os.fsencode)
        refusal = DocumentRefused("MISSING", "The signed manifest lists it, and it is not there.")
        return *found, *(Found(name, refusal=refusal, signer=self._signer) for name in missing)

    def _judged(self, found: Found) -> Found:
        listed = self._listed.get(found.name)
        if found.refusal is not None:
            return found
        if listed is None:
            return replace(found, refusal=DocumentRefused("NOT_SIGNED", self._why)) if self._why else found
        if listed.size_bytes != found.size_bytes:
            return replace(found, refusal=_mismatch())
        return replace(found, signer=self._signer)


async def signed(source: OpenSource, signers: Mapping[str, str], required: bool) -> OpenSource:
    """The source as its manifest has it; as it is where it has no trusted one and none is required.

    signers: public keys by name. Nothing of a manifest is parsed before its signature was found good. Raises
    SourceGone, SandboxUnavailable.
    """
    if not signers and not required:
        return source
    signer, listed = "", dict[str, Listed]()
    why = "It is not in the signed manifest, and only signed files are taken here."
    try:
        manifest = await _content(source, MANIFEST, MAX_MANIFEST_BYTES)
        signature = await _content(source, SIGNATURE, _SIGNATURE_BYTES)
        signer = await asyncio.to_thread(signing.signer_of, manifest, signature, signers)
        listed = dict(await asyncio.to_thread(signing.files_of, manifest)) if signer else {}
        if not signer:
            why = "No trusted key signed the manifest, and only signed files are taken here."
    except (DocumentRefused, InvalidArgument):
        signer, listed = "", {}
        why = "There is no manifest of a trusted signer that can be read, and only signed files are taken here."
    if not signer and not required:
        return source
    return SignedSource(source, signer, listed, why if required else "")


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
