"""Which embedder a collection's vectors are of, and one that leaves the processor to others."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import get_native_id
from typing import Protocol

import structlog

from appliance.errors import EmbedderChanged
from appliance.ports import Embedder
from appliance.types import Floats, Ints

log = structlog.get_logger()

_NICER = 10
_NICEST = 19


class Embedders(Protocol):
    def __call__(self, name: str, identity: str, *, background: bool = False) -> Embedder:
        """The embedder of that model name, '' for the built-in one, and that identity, '' for the one that there is.

        background: for work that is to take only the time that queries leave; its vectors are the same. Raises
        EmbedderChanged where the box has none such.
        """


def built_in(embedder: Embedder, background: Embedder | None = None) -> Embedders:
    """A box that has no other. background: the same one again for such work, None where one does all."""

    def choose(name: str, identity: str, *, background: bool = False) -> Embedder:
        if not name and identity in ("", embedder.identity):
            return behind if background else embedder
        raise EmbedderChanged(
            f"The vectors are of embedder {name or 'built-in'} {identity[:16]}; the box has"
            f" {embedder.identity[:16]}, {embedder.dimension} dimensions."
        )

    behind = background or embedder
    return choose


class Background:
    """`ports.Embedder`: another, made and run by one thread of a lower priority, so that no query waits behind it.

    Of Linux: a thread has a niceness of its own (sched(7)), and the threads that it starts begin with it, so those of
    an embedder's session have it too.
    """

    def __init__(self, make: Callable[[], Embedder]) -> None:
        """Raises as `make`."""
        self._thread = ThreadPoolExecutor(1, "background-embedder", initializer=_step_back)
        self._embedder = self._thread.submit(make).result()
        self.identity, self.dimension = self._embedder.identity, self._embedder.dimension
        self.max_tokens = self._embedder.max_tokens

    def embed(self, texts: Sequence[str]) -> Floats:
        return self._thread.submit(self._embedder.embed, texts).result()

    def count_tokens(self, texts: Sequence[str]) -> int:
        return self._thread.submit(self._embedder.count_tokens, texts).result()

    def token_ends(self, texts: Sequence[str]) -> Sequence[Ints]:
        return self._thread.submit(self._embedder.token_ends, texts).result()


def _step_back() -> None:
    thread = get_native_id()
    try:
        niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICER
        os.setpriority(os.PRIO_PROCESS, thread, min(niceness, _NICEST))
    except OSError as error:  # where the box forbids it: slower queries are better than no ingest
        log.warning("background_priority_refused", error=str(error))
