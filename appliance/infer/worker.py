"""The engine worker, a process a model: `python -m appliance.infer.worker`, spoken to as `protocol.py` says.

It proves its whole path on the starter model, loads its own, and serves appliance.engine.v1 until it is told to end. It
dies with its parent, leaves no core dump, and listens on a socket that only its user can open. As the composition root
of its process it alone, of infer/, knows the vault: it makes the cipher of the prefixes on disk.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import structlog

from appliance.errors import ApplianceError, SelfTestFailed
from appliance.gen.engine.v1 import engine_pb2 as pb
from appliance.gen.engine.v1 import engine_pb2_grpc as pb_grpc
from appliance.infer import child, llama, paged, protocol
from appliance.infer.engine import Deliver, Engine, Piece
from appliance.infer.pages import PAGE_TOKENS
from appliance.infer.speculate import DraftModel
from appliance.infer.tiers import DiskTier, Tiers
from appliance.types import Finish, Generation, Sampling, Text
from appliance.vault.envelope import AesGcm

log = structlog.get_logger()
GRACE_SECONDS = 0.1  # without any, gRPC tells the other side, and its log, of an error
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def main() -> None:
    """Run until SIGTERM, which keeps what is warm, or a kill.

    Exits EXIT_LOAD_FAILED or EXIT_SELF_TEST_FAILED after saying why on stdout. Always by os._exit: finalizers of native
    libraries have nothing to save.
    """
    parent = os.getppid()
    report = child.take_stdout()
    child.harden(parent)
    spec = protocol.LaunchSpec.from_json(sys.stdin.readline())
    _log_to_stderr(spec.log_level)
    try:
        llama.init()
        attention = _attention(spec.attention, spec.products)
        if spec.self_test:
            run_self_test(spec.self_test, _threads(spec.threads), attention)
        model = llama.Model(spec.model_path)
        Path(spec.socket_path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(spec.socket_path).unlink(missing_ok=True)
        asyncio.run(_serve(spec, model, attention, report))
        os._exit(0)
    except ApplianceError as error:
        child.say(report, {"state": "failed", "reason": error.reason, "message": str(error)})
        os._exit(protocol.EXIT_SELF_TEST_FAILED if isinstance(error, SelfTestFailed) else protocol.EXIT_LOAD_FAILED)


def run_self_test(test: protocol.SelfTest, threads: int, attention: str = "") -> None:
    """Known prompt, known label, through the very engine that will serve. Raises SelfTestFailed."""
    pieces: list[Piece] = []
    try:
        model = llama.Model(test.model_path)
    except ApplianceError as error:
        raise SelfTestFailed(f"The self-test's model cannot be loaded: {error}") from None

    def post(made: list[tuple[Deliver, Piece]]) -> None:
        pieces.extend(piece for _, piece in made)

    engine = Engine(
        model, cells=2048, sequences=1, batch_tokens=512, queue=1, threads=threads, post=post, attention=attention
    )
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
        stats = self._engine.stats
        model = self._engine.model
        return pb.DescribeResponse(
            architecture=model.architecture,
            parameters=model.parameters,
            context_tokens=self._engine.cells,
            vocabulary_tokens=model.vocabulary.size,
            control_tokens=model.vocabulary.control_tokens,
            running=stats.running,
            waiting=stats.waiting,
            kv_cells_used=stats.pages_used * PAGE_TOKENS,
            kv_cells_total=self._engine.cells,
        )

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:  # noqa: N802
        outbox = Outbox()
        generation = protocol.generation_from_pb(request)
        submission = asyncio.ensure_future(asyncio.to_thread(self._engine.submit, generation, outbox.put))
        try:
            await asyncio.shield(submission)
            while True:
                for piece in await outbox.take():
                    if isinstance(piece, ApplianceError):
                        raise piece
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


class Outbox:
    """What a call's reader has not taken yet: at most one text and one end, however slow it is. On the event loop."""

    def __init__(self) -> None:
        self._texts: list[Text] = []
        self._last: Finish | ApplianceError | None = None
        self._filled = asyncio.Event()

    def put(self, piece: Piece) -> None:
        if isinstance(piece, Text):
            self._texts.append(piece)
            if len(self._texts) > 64:
                self._texts = [_joined(self._texts)]
        else:
            self._last = piece
        self._filled.set()

    async def take(self) -> list[Piece]:
        """All that is there, the texts as one; waits until there is something."""
        await self._filled.wait()
        self._filled.clear()
        pieces: list[Piece] = [_joined(self._texts)] if self._texts else []
        self._texts.clear()
        return [*pieces, self._last] if self._last is not None else pieces


def _joined(texts: Sequence[Text]) -> Text:
    return Text("".join(text.text for text in texts), tuple(choice for text in texts for choice in text.choices))


async def _serve(spec: protocol.LaunchSpec, model: llama.Model, attention: str, report: int) -> None:
    loop = asyncio.get_running_loop()
    engine = Engine(
        model,
        cells=spec.context_tokens,
        sequences=spec.sequences,
        batch_tokens=spec.batch_tokens,
        queue=spec.queue,
        threads=_threads(spec.threads),
        post=lambda pieces: _post(loop, pieces),
        kv_type=spec.kv_type,
        identity=_identity(spec, attention),
        tiers=_tiers(spec, attention),
        attention=attention,
        speculate_below_streams=spec.speculate_below_streams,
        draft_model=_draft_model(spec, model),
        prefill_beside_streams=spec.prefill_beside_streams,
    )
    server = grpc.aio.server(options=protocol.CHANNEL_OPTIONS)
    pb_grpc.add_EngineServiceServicer_to_server(Service(engine), server)
    server.add_insecure_port(f"unix:{spec.socket_path}")
    await server.start()
    os.chmod(spec.socket_path, 0o600)
    engine.start()
    terminated = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, terminated.set)
    child.say(report, {"state": "ready"})
    await terminated.wait()
    await server.stop(GRACE_SECONDS)
    await asyncio.to_thread(engine.close)  # what is warm goes to disk


def _identity(spec: protocol.LaunchSpec, attention: str) -> bytes:
    """Of the model and of all that its cache's values and their form depend on: pages of another are of no use.

    The context's size is one: models whose positions are scaled (LongRoPE) choose the factors by it.
    """
    kernel = "none" if spec.attention == "none" else attention.partition(":")[0]
    return f"{spec.model_sha256} {spec.kv_type} {spec.context_tokens} {kernel} {llama.VERSION}".encode()


def _draft_model(spec: protocol.LaunchSpec, target: llama.Model) -> DraftModel | None:
    """The model that drafts, if one is to; where it cannot, that is logged, and prompts are looked up instead."""
    if not spec.draft_model_path or not spec.speculate_below_streams:
        return None
    draft = None
    try:
        draft = llama.Model(spec.draft_model_path)
        return DraftModel(
            draft,
            target.vocabulary,
            cells=spec.context_tokens,
            sequences=spec.speculate_below_streams,
            batch_tokens=spec.batch_tokens,
            threads=_threads(spec.threads),
        )
    except ApplianceError as error:
        log.warning("draft.refused", reason=error.reason, why=str(error))
        if draft is not None:
            draft.close()
        return None


def _tiers(spec: protocol.LaunchSpec, attention: str) -> Tiers | None:
    disk = None
    if spec.disk_cache_bytes and spec.disk_cache_directory and spec.model_sha256:
        cipher = AesGcm(bytes.fromhex(spec.disk_cache_key))
        disk = DiskTier(Path(spec.disk_cache_directory), cipher, _identity(spec, attention), spec.disk_cache_bytes)
    return Tiers(spec.host_cache_bytes, disk) if spec.host_cache_bytes or disk is not None else None


def _post(loop: asyncio.AbstractEventLoop, pieces: list[tuple[Deliver, Piece]]) -> None:
    def deliver() -> None:
        for to, piece in pieces:
            to(piece)

    loop.call_soon_threadsafe(deliver)


def _attention(asked: str, products: bool) -> str:
    """Which kernels compute attention from here on, and why it is the stock ones where it is."""
    if asked == "stock":
        return f"{paged.STOCK}: as configured"
    attention = paged.register(products)
    if asked == "none":
        paged.leave_out(True)
    return attention


def _threads(asked: int) -> int:
    """Threads to compute with: as asked, or one a core less one reserved."""
    return asked or max(1, len(os.sched_getaffinity(0)) - 1)


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
