import asyncio

import numpy as np

from appliance.infer.imported_embedder import ImportedEmbedder
from appliance.types import ModelFile, ModelKind
from tests.fakes import WordEmbedder, WordEncoders


async def test_an_imported_embedder_serves_threads_from_the_loop_that_its_process_belongs_to() -> None:
    file = ModelFile("bge", ModelKind.EMBEDDING, "bge", "bert", "5" * 64, 1, "stick")
    embedder = ImportedEmbedder(WordEncoders(), file, WordEmbedder(dimension=4), asyncio.get_running_loop())
    found = await asyncio.to_thread(embedder.embed, ["badge rules", "gates"])
    assert np.allclose(found, WordEncoders.embedder.embed(["badge rules", "gates"]))
    assert await asyncio.to_thread(lambda: embedder.dimension) == WordEncoders.embedder.dimension
    assert embedder.identity == file.sha256
    assert embedder.count_tokens(["badge rules"]) == 4
