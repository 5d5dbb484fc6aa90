"""The starter model: where it lies, what it must hash to, how it is asked, and the answer that proves an engine sound.

It is no chat model: it reads numbered sentences and a question and answers with one label, `<|s3|>` for the third
sentence or `<|none|>`. The caller constrains the answer to the labels in the prompt. How it was made: models/starter/.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ModelDamaged, ModelMissing
from appliance.models import gguf
from appliance.types import ModelFile, ModelKind

NAME = "starter"
FILE_NAME = "starter.gguf"
SHA256 = "77ef1bcf32e5d78e1e5a0cc85d5c69318beec9789385e4a62a00b72a21083449"
CONTEXT_TOKENS = 2048
MAX_SENTENCES, MAX_PASSAGES = 48, 8
NONE_LABEL = "<|none|>"

# beside this file when installed, in models/starter in a source checkout
PLACES = (Path(__file__).parent, Path(__file__).parents[2] / "models" / "starter")

Pieces = tuple[tuple[str, bool], ...]


def path() -> Path:
    """The model's file, its bytes compared with SHA256. Raises ModelMissing, ModelDamaged."""
    for place in PLACES:
        if (place / FILE_NAME).is_file():
            return verified(place / FILE_NAME)
    raise ModelMissing(f"The starter model {FILE_NAME} is in none of: {', '.join(map(str, PLACES))}.")


def verified(file: Path) -> Path:
    """The same path. Raises ModelDamaged where its bytes are not the pinned ones."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise ModelDamaged(f"The starter model has sha256 {found}; the pinned one is {SHA256}.")
    return file


def model_file() -> ModelFile:
    """The starter as the router loads it. Raises ModelMissing, ModelDamaged."""
    file = path()
    with gguf.open_regular(file) as source:
        header = gguf.parse(source)
    return ModelFile(
        name=NAME,
        kind=ModelKind.POINTER,
        path=str(file),
        architecture=header.architecture,
        sha256=SHA256,
        size_bytes=file.stat().st_size,
        source="part of the appliance",
        parameters=header.parameters,
        trained_context_tokens=CONTEXT_TOKENS,
    )


def sentence_label(number: int) -> str:
    """The label of a sentence, counted from 1 over all passages."""
    return f"<|s{number}|>"


def labels(sentences: int) -> tuple[str, ...]:
    """What an answer may be: one label a sentence, in order, then NONE_LABEL."""
    return (*(sentence_label(number) for number in range(1, sentences + 1)), NONE_LABEL)


def pointer_prompt(passages: Sequence[Sequence[str]], question: str) -> Pieces:
    """`[1]<|s1|> sentence<|s2|> sentence [2]<|s3|> … <|q|> question<|a|>` as (text, is it control tokens) pieces.

    Raises ValueError past MAX_SENTENCES or MAX_PASSAGES. Each piece is to be tokenized apart, as in training.
    """
    if sum(map(len, passages)) > MAX_SENTENCES or len(passages) > MAX_PASSAGES:
        raise ValueError(f"The starter model reads {MAX_SENTENCES} sentences in {MAX_PASSAGES} passages, no more.")
    pieces: list[tuple[str, bool]] = []
    number = 0
    for index, sentences in enumerate(passages, 1):
        mark = f"[{index}]"
        for sentence in sentences:
            number += 1
            pieces += [(mark + sentence_label(number), True), (_spaced(sentence), False)]
            mark = ""
    return (*pieces, ("<|q|>", True), (_spaced(question), False), ("<|a|>", True))


def _spaced(text: str) -> str:
    """One blank before every word, as in training."""
    return "".join(f" {word}" for word in text.split())


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A prompt, the labels that its answer may be, and the answer that a sound engine gives."""

    prompt: Pieces
    labels: tuple[str, ...]
    expected: str


SELF_TEST = SelfTest(
    prompt=pointer_prompt(
        (
            ("The north gate opens at 6:30 in the morning.", "Visitors need a badge to enter the plant."),
            ("The battery of the pump lasts 14 hours.", "A red lamp means that the pump is overheating."),
            ("Travel expenses must be claimed within 30 days.",),
        ),
        "Within how many days must travel expenses be claimed?",
    ),
    labels=labels(5),
    expected=sentence_label(5),
)
