"""Tiny models of three architectures, made once a run, and engines on them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.infer import llama
from appliance.infer.engine import Deliver, Engine, Piece
from appliance.types import Finish, Generation, Origin, Sampling, Segment, Text
from tests import gguf_models

Answer = tuple[str, Finish]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("gguf")
    return {name: write(place / f"{name}.gguf") for name, write in gguf_models.ARCHITECTURES.items()}


@pytest.fixture(scope="session")
def loaded(models: dict[str, Path]) -> Iterator[dict[str, llama.Model]]:
    llama.init()
    opened = {name: llama.Model(str(path)) for name, path in models.items()}
    yield opened
    for model in opened.values():
        model.close()


class Bench:
    """An engine whose steps run on the test's thread; what it delivers is collected by request."""

    def __init__(self, model: llama.Model, **options: Any) -> None:
        self.said: dict[int, list[Piece]] = {}
        defaults = {"cells": 2048, "sequences": 4, "batch_tokens": 128, "queue": 64, "threads": 1}
        settings: dict[str, Any] = defaults | options
        self.engine = Engine(model, **settings, post=self._post)

    def submit(self, generation: Generation) -> int:
        pieces: list[Piece] = []
        request = self.engine.submit(generation, pieces.append)
        self.said[request] = pieces
        return request

    def answer(self, generation: Generation) -> Answer:
        request = self.submit(generation)
        self.engine.run_until_idle()
        return self.result(request)

    def result(self, request: int) -> Answer:
        *texts, finish = self.said[request]
        assert isinstance(finish, Finish)
        return "".join(piece.text for piece in texts if isinstance(piece, Text)), finish

    def _post(self, pieces: list[tuple[Deliver, Piece]]) -> None:
        for deliver, piece in pieces:
            deliver(piece)


@pytest.fixture
def bench(loaded: dict[str, llama.Model]) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(architecture: str = "llama", **options: Any) -> Bench:
        made.append(Bench(loaded[architecture], **options))
        return made[-1]

    yield make
    for item in made:
        item.engine.close()


def greedy(text: str, max_tokens: int = 12, salt: bytes = b"", **sampling: object) -> Generation:
    """A greedy request of a user's text alone."""
    chosen = Sampling(temperature=0.0, max_tokens=max_tokens, **sampling)  # type: ignore[arg-type]
    return Generation((Segment(Origin.USER, text),), chosen, prefix_salt=salt)


def words(start: int, count: int) -> str:
    """So many made-up words: so many tokens in the SentencePiece vocabularies, if syllables alone."""
    return " ".join(gguf_models.word(index % 90) for index in range(start, start + count))
