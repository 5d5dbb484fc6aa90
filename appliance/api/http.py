"""What every HTTP call passes: an app key with a right, limits, one shape of error, one line of log.

    headers → identity → rights → body → handler → answer, all of it within the call's time

The rights are those of the gRPC method that does the same (`access.roles`), and the key's own scopes.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from grpc import StatusCode
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.access import roles
from appliance.access.apps import AppKeys
from appliance.access.callers import Callers
from appliance.api import requests
from appliance.errors import (
    ApplianceError,
    Broken,
    Busy,
    Cancelled,
    DeadlineExceeded,
    DiskFull,
    Draining,
    Forbidden,
    InvalidArgument,
    KeyRefused,
    QueueFull,
    Refused,
    RequestTooLarge,
    Unauthenticated,
)
from appliance.types import AppKey, AppScope, Principal

CALL_SCOPE = "appliance.call"  # where an ASGI scope holds its Call
SCOPES: Mapping[str, AppScope] = {
    "InferenceService": AppScope.INFERENCE,
    "ModelService": AppScope.INFERENCE,
    "KnowledgeService": AppScope.KNOWLEDGE,
    "TelemetryService": AppScope.METRICS,
}
HTTP_STATUS: Mapping[StatusCode, int] = {  # google.rpc.Code's own mapping
    StatusCode.CANCELLED: 499,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
KEY_REMEDY = "Ask an administrator for an app key that opens this."
log = structlog.get_logger()

Answer = ASGIApp
Shape = Callable[[ApplianceError], Any]
"""An error as the protocol says it: a JSON value."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may take. stall_seconds: how long a client may leave a piece of its answer unread.

    all_bodies_bytes: of all calls together, where a body of up to small_body_bytes doesn't count: a few large ones must
    not keep everyone else out.
    """

    header_bytes: int = 8 << 10
    body_bytes: int = 16 << 20
    all_bodies_bytes: int = 128 << 20
    small_body_bytes: int = 64 << 10
    body_seconds: float = 60.0
    call_seconds: float = 600.0
    stall_seconds: float = 30.0


@dataclass(slots=True, eq=False)
class Call:
    """One call, from its headers to its line of log. A handler may say more exactly what it was, and how it ended."""

    method: str
    who: str = ""
    outcome: str = "OK"
    key: AppKey | None = None
    caller: Principal | None = None
    body: bytes = b""
    path: Mapping[str, str] | None = None
    deadline_seconds: float = 0.0
    names: Mapping[str, str] = field(default_factory=dict)
    """What the caller called our fields: {"max_tokens": "max_output_tokens"}; ".text" is the end of any path."""

    @property
    def principal(self) -> Principal:
        assert self.caller is not None  # a handler is reached with a key only
        return self.caller

    def require(self, method: str) -> None:
        """Let the caller do what a gRPC method does: both its role and its key must open it. Raises Forbidden."""
        assert self.key is not None
        self.method = method
        roles.allow(self.principal, method)
        scope = SCOPES.get(method.split("/")[1].rpartition(".")[2])
        if scope not in self.key.scopes:
            raise Forbidden(f"The app key {self.key.id} has not the scope {scope.value if scope else method}.")

    def require_model(self, model: str) -> str:
        """The model to ask: the one named, or for '' the key's only one, where it has any.

        Raises InvalidArgument; Forbidden for one outside the key.
        """
        assert self.key is not None
        if model and not requests.MODEL.fullmatch(f"models/{model}"):
            raise InvalidArgument.of("model", "must be a name such as 'qwen3'.")
        if self.key.models and model not in self.key.models:
            if not model and len(self.key.models) > 1:
                raise InvalidArgument.of("model", "is missing: the app key opens several.")
            if not model:
                return next(iter(self.key.models))
            raise Forbidden(f"The app key {self.key.id} is not for the model {model}.")
        return model

    def require_collection(self, collection: str) -> str:
        """Raises Forbidden for one outside the key."""
        assert self.key is not None
        if self.key.collections and collection not in self.key.collections:
            raise Forbidden(f"The app key {self.key.id} is not for the collection {collection}.")
        return collection


class Gate:
    """Admits calls. `drain` refuses new ones from then on. Belongs to one event loop."""

    def __init__(self, keys: AppKeys, callers: Callers, limits: Limits = Limits()) -> None:
        self.keys, self.callers, self.limits = keys, callers, limits
        self._draining = False
        self._bodies_bytes = 0  # of large bodies, of all calls that run

    def drain(self) -> None:
        self._draining = True

    def admit(self, headers: Headers, call: Call) -> None:
        """Fill in who calls. Raises KeyRefused, Forbidden, Draining, RequestTooLarge."""
        if sum(len(name) + len(value) for name, value in headers.raw) > self.limits.header_bytes:
            raise RequestTooLarge(f"The headers have more than {self.limits.header_bytes} bytes.")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise KeyRefused("The call came without an app key.")
        call.key = self.keys.authenticate(token.strip())
        call.caller = self.callers.by_key(call.key)
        call.who = f"{call.caller} by key {call.key.id}"
        if self._draining:
            raise Draining("The daemon is stopping.")
        call.require(call.method)

    @contextmanager
    def holding(self) -> Iterator[Callable[[int], None]]:
        """Inside the block a body is held: tell how large it is by now. Raises QueueFull where all are too large."""
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            counted = size if size > self.limits.small_body_bytes else 0
            if self._bodies_bytes + counted - held > self.limits.all_bodies_bytes:
                raise QueueFull("Too many large requests are being read.")
            self._bodies_bytes += counted - held
            held = counted

        try:
            yield grow
        finally:
            self._bodies_bytes -= held


@dataclass(frozen=True)
class Endpoint:
    """One door of the HTTP port, an ASGI application. method: the gRPC method whose right it needs."""

    gate: Gate
    method: str
    handle: Callable[[Call], Awaitable[Answer]]
    shape: Shape

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, call, out = time.monotonic(), Call(self.method), _Out(send, self.gate.limits.stall_seconds)
        try:
            await self._serve(scope, receive, out, call)
            if out.status >= 400 and call.outcome == "OK":
                call.outcome = Refused.reason  # by an application inside, in its own words
        except ApplianceError as error:
            call.outcome = error.reason
            await self._fail(_renamed(error, call.names), scope, out)
        except asyncio.CancelledError:
            call.outcome = Cancelled.reason
            raise
        except Exception as error:
            call.outcome = ApplianceError.reason
            log.exception("call.crashed", method=call.method)
            await self._fail(ApplianceError(f"The daemon failed inside: {type(error).__name__}."), scope, out)
        finally:
            elapsed_ms = round((time.monotonic() - began) * 1000, 1)
            log.info("call", method=call.method, who=call.who, outcome=call.outcome, milliseconds=elapsed_ms)

    async def _serve(self, scope: Scope, receive: Receive, out: "_Out", call: Call) -> None:
        limits = self.gate.limits
        self.gate.admit(Headers(scope=scope), call)
        with self.gate.holding() as grow:
            call.body = await _read_body(receive, limits, grow)
            call.path, call.deadline_seconds = scope.get("path_params", {}), limits.call_seconds
            scope[CALL_SCOPE] = call
            async with _while_there(receive, out, limits.call_seconds) as gone:
                answer = await self.handle(call)
                await answer(scope, _replay(call.body, gone), out)

    async def _fail(self, error: ApplianceError, scope: Scope, out: "_Out") -> None:
        """Tell the error as the answer's status, or where that is out already as the stream's last event."""
        if out.dead or out.finished or (out.started and not out.is_stream):
            return
        if out.started:
            await out.send_event(json.dumps(self.shape(error)))
            return
        await json_answer(self.shape(error), http_status(error), error_headers(error))(scope, _nothing, out)


class EventStream:
    """An answer in pieces, as server-sent events (WHATWG HTML, section 9.2). Nothing is sent before its first piece
    is there, so that what fails before it is told as a status."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        """pieces: whole events, each with the blank line at its end."""
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._pieces) as pieces:  # type: ignore[type-var]
            started = False
            async for piece in pieces:
                if not started:
                    started = True
                    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(data: Any, kind: str = "") -> bytes:
    """One server-sent event whose data is JSON."""
    named = f"event: {kind}\n" if kind else ""
    return f"{named}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def http_status(error: ApplianceError) -> int:
    """What is wrong with the box is never the caller's fault: 5xx."""
    status = HTTP_STATUS.get(error.code, 500)
    match error:
        case RequestTooLarge():
            return 413
        case DiskFull():
            return 507
        case Broken():
            return max(status, 500)
        case _:
            return status


def in_words(error: ApplianceError) -> str:
    """An error in words for who holds an app key, and what to do about it."""
    message, remedy = error.told(runs_the_box=False)
    return f"{message} {KEY_REMEDY if isinstance(error, Forbidden) else remedy}"


def _renamed(error: ApplianceError, names: Mapping[str, str]) -> ApplianceError:
    """The error under the name that the caller gave to the field."""
    if not isinstance(error, InvalidArgument) or not error.field:
        return error
    theirs = error.field.removeprefix("sampling.")
    head, dot, last = theirs.rpartition(".")
    theirs = head + names.get(dot + last, dot + last) if head else theirs
    known = next((name for name in (theirs, *_heads(theirs)) if name in names), "")
    theirs = names.get(known, "") + theirs[len(known) :]
    return InvalidArgument.of(theirs, str(error).removeprefix(f"{error.field}: "))


def _heads(path: str) -> Iterator[str]:
    """`a.b` and `a` of `a.b.c`."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def error_headers(error: ApplianceError) -> dict[str, str]:
    """Retry-After (RFC 9110) where trying again will help, and what OpenAI's clients ask before they do so."""
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if isinstance(error, Busy):
        headers["retry-after"] = str(max(1, round(error.retry_after_seconds)))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return headers


class _Out:
    """Where an answer goes. A client that leaves it unread for too long is taken to be gone."""

    def __init__(self, send: Send, stall_seconds: float) -> None:
        self._send, self._stall_seconds = send, stall_seconds
        self.started = self.is_stream = self.finished = self.dead = False
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            self.is_stream = any(value.startswith(b"text/event-stream") for _, value in message.get("headers", ()))
        else:
            self.finished = not message.get("more_body", False)
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._send(message)
        except TimeoutError:
            self.dead = True
            raise Cancelled("The client does not read its answer.") from None

    async def send_event(self, data: str) -> None:
        """One last event."""
        await self({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": False})


async def _read_body(receive: Receive, limits: Limits, grow: Callable[[int], None]) -> bytes:
    """grow: told how large it is by now. Raises RequestTooLarge, QueueFull, DeadlineExceeded, Cancelled."""
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Cancelled("The client went away while it sent the request.")
                body += message.get("body", b"")
                if len(body) > limits.body_bytes:
                    raise RequestTooLarge(f"The request has more than {limits.body_bytes >> 20} MiB.")
                grow(len(body))
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise DeadlineExceeded(f"The request did not arrive within {limits.body_seconds:.0f} s.") from None


@asynccontextmanager
async def _while_there(receive: Receive, out: _Out, seconds: float) -> AsyncIterator[asyncio.Event]:
    """End the block after so long, or as soon as the client is gone before its answer is out.

    Raises DeadlineExceeded, Cancelled.
    """
    gone, loop = asyncio.Event(), asyncio.get_running_loop()

    async def watch(limit: asyncio.Timeout) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        gone.set()
        if not out.finished and not limit.expired():
            limit.reschedule(loop.time())

    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            watcher = asyncio.create_task(watch(limit))
            try:
                yield gone
            finally:
                watcher.cancel()
    except TimeoutError:
        if not limit.expired():
            raise
        if gone.is_set():
            raise Cancelled("The client went away.") from None
        raise DeadlineExceeded(f"The call took more than {seconds:.0f} s.") from None


def _replay(body: bytes, gone: asyncio.Event) -> Receive:
    """The request once more for an application inside; then it waits for the client to go."""
    unread = [body]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Escaped to ASCII: half of a surrogate pair that a caller gave can be told back."""
    content = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(content, status, headers, "application/json")


def text_answer(content: bytes, media_type: str) -> Answer:
    return Response(content, media_type=media_type)
