import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from appliance.errors import DeadlineExceeded
from appliance.infer import imported_embedder
from appliance.infer.imported_embedder import ImportedEmbedder
from appliance.types import Encoded, ModelFile, ModelKind
from tests.fakes import WordEmbedder, WordEncoders

FILE = ModelFile("bge", ModelKind.EMBEDDING, "bge", "bert", "5" * 64, 1, "stick")


async def test_an_imported_embedder_serves_threads_from_the_loop_that_its_process_belongs_to() -> None:
    embedder = ImportedEmbedder(WordEncoders(), FILE, WordEmbedder(dimension=4), asyncio.get_running_loop())
    found = await asyncio.to_thread(embedder.embed, ["badge rules", "gates"])
    assert np.allclose(found, WordEncoders.embedder.embed(["badge rules", "gates"]))
    assert await asyncio.to_thread(lambda: embedder.dimension) == WordEncoders.embedder.dimension
    assert embedder.identity == FILE.sha256
    assert embedder.count_tokens(["badge rules"]) == 4


async def test_an_embedder_that_says_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    began, gone = asyncio.Event(), asyncio.Event()

    class Silent(WordEncoders):
        async def embed(self, model: str, texts: Sequence[str]) -> Encoded:
            try:
                began.set()
                await asyncio.Event().wait()
                return await super().embed(model, texts)
            finally:
                gone.set()

    monkeypatch.setattr(imported_embedder, "WAIT_SECONDS", 0.01)
    embedder = ImportedEmbedder(Silent(), FILE, WordEmbedder(dimension=4), asyncio.get_running_loop())
    async with asyncio.timeout(20):
        with pytest.raises(DeadlineExceeded, match="bge gave no vectors"):
            await asyncio.to_thread(embedder.embed, ["badge rules"])
        if began.is_set():
            await gone.wait()
