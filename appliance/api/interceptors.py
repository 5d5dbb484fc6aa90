"""What every call passes: a caller with a name and a right, a deadline, one shape of error, one line of log."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2, error_details_pb2, status_pb2

from appliance.access import roles
from appliance.errors import ApplianceError, Busy, DeadlineRequired, DocumentRefused, Draining
from appliance.types import Role

DOMAIN = "appliance"
HEALTH_PREFIX = "/grpc.health.v1.Health/"  # load balancers watch it without a deadline
RUN_THE_BOX = frozenset({Role.ADMIN, Role.OPERATOR})
log = structlog.get_logger()

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Gate(grpc.aio.ServerInterceptor):
    """Admits calls, and turns what a service raises into a google.rpc.Status."""

    def __init__(self) -> None:
        self._draining = False
        self._watchers: set[asyncio.Task[object]] = set()

    def drain(self) -> None:
        """Refuse new calls from here on, and end the watches, which never end by themselves."""
        self._draining = True
        for task in self._watchers:
            task.cancel()

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(HEALTH_PREFIX):
            return handler
        serializers = handler.request_deserializer, handler.response_serializer
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, handler), *serializers)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(self._unary(method, handler.stream_unary), *serializers)
        return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary), *serializers)

    def _unary(self, method: str, handle: Any) -> Callable[[Any, Context], Awaitable[Any]]:
        async def call(request: Any, context: Context) -> Any:  # of an upload: its pieces
            async with self._admitted(method, context):
                return await handle(request, context)

        return call

    def _stream(self, method: str, handler: Any) -> Callable[[Any, Context], AsyncIterator[Any]]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._admitted(method, context), aclosing(handler.unary_stream(request, context)) as pieces:
                with self._watching(method):
                    async for piece in pieces:
                        yield piece

        return call

    @contextmanager
    def _watching(self, method: str) -> Iterator[None]:
        """What makes `drain` end the call where its method is a watch."""
        task = asyncio.current_task()
        if task is None or "/Watch" not in method:
            yield
            return
        self._watchers.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._draining:
                raise
            raise Draining("The daemon is stopping.") from None
        finally:
            self._watchers.discard(task)

    @asynccontextmanager
    async def _admitted(self, method: str, context: Context) -> AsyncIterator[None]:
        started, outcome, who, runs_the_box = time.monotonic(), "CANCELLED", "", False
        try:
            principal = roles.principal(context.auth_context())  # without its groups: they open documents, no method
            who, runs_the_box = str(principal), principal.role in RUN_THE_BOX
            if self._draining:
                raise Draining("The daemon is stopping.")
            if context.time_remaining() is None:
                raise DeadlineRequired(f"{method} was called without a deadline.")
            roles.allow(principal, method)
            yield
            outcome = "OK"
        except ApplianceError as error:
            outcome = error.reason
            await _abort(context, error, runs_the_box)
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            outcome = ApplianceError.reason
            log.exception("call.crashed", method=method)
            await _abort(context, ApplianceError(f"The daemon failed inside: {type(error).__name__}."))
        finally:
            elapsed_ms = round((time.monotonic() - started) * 1000, 1)
            log.info("call", method=method, who=who, outcome=outcome, milliseconds=elapsed_ms)


async def _abort(context: Context, error: ApplianceError, runs_the_box: bool = False) -> None:
    """End the call with the error as google.rpc.Status (AIP-193)."""
    status = to_status(error, runs_the_box)
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(error.code, status.message, trailing_metadata=details)


def to_status(error: ApplianceError, runs_the_box: bool = False) -> status_pb2.Status:
    """Code and message, ErrorInfo with reason and remedy, RetryInfo where trying again will help."""
    message, remedy = error.told(runs_the_box)
    metadata = {"remedy": remedy, "exit_code": str(error.exit_code)}
    if isinstance(error, DocumentRefused):
        metadata["file_reason"] = error.file_reason
    details = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)]
    packed = [_pack(detail) for detail in details]
    if isinstance(error, Busy):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after_seconds * 1000))
        packed.append(_pack(retry))
    return status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=message, details=packed)


def _pack(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
