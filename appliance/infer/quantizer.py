"""Quantizing from the daemon's side: one process a model, heard line by line.

stdin    {"source": path, "target": path, "storage": "Q8_0", "threads": 2}
stdout   {"done": 3, "total": 21} …, and where it fails {"reason": …, "message": …}
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ApplianceError, WorkerDied
from appliance.infer.protocol import make_error
from appliance.infer.supervisor import how


@dataclass(frozen=True, slots=True)
class WorkerQuantizer:
    """`ports.Quantizer` by llama.cpp. threads: to compute with."""

    threads: int = 1

    async def quantize(self, source: Path, target: Path, storage: str, report: Callable[[int, int], None]) -> None:
        """Raises ModelDamaged, DiskFull, WorkerDied. Whatever becomes of it, the process has ended when this has."""
        told = {"source": str(source), "target": str(target), "storage": storage, "threads": self.threads}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "appliance.infer.quantize"), stdin=PIPE, stdout=PIPE, start_new_session=True
        )
        try:
            error = await _listen(process, json.dumps(told).encode() + b"\n", report)
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            await asyncio.shield(process.wait())
        if error:
            raise error
        if code != 0:
            raise WorkerDied(f"The process that quantized the model {how(code)}.")


async def _listen(process: Process, told: bytes, report: Callable[[int, int], None]) -> ApplianceError | None:
    """Pass on what it says until it says no more; the error that it told of."""
    assert process.stdin
    assert process.stdout
    error = None
    try:
        process.stdin.write(told)
        await process.stdin.drain()
    except ConnectionError:  # it died: its exit code says so
        return None
    async for line in process.stdout:
        said = json.loads(line)
        if "reason" in said:
            error = make_error(said["reason"], said["message"])
        else:
            report(said["done"], said["total"])
    return error
