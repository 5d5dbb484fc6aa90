"""An imported embedder as threads of the daemon use one: `ports.Embedder` over `ports.Encoders`."""

import asyncio
from collections.abc import Sequence
from functools import cached_property

from appliance.errors import DeadlineExceeded
from appliance.ports import Embedder, Encoders
from appliance.types import Floats, Ints, ModelFile

WAIT_SECONDS = 900.0  # to load, and in turn with others to embed: what takes longer is taken for hung


class ImportedEmbedder:
    """Not to be called from the event loop that `encoders` belongs to: it would wait for itself.

    Its own tokenizer stays in its locked process: texts are measured by another's, and by no more than that one sees.
    """

    def __init__(self, encoders: Encoders, file: ModelFile, measure: Embedder, loop: asyncio.AbstractEventLoop) -> None:
        self._encoders, self._file, self._measure, self._loop = encoders, file, measure, loop

    @property
    def identity(self) -> str:
        return self._file.sha256

    @cached_property
    def dimension(self) -> int:
        """Raises as `embed`."""
        return int(self.embed(["."]).shape[1])

    @property
    def max_tokens(self) -> int:
        return self._measure.max_tokens

    def embed(self, texts: Sequence[str]) -> Floats:
        """Raises as `Encoders.embed`; DeadlineExceeded, too, where nothing comes."""
        asked = asyncio.run_coroutine_threadsafe(self._encoders.embed(self._file.name, texts), self._loop)
        try:
            return asked.result(WAIT_SECONDS).rows
        except TimeoutError:
            asked.cancel()
            name, seconds = self._file.name, WAIT_SECONDS
            raise DeadlineExceeded(f"Model {name} gave no vectors within {seconds:g} seconds.") from None

    def count_tokens(self, texts: Sequence[str]) -> int:
        return self._measure.count_tokens(texts)

    def token_ends(self, texts: Sequence[str]) -> Sequence[Ints]:
        return self._measure.token_ends(texts)
