"""The HTTP server: OpenAI's protocol, MCP and metrics over TLS, beside gRPC and on its event loop."""

import asyncio
import math
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from appliance.api.http import Gate, Shape, error_headers, json_answer
from appliance.errors import InvalidArgument, NotFound, PortInUse

MOST_CONNECTIONS = 1024  # fewer where this process may open few files; of one address half of them
HANDSHAKE_SECONDS = 5.0
MOST_UNFINISHED_BYTES = 16 << 10  # of a request's headers
REQUEST_SECONDS = 20.0  # until the headers of a request are there
GOODBYE_SECONDS = 1.0  # from the last byte of an answer to the end of a connection that is to be closed
BACKLOG = 256  # connections that wait to be accepted
IDLE_SECONDS = 15  # of a connection between two calls
log = structlog.get_logger()


class HttpServer:
    """One HTTPS server; `address` is where it listens, once it does. Certificate and key: files, PEM."""

    def __init__(
        self,
        routes: Sequence[Route],
        gate: Gate,
        shape: Shape,
        running: Callable[[], AbstractAsyncContextManager[object]],
        certificate: Path,
        key: Path,
    ) -> None:
        """shape: of what no route answers. running: entered while it serves."""
        self.address = ""
        self._gate, self._running = gate, running
        self._files = (certificate, key)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._server = _Server(
            uvicorn.Config(
                Starlette(routes=list(routes), exception_handlers={HTTPException: _refuse_route(shape)}),
                http=_PromptProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # the gate logs each call, without what the client sent
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                h11_max_incomplete_event_size=MOST_UNFINISHED_BYTES,
                ssl_context_factory=lambda config, default: self._tls,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self, address: str) -> str:
        """Listen; the address with the port that was taken where `address` ends in :0. Raises PortInUse."""
        host, _, port = address.rpartition(":")
        self.renew()
        try:
            listener = _listen(host.strip("[]"), int(port))
        except OSError:
            raise PortInUse(f"Something else listens on {address}, or this machine has no such address.") from None
        self._task = asyncio.create_task(self._serve(listener))
        ready = asyncio.create_task(self._server.ready.wait())
        await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            ready.cancel()
            await self._task
        self.address = f"{host}:{listener.getsockname()[1]}"
        return self.address

    def renew(self) -> None:
        """Show the certificate that is on disk now, from the next connection on."""
        self._tls.load_cert_chain(*self._files)

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new calls, let running ones finish for the grace period, then end them and close."""
        self._gate.drain()
        if self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(grace_seconds)
        self._server.should_exit = True
        await self._task

    async def _serve(self, listener: socket.socket) -> None:
        async with self._running():
            await self._server.serve([listener])
            state = self._server.server_state
            await asyncio.gather(*state.tasks, return_exceptions=True)
            for connection in tuple(state.connections):
                connection.transport.abort()  # who leaves its answer unread is not waited for


class _Server(uvicorn.Server):
    """Leaves signals to the daemon, waits no minute for a handshake, and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop, config = asyncio.get_running_loop(), self.config

        def protocol() -> asyncio.Protocol:
            return _PromptProtocol(config, self.server_state, self.lifespan.state)

        self.servers = [
            await loop.create_server(
                protocol, sock=listener, ssl=config.ssl, backlog=BACKLOG, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
            for listener in sockets or ()
        ]
        self.started = True
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _PromptProtocol(H11Protocol):
    """A connection whose requests must come in time: who dribbles headers, or sends none, holds no place.

    Nor does who leaves TLS's goodbye unanswered, as an idle pool of connections does.
    """

    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self.loop.call_later(GOODBYE_SECONDS, self.transport.abort)

    def _expect(self) -> None:
        """While a request's headers are awaited a clock runs, from its beginning."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_expecting()
        elif self._due is None:
            self._due = self.loop.call_later(REQUEST_SECONDS, self.timeout_keep_alive_handler)

    def _stop_expecting(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


class _Listener(socket.socket):
    """Takes so many connections, half of them from one address: each holds a file, also before TLS begins."""

    def __init__(self, family: int, kind: int, protocol: int) -> None:
        super().__init__(family, kind, protocol)
        self.most = min(MOST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self.open = Counter[str]()

    def accept(self) -> tuple[socket.socket, Any]:
        """Raises ConnectionAbortedError for one too many: an event loop goes on to the next."""
        connection, address = super().accept()
        counted = _Connection(self.open, address[0], connection)
        if self.open.total() > self.most or self.open[address[0]] > self.most // 2:
            counted.close()
            raise ConnectionAbortedError
        return counted, address


class _Connection(socket.socket):
    """Is counted until it is closed."""

    def __init__(self, open: Counter[str], peer: str, accepted: socket.socket) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self._open, self._peer = open, peer
        open[peer] += 1

    def close(self) -> None:
        if self.fileno() >= 0:
            self._open[self._peer] -= 1
            if not self._open[self._peer]:
                del self._open[self._peer]
        super().close()


def _listen(host: str, port: int) -> socket.socket:
    """Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, where = found[0]
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer waits 40 ms for an ACK.
    listener = _Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _refuse_route(shape: Shape) -> Callable[[Request, Exception], Response]:
    def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        wrong_verb = error.status_code == 405
        told = InvalidArgument("This path takes another verb.") if wrong_verb else NotFound("There is no such path.")
        headers = error_headers(told) | dict(error.headers or {})
        log.info("call", method="", who="", outcome=told.reason, milliseconds=0.0)
        return json_answer(shape(told), error.status_code, headers)

    return refuse
