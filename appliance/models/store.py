"""The content-addressed store of model files.

    <root>/blobs/<sha256>   the bytes, read-only; written under another name, flushed, then renamed; of an ONNX model a
                            folder of its two files, and the hash over theirs
    <root>/index.json       {"signature": hex, "models": [...]}: this box's signature over what it took in, and as what
    <root>/pins.json        {"signature": hex, "pinned": [name, ...]}

A file enters by being copied, because what lies in a folder that others write to may change after it was looked at:
the copy is hashed while it is written, and it is the copy whose header is judged. A crash leaves either the old index
or the new one; what it left half done is removed when the store is opened.
"""

import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any, BinaryIO

import structlog

from appliance.errors import (
    DiskFull,
    InvalidArgument,
    ModelDamaged,
    ModelInUse,
    ModelMissing,
    ModelUnsupported,
    NotFound,
)
from appliance.models import gguf
from appliance.models.judge import judge
from appliance.models.signed import SignedFile, flush_directory
from appliance.ports import Keyring
from appliance.types import ModelFile, ModelKind

CHUNK_BYTES = 4 << 20
SPARE_BYTES = 256 << 20  # a model must not take the disk's last bytes from the knowledge base
MAX_NAME_CHARACTERS = 64
TEMPORARY = ".incoming-"
ONNX_PARTS = ("model.onnx", "tokenizer.json")
ONNX_KINDS = {ModelKind.EMBEDDING, ModelKind.RERANKER}
log = structlog.get_logger()

Report = Callable[[int, int], None]
Stamp = tuple[int, int, int, int, int]


class ModelStore:
    """Fulfils `ports.ModelFiles`. Safe to call from many threads; all but `list` and `get` may block on the disk."""

    def __init__(
        self,
        root: Path,
        keyring: Keyring,
        built_in: Sequence[ModelFile] = (),
        taken: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Open or begin the store at `root`. Raises StoreDamaged.

        built_in: models that come with the box. taken: whether a name already leads to something else.
        """
        self._blobs = root / "blobs"
        self._index = SignedFile(root / "index.json", keyring, "models", "model index 1")
        self._pins = SignedFile(root / "pins.json", keyring, "pinned", "model pins 1")
        self._built_in = {file.name: file for file in built_in}
        self._taken = taken
        self._lock = threading.Lock()
        self._verified: dict[str, tuple[Stamp, ...]] = {}
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._files: dict[str, ModelFile] = {file.name: file for file in self._read_index()}
        self._pinned: frozenset[str] = frozenset(self._pins.read() or ())
        self._sweep()

    def list(self) -> tuple[ModelFile, ...]:
        return (*self._built_in.values(), *self._files.values())

    def get(self, name: str) -> ModelFile:
        try:
            return self._built_in.get(name) or self._files[name]
        except KeyError:
            raise NotFound(f"There is no model models/{name}.") from None

    def pinned(self, name: str) -> bool:
        return name in self._pinned

    def pin(self, name: str, pinned: bool = True) -> None:
        """Keep a model loaded once it is, whatever else needs the memory; or no longer. Raises NotFound."""
        with self._lock:
            self.get(name)
            self._write_pins(self._pinned | {name} if pinned else self._pinned - {name})

    def add(
        self,
        path: Path,
        report: Report = lambda done, total: None,
        *,
        base: str = "",
        name: str = "",
        kind: ModelKind | None = None,
    ) -> ModelFile:
        """Take a GGUF into the store, a model or an adapter; bytes that are there already give the model they are.

        `report(done_bytes, total_bytes)` is called for each chunk; what it raises ends the import without a trace.
        base: of an adapter, else the one model that it fits. name: else the header's. kind: EMBEDDING or RERANKER,
        where the path is a folder with an ONNX model and its tokenizer.json; these are hashed and not parsed. Raises
        ModelMissing, ModelDamaged, ModelUnsupported, AdapterMismatch, NotFound (the base), DiskFull.
        """
        if kind is not None:
            return self._add_onnx(path, kind, report, name)
        with gguf.open_regular(path) as source:
            self._judge(source, base)
            expected = os.fstat(source.fileno()).st_size
            self._require_space(expected)
            with self._incoming() as (target, temporary):
                sha256 = _copy(source, target, expected, report)
                header, judged = self._judge(target, base)
                size_bytes = target.seek(0, os.SEEK_END)
                target.flush()
                os.fsync(target.fileno())
                return self._keep(
                    temporary,
                    replace(
                        judged,
                        name=name or slug(header.name) or slug(path.stem) or "model",
                        path=str(self._blobs / sha256),
                        sha256=sha256,
                        size_bytes=size_bytes,
                        source=gguf.printable(path.name),
                        create_time=datetime.now(UTC),
                    ),
                )

    def verify(self, file: ModelFile) -> None:
        """Hash the file again, unless this process did and inode, size, mtime and ctime are what they were then.

        So a second load is quick, and a file that was written to, replaced or cut is found. What this cannot see until
        the next start: bits that rot on the disk after the hash, and a write by one who sets the kernel's clock back.
        Raises ModelMissing, ModelDamaged.
        """
        with ExitStack() as opened:
            blobs = [opened.enter_context(gguf.open_regular(path)) for path in _parts(file)]
            stamps = tuple(map(_stamp, blobs))
            if self._verified.get(file.sha256) == stamps:
                return
            digest = _digest([hashlib.file_digest(blob, "sha256").digest() for blob in blobs])
            if digest != file.sha256 or tuple(map(_stamp, blobs)) != stamps:
                raise ModelDamaged(f"The file of models/{file.name} is not what was imported: its sha256 differs.")
            self._verified[file.sha256] = stamps

    def delete(self, name: str) -> None:
        """Forget a model and remove its file; a worker that has it loaded keeps its mapping.

        Raises NotFound; InvalidArgument for a model that comes with the box; ModelInUse where adapters need it.
        """
        if name in self._built_in:
            raise InvalidArgument.of("name", f"models/{name} comes with the box and cannot be deleted.")
        with self._lock:
            file = self.get(name)
            if needing := sorted(other.name for other in self._files.values() if other.base == name):
                raise ModelInUse(f"models/{name} is the base of the adapters {', '.join(needing)}.")
            left = {key: value for key, value in self._files.items() if key != name}
            self._write_index(left)
            if name in self._pinned:
                self._write_pins(self._pinned - {name})
            if all(other.sha256 != file.sha256 for other in left.values()):
                _remove(Path(file.path))
            self._verified.pop(file.sha256, None)

    def _add_onnx(self, folder: Path, kind: ModelKind, report: Report, name: str) -> ModelFile:
        with ExitStack() as opened:
            sources = [opened.enter_context(gguf.open_regular(path)) for path in _onnx_parts(folder)]
            sizes = [os.fstat(source.fileno()).st_size for source in sources]
            self._require_space(sum(sizes))
            temporary = self._blobs / f"{TEMPORARY}{secrets.token_hex(8)}"
            opened.callback(_remove, temporary)
            with _disk_full_named():
                temporary.mkdir(mode=0o700)
                digests: list[bytes] = []
                done = 0

                def tell(at: int, _: int) -> None:
                    report(done + at, sum(sizes))

                for source, size, part in zip(sources, sizes, ONNX_PARTS, strict=True):
                    with open(temporary / part, "x+b") as target:
                        digests.append(bytes.fromhex(_copy(source, target, size, tell)))
                        done += target.tell()
                        os.fsync(target.fileno())
                    (temporary / part).chmod(0o400)
                flush_directory(temporary)
            sha256 = _digest(digests)
            file = ModelFile(
                name=name or slug(folder.name) or "model",
                kind=kind,
                path=str(self._blobs / sha256),
                architecture="onnx",
                sha256=sha256,
                size_bytes=done,
                source=gguf.printable(folder.name),
                create_time=datetime.now(UTC),
            )
            if Path(file.path).is_dir():  # a rename takes the place of an empty folder only
                _remove(Path(file.path))
            return self._keep(temporary, file)

    def _judge(self, file: BinaryIO, base: str) -> tuple[gguf.Header, ModelFile]:
        file.seek(0)
        header = gguf.parse(file)
        return header, judge(header, base, [known for known in self._files.values() if known.kind is ModelKind.CHAT])

    def _keep(self, temporary: Path, file: ModelFile) -> ModelFile:
        """Name the copy by its hash and list it; the model that has the same bytes where there is one."""
        with self._lock:
            same = [other for other in self._files.values() if other.sha256 == file.sha256]
            known = next((other for other in same if other.base == file.base), None)
            if file.base:
                self.get(file.base)  # it may have been deleted meanwhile
            file = known or replace(file, name=self._free_name(file))
            temporary.chmod(0o700 if temporary.is_dir() else 0o400)
            temporary.rename(file.path)  # also over a blob of that name, which may be damaged: this copy is not
            flush_directory(self._blobs)
            if known is not None:
                return known
            self._write_index({**self._files, file.name: file})
        log.info("model.imported", model=file.name, architecture=file.architecture, scaffold=file.scaffold)
        return file

    def _free_name(self, file: ModelFile) -> str:
        """The name itself; with the start of the hash where another model or an alias has it."""
        if file.name not in self._files and file.name not in self._built_in and not self._taken(file.name):
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
            with _disk_full_named(), open(temporary, "x+b") as target:
                yield target, temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _read_index(self) -> Sequence[ModelFile]:
        try:
            return [_from_entry(entry, self._blobs) for entry in self._index.read() or ()]
        except (ValueError, KeyError, TypeError):
            raise self._index.damaged() from None

    def _write_index(self, files: dict[str, ModelFile]) -> None:
        self._index.write([_entry(file) for file in files.values()])
        self._files = files

    def _write_pins(self, pinned: frozenset[str]) -> None:
        self._pins.write(sorted(pinned))
        self._pinned = pinned

    def _sweep(self) -> None:
        """Remove what a crash left: copies under way, and blobs renamed before the index named them."""
        kept = {file.sha256 for file in self._files.values()}
        indexed = self._index.path.exists()  # without one, blobs are what a restored index may name
        for path in self._blobs.iterdir():
            if path.name.startswith(TEMPORARY) or (indexed and path.name not in kept):
                _remove(path)


@contextmanager
def _disk_full_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (ENOSPC, EDQUOT):
            raise
        raise DiskFull("The disk became full while the model was copied.") from None


def _onnx_parts(folder: Path) -> Sequence[Path]:
    """The model and the tokenizer of a folder. Raises ModelMissing, ModelUnsupported."""
    try:
        models = sorted(name for name in os.listdir(folder) if name.endswith(".onnx"))
    except OSError as error:
        raise ModelMissing(f"The folder {gguf.shown(str(folder), 400)} cannot be read: {error.strerror}.") from None
    if len(models) != 1:
        raise ModelUnsupported(
            f"The folder {gguf.shown(str(folder), 400)} has {len(models)} .onnx files; one is taken."
        )
    return folder / models[0], folder / ONNX_PARTS[1]


def _parts(file: ModelFile) -> Sequence[Path]:
    """The files of a blob, in the order of its hash."""
    blob = Path(file.path)
    return [blob / part for part in ONNX_PARTS] if file.kind in ONNX_KINDS else [blob]


def _digest(digests: Sequence[bytes]) -> str:
    """The hash of one file, or over those of several."""
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


def _copy(source: BinaryIO, target: BinaryIO, total: int, report: Report) -> str:
    """Copy from the start; the sha256 of what was written. Raises ModelDamaged past `total` bytes, the source's."""
    digest, done = hashlib.sha256(), 0
    source.seek(0)
    report(0, total)
    while chunk := _read(source):
        done += len(chunk)
        if done > total:  # there is space for that many
            raise ModelDamaged("The file grew while it was copied.")
        target.write(chunk)
        digest.update(chunk)
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


def _remove(path: Path) -> None:
    """A blob: a file, or the folder of a model of two."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
