"""The starter's byte-level BPE: 4096 tokens, of which the first 60 are control tokens."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.starter.facts import invented_context
from models.starter.questions import Prose
from models.starter.wordnet import Instance

END, NONE, QUESTION, ANSWER = range(4)
PASSAGES, SENTENCES = 8, 48
FIRST_PASSAGE, FIRST_LABEL = 4, 4 + PASSAGES
CONTROL = (
    *("<|end|>", "<|none|>", "<|q|>", "<|a|>"),
    *(f"[{i}]" for i in range(1, PASSAGES + 1)),
    *(f"<|s{i}|>" for i in range(1, SENTENCES + 1)),
)
VOCABULARY = 4096
BLOCKS_A_SOURCE, INVENTED_CONTEXTS = 8000, 3000


def train_tokenizer(prose: Prose, instances: tuple[Instance, ...], out: Path) -> None:
    """Learn merges from prose and invented contexts, and write tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(prose, instances), trainer)
    tokenizer.save(str(out))


def _texts(prose: Prose, instances: tuple[Instance, ...]) -> Iterator[str]:
    rng = Random(0)  # noqa: S311
    for source in prose.blocks:
        for block in source if len(source) < BLOCKS_A_SOURCE else rng.sample(source, BLOCKS_A_SOURCE):
            yield " ".join(block)
    for _ in range(INVENTED_CONTEXTS):
        context = invented_context(rng, instances, questions=8)
        yield " ".join(s for p in context.passages for s in p)
        yield " ".join(question for question, _ in context.questions)


class Encoder:
    """Text to token ids, remembering sentences; one of these lives as long as a training run."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(path))
        self._known: dict[str, list[int]] = {}

    def text(self, text: str) -> list[int]:
        """Ids of a text as it stands after a control token: with one space before it."""
        if text not in self._known:
            self._known[text] = self.tokenizer.encode(f" {text}", add_special_tokens=False).ids
        return self._known[text]
