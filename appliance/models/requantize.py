"""A stored model in fewer bits, as a job: it gets a name of its own, and comes in through the door of any import."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from appliance.errors import DiskFull, InvalidArgument
from appliance.models import gguf
from appliance.models.imports import take_in
from appliance.models.store import SPARE_BYTES, ModelStore, slug
from appliance.ports import Jobs, Progress, Quantizer
from appliance.types import Job, ModelFile, ModelKind

KIND = "quantize-model"
# bytes a weight at most, by what it is stored as; Q4_K_M keeps some matrices in more bits
BYTES_A_WEIGHT = {"Q8_0": 34 / 32, "Q4_K_M": 0.85}
WHOLE = {0, 1, 30}  # F32, F16, BF16: what has not lost bits yet
HEADER_BYTES = 64 << 20


class _Quiet:
    """ports.Progress of the last step, which is short: the job counts tensors, not bytes."""

    def update(self, done: int, total: int = 0, note: str = "") -> None:
        """Nothing is told."""


class Requantizer:
    """Starts the jobs. Belongs to one event loop."""

    def __init__(self, store: ModelStore, jobs: Jobs, quantizer: Quantizer, scratch: Path) -> None:
        """scratch: a folder on the store's disk for what is not yet a model; emptied here."""
        self._store, self._jobs, self._quantizer, self._scratch = store, jobs, quantizer, scratch
        self._one_at_a_time = asyncio.Lock()  # each takes all threads, and the space that the next would count on
        shutil.rmtree(scratch, ignore_errors=True)  # what a crash left
        scratch.mkdir(parents=True, mode=0o700)

    def start(self, model: str, storage: str, name: str = "") -> Job:
        """Write the model anew as `storage` and import it as `name`, by default the model's with the storage's.

        Raises NotFound, InvalidArgument, DiskFull; the job ModelDamaged, ModelMissing and WorkerDied too.
        """
        file = self._store.get(model)
        if storage not in BYTES_A_WEIGHT:
            raise InvalidArgument.of("type", f"must be one of {', '.join(BYTES_A_WEIGHT)}.")
        if file.kind is not ModelKind.CHAT:
            raise InvalidArgument.of(
                "name", f"models/{model} is a {file.kind.value} model; only chat models are quantized."
            )
        if name and slug(name) != name:
            raise InvalidArgument.of("new_name", "must be small letters, digits, dots and dashes.")
        self._require_space(file, storage)

        async def work(progress: Progress) -> None:
            async with self._one_at_a_time:
                self._require_space(file, storage)
                await self._run(file, storage, name or f"{file.name}-{storage.lower()}", progress)

        return self._jobs.start(KIND, f"models/{model}", "tensors", work)

    async def _run(self, file: ModelFile, storage: str, name: str, progress: Progress) -> None:
        await asyncio.to_thread(self._store.verify, file)
        await asyncio.to_thread(_require_whole, file)
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            target = Path(folder) / f"{name}.gguf"
            tensors = 0

            def report(done: int, total: int) -> None:
                nonlocal tensors
                tensors = total
                progress.update(done - 1, total, f"to {storage}")  # the one it is at is not done

            await self._quantizer.quantize(Path(file.path), target, storage, report)
            progress.update(tensors, tensors, "importing")
            made = await take_in(self._store, target, _Quiet(), name=name)
        progress.update(tensors, tensors, f"models/{made.name}")

    def _require_space(self, file: ModelFile, storage: str) -> None:
        """For the file that is written and its copy in the store."""
        needed = 2 * (int(file.parameters * BYTES_A_WEIGHT[storage]) + HEADER_BYTES) + SPARE_BYTES
        free = shutil.disk_usage(self._scratch).free
        if needed > free:
            raise DiskFull(
                f"Quantizing models/{file.name} needs {needed >> 20} MiB; the disk has {free >> 20} MiB free."
            )


def _require_whole(file: ModelFile) -> None:
    """Raises InvalidArgument where weights have lost bits already: what is made of them would be worse than it says."""
    header = gguf.read(Path(file.path))
    matrices = {tensor.storage for tensor in header.tensors if len(tensor.dimensions) > 1}
    if not matrices <= WHOLE:
        raise InvalidArgument.of(
            "name", f"models/{file.name} is quantized already; start from its f16, bf16 or f32 form."
        )
