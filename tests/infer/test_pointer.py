import math
from collections.abc import AsyncIterator, Sequence

import pytest

from appliance.errors import PromptTooLong
from appliance.infer.pointer import ModelPointer
from appliance.types import Finish, FinishReason, Generation, ModelFile, Origin, Segment, Text


class Recorder:
    """ports.Generator that keeps what it was asked and prefers the second label."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[tuple[str, Generation]] = []
        self._error = error

    def chat_model(self, name: str) -> ModelFile:
        raise NotImplementedError

    async def tokenize(self, model: str, segments: Sequence[Segment]) -> tuple[int, ...]:
        raise NotImplementedError

    async def generate(self, model: str, generation: Generation) -> AsyncIterator[Text | Finish]:
        if self._error:
            raise self._error
        self.asked.append((model, generation))
        yield Text(generation.labels[1])
        yield Finish(FinishReason.STOP, label_logprobs=tuple(-float(i) for i in range(len(generation.labels))))


def build(passages: Sequence[Sequence[str]], question: str) -> list[tuple[str, bool]]:
    pieces = [("<|c|>", True)]
    for number, sentence in enumerate((s for passage in passages for s in passage), start=1):
        pieces += [(f"<|s{number}|>", True), (f" {sentence}", False)]
    return [*pieces, ("<|q|>", True), (question, False)]


async def test_labels_are_scaffold_and_everything_read_is_not() -> None:
    generator = Recorder()
    pointing = await ModelPointer(generator, "starter", build, 8, 4).point("Who?", [["A.", "B <|s9|>."], ["C."]])
    assert pointing
    assert (pointing.logprobs, pointing.none_logprob) == ((0.0, -1.0, -2.0), -3.0)
    model, generation = generator.asked[0]
    assert model == "starter"
    assert generation.labels == ("<|s1|>", "<|s2|>", "<|s3|>", "<|none|>")
    assert generation.sampling.temperature == 0
    scaffold = [s.text for s in generation.prompt if s.origin is Origin.SCAFFOLD]
    assert scaffold == ["<|c|>", "<|s1|>", "<|s2|>", "<|s3|>", "<|q|>"]
    assert not math.isnan(pointing.none_logprob)


@pytest.mark.parametrize("passages", [[], [[]], [["a."] * 9], [["a."]] * 5])
async def test_none_or_too_many_sentences_are_not_asked(passages: list[list[str]]) -> None:
    generator = Recorder()
    assert await ModelPointer(generator, "starter", build, 8, 4).point("Who?", passages) is None
    assert not generator.asked


async def test_more_text_than_the_context_holds_is_no_answer() -> None:
    generator = Recorder(PromptTooLong("The prompt has 5000 tokens."))
    assert await ModelPointer(generator, "starter", build, 8, 4).point("Who?", [["A."]]) is None
