"""The content-addressed store of model files.

    <root>/blobs/<sha256>   the bytes, read-only; written under another name, flushed, then renamed
    <root>/index.json       {"signature": hex, "models": [...]}: this box's signature over what it took in, and as what

A file enters by being copied, because what lies in a folder that others write to may change after it was looked at:
the copy is hashed while it is written, and it is the copy whose header is judged. A crash leaves either the old index
or the new one; what it left half done is removed when the store is opened.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from appliance.errors import DiskFull, InvalidArgument, ModelDamaged, NotFound, StoreDamaged
from appliance.models import architectures, gguf, scaffold
from appliance.ports import Keyring
from appliance.types import ModelFile, ModelKind

CHUNK_BYTES = 4 << 20
SPARE_BYTES = 256 << 20  # a model must not take the disk's last bytes from the knowledge base
MAX_NAME_CHARACTERS = 64
TEMPORARY = ".incoming-"
log = structlog.get_logger()

Report = Callable[[int, int], None]
Stamp = tuple[int, int, int, int, int]


class ModelStore:
    """Fulfils `ports.ModelFiles`. Safe to call from many threads; all but `list` and `get` may block on the disk."""

    def __init__(self, root: Path, keyring: Keyring, built_in: Sequence[ModelFile] = ()) -> None:
        """Open or begin the store at `root`. `built_in`: models that come with the box. Raises StoreDamaged."""
        self._blobs = root / "blobs"
        self._index = root / "index.json"
        self._keyring = keyring
        self._built_in = {file.name: file for file in built_in}
        self._lock = threading.Lock()
        self._verified: dict[str, Stamp] = {}
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, ModelFile] = {file.name: file for file in self._read_index()}
        self._sweep()

    def list(self) -> tuple[ModelFile, ...]:
        return (*self._built_in.values(), *self._files.values())

    def get(self, name: str) -> ModelFile:
        try:
            return self._built_in.get(name) or self._files[name]
        except KeyError:
            raise NotFound(f"There is no model models/{name}.") from None

    def add(self, path: Path, report: Report = lambda done, total: None) -> ModelFile:
        """Take a GGUF into the store; bytes that are there already give the model they are.

        `report(done_bytes, total_bytes)` is called for each chunk; what it raises ends the import without a trace.
        Raises ModelMissing, ModelDamaged, ModelUnsupported, DiskFull.
        """
        with gguf.open_regular(path) as source:
            _judge(source)
            self._require_space(os.fstat(source.fileno()).st_size)
            with self._incoming() as (target, temporary):
                sha256 = _copy(source, target, report)
                header, shape = _judge(target)
                size_bytes = target.tell() if target.seek(0, os.SEEK_END) else 0
                target.flush()
                os.fsync(target.fileno())
                return self._keep(
                    temporary,
                    ModelFile(
                        name=slug(header.name) or slug(path.stem) or "model",
                        kind=ModelKind.CHAT,
                        path=str(self._blobs / sha256),
                        architecture=header.architecture,
                        sha256=sha256,
                        size_bytes=size_bytes,
                        source=gguf.printable(path.name),
                        parameters=header.parameters,
                        trained_context_tokens=shape.context_tokens,
                        kv_bytes_per_token=shape.kv_bytes_per_token,
                        compute_bytes_per_token=shape.compute_bytes_per_token,
                        scaffold=scaffold.detect(header),
                        create_time=datetime.now(UTC),
                    ),
                )

    def verify(self, file: ModelFile) -> None:
        """Hash the file again, unless this process did and inode, size, mtime and ctime are what they were then.

        So a second load is quick, and a file that was written to, replaced or cut is found. What this cannot see until
        the next start: bits that rot on the disk after the hash, and a write by one who sets the kernel's clock back.
        Raises ModelMissing, ModelDamaged.
        """
        with gguf.open_regular(Path(file.path)) as blob:
            stamp = _stamp(blob)
            if self._verified.get(file.sha256) == stamp:
                return
            digest = hashlib.file_digest(blob, "sha256").hexdigest()
            if digest != file.sha256 or _stamp(blob) != stamp:
                raise ModelDamaged(f"The file of models/{file.name} is not what was imported: its sha256 differs.")
            self._verified[file.sha256] = stamp

    def delete(self, name: str) -> None:
        """Forget a model and remove its file; a worker that has it loaded keeps its mapping.

        Raises NotFound; InvalidArgument for a model that comes with the box.
        """
        if name in self._built_in:
            raise InvalidArgument.of("name", f"models/{name} comes with the box and cannot be deleted.")
        with self._lock:
            file = self.get(name)
            self._write_index({key: value for key, value in self._files.items() if key != name})
            Path(file.path).unlink(missing_ok=True)
            self._verified.pop(file.sha256, None)

    def _keep(self, temporary: Path, file: ModelFile) -> ModelFile:
        """Name the copy by its hash and list it; the model that has the same bytes where there is one."""
        with self._lock:
            known = next((other for other in self._files.values() if other.sha256 == file.sha256), None)
            file = known or replace(file, name=self._free_name(file))
            temporary.chmod(0o400)
            temporary.rename(file.path)  # also over a blob of that name, which may be damaged: this copy is not
            _flush_directory(self._blobs)
            if known is not None:
                return known
            self._write_index({**self._files, file.name: file})
        log.info("model.imported", model=file.name, architecture=file.architecture, scaffold=file.scaffold)
        return file

    def _free_name(self, file: ModelFile) -> str:
        """The name itself; with the start of the hash where another model has it."""
        if file.name not in self._files and file.name not in self._built_in:
            return file.name
        return f"{file.name}-{file.sha256[:8]}"

    def _require_space(self, size_bytes: int) -> None:
        free = shutil.disk_usage(self._blobs).free
        if size_bytes + SPARE_BYTES > free:
            raise DiskFull(f"The model has {size_bytes >> 20} MiB; the disk has {free >> 20} MiB free.")

    @contextmanager
    def _incoming(self) -> Iterator[tuple[BinaryIO, Path]]:
        """A temporary file beside the blobs, gone at the end unless it was renamed."""
        temporary = self._blobs / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            with open(temporary, "x+b") as target:
                yield target, temporary
        except OSError as error:
            if error.errno not in (ENOSPC, EDQUOT):
                raise
            raise DiskFull("The disk became full while the model was copied.") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _read_index(self) -> Sequence[ModelFile]:
        try:
            document = json.loads(self._index.read_bytes())
            models, signature = document["models"], bytes.fromhex(document["signature"])
            self._keyring.verify(_canonical(models), signature)
            return [_from_entry(entry, self._blobs) for entry in models]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, StoreDamaged):
            raise StoreDamaged(f"{self._index} is not what this box wrote.") from None

    def _write_index(self, files: dict[str, ModelFile]) -> None:
        models = [_entry(file) for file in files.values()]
        document = {"signature": self._keyring.sign(_canonical(models)).hex(), "models": models}
        temporary = self._index.with_suffix(".new")
        with open(temporary, "w") as target:
            json.dump(document, target, indent=1)
            target.flush()
            os.fsync(target.fileno())
        temporary.replace(self._index)
        _flush_directory(self._index.parent)
        self._files = files

    def _sweep(self) -> None:
        """Remove what a crash left: copies under way, and blobs renamed before the index named them."""
        kept = {file.sha256 for file in self._files.values()}
        indexed = self._index.exists()  # without one, blobs are what a restored index may name
        for path in self._blobs.iterdir():
            if path.name.startswith(TEMPORARY) or (indexed and path.name not in kept):
                path.unlink()


def _judge(file: BinaryIO) -> tuple[gguf.Header, architectures.Shape]:
    file.seek(0)
    header = gguf.parse(file)
    return header, architectures.describe(header)


def _copy(source: BinaryIO, target: BinaryIO, report: Report) -> str:
    """Copy from the start; the sha256 of what was written."""
    digest, done, total = hashlib.sha256(), 0, os.fstat(source.fileno()).st_size
    source.seek(0)
    report(0, total)
    while chunk := _read(source):
        target.write(chunk)
        digest.update(chunk)
        done += len(chunk)
        report(done, total)
    target.flush()
    return digest.hexdigest()


def _read(source: BinaryIO) -> bytes:
    try:
        return source.read(CHUNK_BYTES)
    except OSError as error:
        raise ModelDamaged(f"The file cannot be read to its end: {error.strerror}.") from None


def _stamp(file: BinaryIO) -> Stamp:
    found = os.fstat(file.fileno())
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def slug(text: str) -> str:
    """Text as a resource name: small letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:MAX_NAME_CHARACTERS].strip("-.")


def _entry(file: ModelFile) -> dict[str, Any]:
    entry = asdict(file) | {"kind": file.kind.value, "create_time": file.create_time and file.create_time.isoformat()}
    del entry["path"]
    return entry


def _from_entry(entry: dict[str, Any], blobs: Path) -> ModelFile:
    kind, time = ModelKind(entry["kind"]), datetime.fromisoformat(entry["create_time"])
    return ModelFile(**entry | {"kind": kind, "create_time": time, "path": str(blobs / entry["sha256"])})


def _canonical(models: object) -> bytes:
    """What is signed: bound to this index, so that no other thing that this box signs can stand in for it."""
    return b"model index 1\n" + json.dumps(models, sort_keys=True, separators=(",", ":")).encode()


def _flush_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
