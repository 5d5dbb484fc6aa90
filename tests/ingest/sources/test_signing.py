import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.errors import AlreadyExists, InvalidArgument, SigningRefused
from appliance.ingest import signing
from appliance.ingest.signing import MANIFEST, SIGNATURE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "stick"
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"first")
    (folder / "below" / "ä b.pdf").write_bytes(bytes(3_000_000))
    return folder


async def test_a_folder_is_signed_so_that_the_public_key_finds_its_signer(folder: Path, tmp_path: Path) -> None:
    public = signing.make_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert signing.public_key(tmp_path / "key.pem") == public
    assert await signing.sign_folder(folder, tmp_path / "key.pem") == 2
    manifest, signature = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()
    other = signing.make_key(tmp_path / "other.pem")
    signers = {"other": other, "Registry": public}
    assert signing.signer_of(manifest, signature, signers) == "Registry"
    listed = signing.files_of(manifest)
    assert set(listed) == {"a.txt", "below/ä b.pdf"}
    assert listed["below/ä b.pdf"].size_bytes == 3_000_000
    assert await signing.sign_folder(folder, tmp_path / "key.pem") == 2
    assert (folder / MANIFEST).read_bytes() == manifest


async def test_another_byte_another_key_or_another_purpose_signs_nothing(folder: Path, tmp_path: Path) -> None:
    public = signing.make_key(tmp_path / "key.pem")
    await signing.sign_folder(folder, tmp_path / "key.pem")
    manifest, signature = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()
    assert signing.signer_of(manifest + b" ", signature, {"a": public}) == ""
    assert signing.signer_of(manifest.removeprefix(b"{"), signature, {"a": public}) == ""
    assert signing.signer_of(manifest, signature, {}) == ""
    assert signing.signer_of(manifest, signature, {"a": "00" * 32}) == ""
    assert signing.signer_of(signing.CONTEXT + manifest, signature, {"a": public}) == ""
    for damaged in (b"", b"\xff", signature[:-3], b"zz" * 64, bytes(64)):
        assert signing.signer_of(manifest, damaged, {"a": public}) == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"version": 1}',
        b'{"version": 2, "files": []}',
        b'{"version": 1, "files": [{"path": "a", "sha256": "0", "size": 1}]}',
        json.dumps({"version": 1, "files": [{"path": "a", "sha256": "0" * 64, "size": 1}] * 2}).encode(),
        b'{"version": 1, "files": [{"path": "a", "sha256": "' + b"0" * 64 + b'", "size": "many"}]}',
    ],
)
def test_a_manifest_of_another_form_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidArgument, match=MANIFEST):
        signing.files_of(content)


async def test_what_no_box_would_take_is_not_signed(folder: Path, tmp_path: Path) -> None:
    signing.make_key(tmp_path / "key.pem")
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(SigningRefused, match="link is a link"):
        await signing.sign_folder(folder, tmp_path / "key.pem")
    (folder / "link").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(SigningRefused, match="pipe is a link, a pipe"):
        await signing.sign_folder(folder, tmp_path / "key.pem")
    assert not (folder / MANIFEST).exists()


async def test_a_key_is_never_signed_into_what_it_signs(folder: Path) -> None:
    signing.make_key(folder / "key.pem")
    with pytest.raises(InvalidArgument, match="move it out"):
        await signing.sign_folder(folder, folder / "key.pem")


async def test_keys_that_are_none_say_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="No such file"):
        await signing.sign_folder(folder, tmp_path / "none.pem")
    (tmp_path / "bad.pem").write_text("no key")
    with pytest.raises(InvalidArgument, match="holds no private key"):
        await signing.sign_folder(folder, tmp_path / "bad.pem")
    other = rsa.generate_private_key(65537, 2048)
    (tmp_path / "rsa.pem").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(InvalidArgument, match="another kind than Ed25519"):
        await signing.sign_folder(folder, tmp_path / "rsa.pem")
    with pytest.raises(AlreadyExists):
        signing.make_key(tmp_path / "rsa.pem")
    signing.make_key(tmp_path / "key.pem")
    with pytest.raises(InvalidArgument, match="is no folder"):
        await signing.sign_folder(tmp_path / "key.pem", tmp_path / "key.pem")
