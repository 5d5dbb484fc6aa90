"""How a call is made: its deadline, its pages, its stream, its failure."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from appliance.client import failures

T = TypeVar("T")

CALL_SECONDS = 30.0  # a look-up or a small change
WORK_SECONDS = 600.0  # an answer, a model that loads, a compaction
WATCH_SECONDS = 86_400.0
CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 1_000),  # so that a dead box is noticed within seconds
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 256 << 20),  # GetDocument sends the whole text of a document
    ("grpc.enable_http_proxy", 0),  # a box is reached directly, whatever the environment says of proxies
]


class Stream(Iterator[T], Generic[T]):
    """The messages of a streaming call. `cancel` may be called from any thread; the reader then gets Cancelled."""

    def __init__(self, call: Any, read: Callable[[Any], T], address: str) -> None:
        self._call, self._read, self._address = call, read, address

    def __next__(self) -> T:
        try:
            return self._read(next(self._call))
        except grpc.RpcError as error:
            raise failures.from_call(error, self._address) from None

    def cancel(self) -> None:
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


class Calls:
    """A connection to one box, over TLS with a client certificate. Safe to use from many threads."""

    def __init__(
        self, address: str, ca: bytes, certificate: bytes, key: bytes, timeout_seconds: float | None = None
    ) -> None:
        """address: host:port. ca, certificate, key: PEM. timeout_seconds replaces every call's own deadline."""
        self.address = address
        self._timeout_seconds = timeout_seconds
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        self._channel = grpc.secure_channel(address, credentials, CHANNEL_OPTIONS)

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: Any, request: Any, seconds: float = CALL_SECONDS) -> Any:
        try:
            return method(request, timeout=self._timeout_seconds or seconds)
        except grpc.RpcError as error:
            raise failures.from_call(error, self.address) from None

    def _stream(self, method: Any, request: Any, read: Callable[[Any], T], seconds: float) -> Stream[T]:
        return Stream(method(request, timeout=self._timeout_seconds or seconds), read, self.address)

    def _pages(self, method: Any, request: Any, field: str) -> Iterator[Any]:
        while True:
            answer = self._call(method, request)
            yield from getattr(answer, field)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token
