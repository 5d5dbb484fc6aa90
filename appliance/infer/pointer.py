"""Which sentence answers a question: the pointer model under a constraint to the labels in its prompt.

The prompt is `models/starter.py`'s; what is said here is only whose words each piece is, and what the answer means.
"""

from collections.abc import Callable, Sequence

from appliance.errors import PromptTooLong
from appliance.ports import Generator
from appliance.types import Finish, Generation, Origin, Pointing, Sampling, Segment

# pieces of a prompt: (text, is it control tokens)
PromptBuilder = Callable[[Sequence[Sequence[str]], str], Sequence[tuple[str, bool]]]


class ModelPointer:
    """ports.Pointer over a pointer model."""

    def __init__(
        self, generator: Generator, model: str, build_prompt: PromptBuilder, most_sentences: int, most_passages: int
    ) -> None:
        """model: the pointer model's name. most_sentences, most_passages: it has labels and marks for so many."""
        self._generator, self._model, self._build = generator, model, build_prompt
        self._most_sentences, self._most_passages = most_sentences, most_passages

    async def point(self, question: str, passages: Sequence[Sequence[str]]) -> Pointing | None:
        """Which sentence of the passages answers. None where they are more than the model can read.

        passages: sentences by passage; the logprobs come back flattened in that order. Raises as Generator.generate.
        """
        count = sum(map(len, passages))
        if not 0 < count <= self._most_sentences or len(passages) > self._most_passages:
            return None
        segments = tuple(
            Segment(Origin.SCAFFOLD if control else Origin.RETRIEVED, text)
            for text, control in self._build(passages, question)
        )
        labels = (*(f"<|s{i}|>" for i in range(1, count + 1)), "<|none|>")
        generation = Generation(segments, Sampling(temperature=0.0, max_tokens=1), labels)
        try:
            async for piece in self._generator.generate(self._model, generation):
                if isinstance(piece, Finish):
                    return Pointing(piece.label_logprobs[:-1], piece.label_logprobs[-1])
        except PromptTooLong:
            return None
        return None
