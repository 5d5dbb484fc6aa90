"""The process of one imported ONNX model: `python -m appliance.infer.onnx_worker`, asked as `encoders.py` says.

onnxruntime reads bytes here that may be hostile, so first the process gives up what it does not need: every file, the
network, signals to others, more memory than was planned. It dies with its parent and leaves no core dump. As the
composition root of its process it alone, of infer/, knows the sandbox.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.errors import ApplianceError, ModelDamaged
from appliance.infer import child
from appliance.infer.onnx import ImportedEmbedder, OnnxReranker
from appliance.sandbox import lockdown
from appliance.types import Floats, ModelKind

Answer = Callable[[dict[str, Any]], tuple[Floats, int]]


def main() -> None:
    """Answer until stdin ends. Exits 1 after saying why on stdout; always by os._exit."""
    parent = os.getppid()
    report = child.take_stdout()
    child.harden(parent)
    told = json.loads(sys.stdin.buffer.readline())
    try:
        width, answer = _load(told)
    except ApplianceError as error:
        child.say(report, _said(error))
        os._exit(1)
    child.say(report, {"width": width})
    for line in sys.stdin.buffer:
        _reply(report, answer, json.loads(line))
    os._exit(0)


def _load(told: dict[str, Any]) -> tuple[int, Answer]:
    """How long a row of the answers is, and what makes them. Raises SandboxUnavailable, ModelDamaged, ModelUnsupported.

    The files are read before the walls go up, and parsed behind them.
    """
    model, tokenizer = Path(told["model"]).read_bytes(), Path(told["tokenizer"]).read_bytes()
    _give_up(told["memory_bytes"])
    if told["kind"] == ModelKind.EMBEDDING.value:
        embedder = ImportedEmbedder(model, tokenizer, told["threads"])
        return embedder.dimension, lambda asked: embedder.embed(asked["texts"])
    reranker = OnnxReranker(model, tokenizer, told["threads"])

    def score(asked: dict[str, Any]) -> tuple[Floats, int]:
        scores, tokens = reranker.score(asked["query"], asked["texts"])
        return scores.reshape(-1, 1), tokens

    return 1, score


def _give_up(memory_bytes: int) -> None:
    rights = lockdown.check()
    lockdown.leave_with_parent()
    lockdown.landlock(rights)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _reply(report: int, answer: Answer, asked: dict[str, Any]) -> None:
    try:
        rows, tokens = answer(asked)
    except Exception as error:  # noqa: BLE001  onnxruntime's have no base in common, and may quote the input
        child.say(report, _said(ModelDamaged(f"The model fails at this input ({type(error).__name__}).")))
        return
    child.say(report, {"tokens": tokens})
    _write(report, rows.astype("<f4").tobytes())


def _write(report: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(report, left) :]


def _said(error: ApplianceError) -> dict[str, str]:
    return {"reason": error.reason, "message": str(error)[:1000]}


if __name__ == "__main__":
    main()
