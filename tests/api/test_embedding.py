import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from appliance.api.embedding import BATCH_TEXTS, MAX_CALLS, Embedding
from appliance.errors import InvalidArgument, NotFound, QueueFull
from appliance.types import Floats
from tests.fakes import WordEncoders, WordTokenEmbedder


class Slow(WordTokenEmbedder):
    """Waits for `go`, and counts its calls."""

    def __init__(self) -> None:
        self.go, self.calls = threading.Event(), 0

    def embed(self, texts: Sequence[str]) -> Floats:
        self.calls += 1
        assert self.go.wait(20)
        return super().embed(texts)


async def test_many_texts_are_read_in_batches_and_come_in_their_order() -> None:
    embedder, texts = WordTokenEmbedder(), [f"badge{number}" for number in range(BATCH_TEXTS * 2 + 3)]
    found = await Embedding(embedder, "minilm", WordEncoders()).embed(texts, "texts")
    np.testing.assert_array_equal(found.rows, embedder.embed(texts))
    assert found.tokens == len(texts)


async def test_an_imported_model_answers_by_its_name_within_the_same_limits() -> None:
    imported = WordEncoders()
    embedding = Embedding(WordTokenEmbedder(), "minilm", imported)
    found = await embedding.embed(["badge", "garden"], "texts", "bge")
    np.testing.assert_array_equal(found.rows, imported.embedder.embed(["badge", "garden"]))
    assert (await embedding.embed(["badge"], "texts", "minilm")).rows.shape == (1, WordTokenEmbedder.dimension)
    with pytest.raises(InvalidArgument, match="takes 1 to 256"):
        await embedding.embed(["x"] * 257, "texts", "bge")
    with pytest.raises(NotFound, match="models/none"):
        await embedding.embed(["x"], "texts", "none")


async def test_calls_beyond_the_queue_are_refused_and_one_that_nobody_waits_for_ends() -> None:
    embedder = Slow()
    embedding = Embedding(embedder, "minilm", WordEncoders())
    waiting = [asyncio.create_task(embedding.embed(["x"] * 200, "texts")) for _ in range(MAX_CALLS)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await embedding.embed(["x"], "texts")
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    embedder.go.set()
    assert (await embedding.embed(["x"], "texts")).tokens == 1
    assert embedder.calls <= 2


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ([], "texts: takes 1 to 256 texts, not 0"),
        (["x"] * 257, "texts: takes 1 to 256"),
        (["x", " "], r"texts\[1\]: must not be empty"),
        (["x" * 100_001], r"texts\[0\]: has 100001"),
        (["x" * 100_000] * 11, "texts: has 1100000 characters"),
    ],
)
async def test_what_cannot_be_embedded_is_refused_by_its_field(texts: list[str], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        await Embedding(WordTokenEmbedder(), "minilm", WordEncoders()).embed(texts, "texts")
