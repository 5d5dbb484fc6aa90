"""Texts to vectors, however they were asked for: by the box's own embedder in a thread, or by an imported one."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from appliance.api import requests
from appliance.errors import InvalidArgument, QueueFull
from appliance.ports import Embedder, Encoders
from appliance.types import Encoded, Floats

MAX_TEXTS, MAX_TEXT_CHARACTERS, MAX_CHARACTERS = 256, 100_000, 1_000_000
MAX_CALLS = 64  # at work at once
BATCH_TEXTS = 32  # between which others have their turn, and a call that nobody waits for ends


class Embedding:
    """Unit vectors by the box's embedder, which is called `name`, or an imported one. Belongs to one event loop."""

    def __init__(self, embedder: Embedder, name: str, imported: Encoders) -> None:
        self.name = name
        self._embedder, self._imported = embedder, imported
        self._thread = ThreadPoolExecutor(1, "embed")
        self._calls = 0

    async def embed(self, texts: Sequence[str], field: str, model: str = "") -> Encoded:
        """Vectors [len(texts), dimension]. field: what the caller calls the texts. model: '' for the box's own.

        Raises InvalidArgument, QueueFull; for an imported model also as `ports.Encoders` does.
        """
        require_texts(texts, field)
        if model not in ("", self.name):
            return await self._imported.embed(model, texts)
        if self._calls >= MAX_CALLS:
            raise QueueFull(f"{self._calls} calls wait for the embedder.")
        self._calls += 1
        try:
            loop, starts = asyncio.get_running_loop(), range(0, len(texts), BATCH_TEXTS)
            batches = [texts[start : start + BATCH_TEXTS] for start in starts]
            done = [await loop.run_in_executor(self._thread, self._read, batch) for batch in batches]
        finally:
            self._calls -= 1
        return Encoded(np.concatenate([vectors for vectors, _ in done]), sum(tokens for _, tokens in done))

    def _read(self, texts: Sequence[str]) -> tuple[Floats, int]:
        return self._embedder.embed(texts), self._embedder.count_tokens(texts)


def require_texts(texts: Sequence[str], field: str) -> None:
    """Raises InvalidArgument for none, too many or too long ones."""
    if not 0 < len(texts) <= MAX_TEXTS:
        raise InvalidArgument.of(field, f"takes 1 to {MAX_TEXTS} texts, not {len(texts)}.")
    for index, text in enumerate(texts):
        requests.text(text, f"{field}[{index}]", MAX_TEXT_CHARACTERS)
    if (characters := sum(map(len, texts))) > MAX_CHARACTERS:
        raise InvalidArgument.of(field, f"has {characters} characters; at most {MAX_CHARACTERS} are taken.")
