"""The engine worker, a process a model: `python -m appliance.infer.worker`, spoken to as `protocol.py` says.

It proves its whole path on the starter model, loads its own, and serves appliance.engine.v1 until it is killed. It dies
with its parent, leaves no core dump, and listens on a socket that only its user can open.
"""

import asyncio
import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import structlog

from appliance.errors import ApplianceError, SelfTestFailed
from appliance.gen.engine.v1 import engine_pb2 as pb
from appliance.gen.engine.v1 import engine_pb2_grpc as pb_grpc
from appliance.infer import llama, protocol
from appliance.infer.engine import Deliver, Engine, Piece
from appliance.types import Finish, Generation, Sampling, Text

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def main() -> None:
    """Run until killed. Exits EXIT_LOAD_FAILED or EXIT_SELF_TEST_FAILED after saying why on stdout."""
    parent = os.getppid()
    report = _take_stdout()
    _harden(parent)
    spec = protocol.LaunchSpec.from_json(sys.stdin.readline())
    _log_to_stderr(spec.log_level)
    try:
        llama.init()
        if spec.self_test:
            run_self_test(spec.self_test, _threads(spec.threads))
        model = llama.Model(spec.model_path)
        Path(spec.socket_path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(spec.socket_path).unlink(missing_ok=True)
        asyncio.run(_serve(spec, model, report))
    except ApplianceError as error:
        _say(report, {"state": "failed", "reason": error.reason, "message": str(error)})
        # not sys.exit: finalizers of native libraries have nothing to save here
        os._exit(protocol.EXIT_SELF_TEST_FAILED if isinstance(error, SelfTestFailed) else protocol.EXIT_LOAD_FAILED)


def run_self_test(test: protocol.SelfTest, threads: int) -> None:
    """Known prompt, known label, through the very engine that will serve. Raises SelfTestFailed."""
    pieces: list[Piece] = []
    try:
        model = llama.Model(test.model_path)
    except ApplianceError as error:
        raise SelfTestFailed(f"The self-test's model cannot be loaded: {error}") from None

    def post(made: list[tuple[Deliver, Piece]]) -> None:
        pieces.extend(piece for _, piece in made)

    engine = Engine(model, cells=2048, sequences=1, batch_tokens=512, queue=1, threads=threads, post=post)
    try:
        engine.submit(Generation(test.prompt, Sampling(temperature=0.0), test.labels), pieces.append)
        engine.run_until_idle()
    except ApplianceError as error:
        raise SelfTestFailed(f"The self-test's prompt was refused: {error}") from None
    finally:
        engine.close()
        model.close()
    answer = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    if answer != test.expected:
        raise SelfTestFailed(f"The engine's self-test answered {answer!r} where {test.expected!r} is right.")


class Service(pb_grpc.EngineServiceServicer):
    """appliance.engine.v1 over one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:  # noqa: N802
        running, waiting, cells = self._engine.load
        model = self._engine.model
        return pb.DescribeResponse(
            architecture=model.architecture,
            parameters=model.parameters,
            context_tokens=self._engine.cells,
            vocabulary_tokens=model.vocabulary.size,
            control_tokens=model.vocabulary.control_tokens,
            running=running,
            waiting=waiting,
            kv_cells_used=cells,
            kv_cells_total=self._engine.cells,
        )

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:  # noqa: N802
        pieces: asyncio.Queue[Piece] = asyncio.Queue()
        generation = protocol.generation_from_pb(request)
        submission = asyncio.ensure_future(asyncio.to_thread(self._engine.submit, generation, pieces.put_nowait))
        try:
            await asyncio.shield(submission)
            while True:
                for piece in _merged(await pieces.get(), pieces):
                    yield protocol.piece_to_pb(piece)
                    if isinstance(piece, Finish):
                        return
        except ApplianceError as error:
            await context.abort(error.code, str(error), protocol.error_to_metadata(error))
        finally:
            submission.add_done_callback(self._release)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:  # noqa: N802
        segments = protocol.segments_from_pb(request.segments)
        try:
            return pb.TokenizeResponse(ids=await asyncio.to_thread(self._engine.encode, segments))
        except ApplianceError as error:
            await context.abort(error.code, str(error), protocol.error_to_metadata(error))
            raise

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        while True:
            yield protocol.stats_to_pb(self._engine.stats)
            await asyncio.sleep(request.period_seconds or 1.0)

    def _release(self, submission: "asyncio.Future[int]") -> None:
        """The call is over, however it ended: free what it may still hold, also where it left while being tokenized."""
        if not submission.cancelled() and not submission.exception():
            self._engine.cancel(submission.result())


async def _serve(spec: protocol.LaunchSpec, model: llama.Model, report: int) -> None:
    loop = asyncio.get_running_loop()
    engine = Engine(
        model,
        cells=spec.context_tokens,
        sequences=spec.sequences,
        batch_tokens=spec.batch_tokens,
        queue=spec.queue,
        threads=_threads(spec.threads),
        post=lambda pieces: _post(loop, pieces),
    )
    server = grpc.aio.server(options=protocol.CHANNEL_OPTIONS)
    pb_grpc.add_EngineServiceServicer_to_server(Service(engine), server)
    server.add_insecure_port(f"unix:{spec.socket_path}")
    await server.start()
    os.chmod(spec.socket_path, 0o600)
    engine.start()
    _say(report, {"state": "ready"})
    await server.wait_for_termination()


def _merged(first: Piece, rest: "asyncio.Queue[Piece]") -> list[Piece]:
    """What is there already in one message of text at most: a slow reader gets fewer, larger pieces."""
    text, last = "", first
    while isinstance(last, Text):
        text += last.text
        if rest.empty():
            return [Text(text)]
        last = rest.get_nowait()
    return [Text(text), last] if text else [last]


def _post(loop: asyncio.AbstractEventLoop, pieces: list[tuple[Deliver, Piece]]) -> None:
    def deliver() -> None:
        for to, piece in pieces:
            to(piece)

    loop.call_soon_threadsafe(deliver)


def _threads(asked: int) -> int:
    """Threads to compute with: as asked, or one a core less one reserved."""
    return asked or max(1, len(os.sched_getaffinity(0)) - 1)


def _take_stdout() -> int:
    """Keep stdout for our one line: whatever native code prints goes to stderr."""
    report = os.dup(1)
    os.dup2(2, 1)
    return report


def _say(report: int, line: dict[str, str]) -> None:
    os.write(report, json.dumps(line).encode() + b"\n")


def _harden(parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    if os.getppid() != parent:  # it died before the prctl
        os._exit(0)


def _log_to_stderr(level: str) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    main()
