"""Guesses at the next tokens of a sequence, which the engine checks several at a time (speculative decoding).

A guess is accepted where it is the very token that the model's own draw gives (see `answer`), so speculation changes
how fast an answer comes, never what it is: exact also while sampling, as draws are functions of (logits, tokens, seed).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from appliance.errors import ModelUnsupported
from appliance.infer.llama import Context, Model, Vocabulary
from appliance.infer.pages import Tokens, Trim
from appliance.infer.sampling import PENALTY_WINDOW_TOKENS, Sampler
from appliance.infer.scheduler import Chunk
from appliance.types import Sampling

MAX_DRAFT_TOKENS = 32
_NGRAMS = (4, 2)  # tried in this order: two tokens alone are often chance
_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, MAX_DRAFT_TOKENS)
_FIRST_CHANCE, _FIRST_COST, _TRIED = 0.7, 0.1, 3
_MEMORY, _LEAST_GAIN = 0.7, 1.05
_FIRST_PAUSE, _LAST_PAUSE = 16, 1024
_INDEXED_A_DRAFT = 4096  # tokens, about a microsecond each


class Drafter(Protocol):
    """Guesses for one sequence. Used by one thread at a time."""

    def extend(self, tokens: Sequence[int]) -> None:
        """These were added to the sequence."""

    def draft(self, most: int) -> Sequence[int]:
        """At most so many tokens that may come next; none where there is no good guess."""

    def close(self) -> None:
        """Free what it holds."""


class Pace:
    """How many tokens are worth guessing at, for one answer, from what guesses have gained and cost so far.

    With a chance p that a guess holds where those before it did, and the cost c of a guess in steps without any, n
    guesses give (1 - p^(n+1)) / (1 - p) tokens for 1 + c n steps; the n of the greatest ratio is chosen (Leviathan et
    al., "Fast inference from transformers via speculative decoding", 2023). c is near 0 where memory bounds a step, as
    on a GPU, and near 1 where arithmetic does. Where no guess pays, a few are tried after a while, twice as long each
    time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._chance = _FIRST_CHANCE
        self._costs: dict[int, float] = {}  # of a guess, by how many are made: more are often cheaper each
        self._plain_seconds = 0.0  # what a step without guesses takes; 0 for not known yet
        self._began = 0.0
        self._paused, self._pause = 1, _FIRST_PAUSE  # the first step shows what one costs without guesses

    @property
    def tokens(self) -> int:
        return 0 if self._paused else self._best(self._costs) or max(_TRIED, self._best({}))

    def begin(self) -> None:
        """A step begins, with what guessing itself costs."""
        self._began = self._clock()

    def end(self, drafted: int, accepted: int, gained: int) -> None:
        """The step that began has checked so many guesses, of which so many held; the answer went on by `gained`."""
        seconds, self._began = self._clock() - self._began if self._began else 0.0, 0.0
        self._paused = max(0, self._paused - gained)
        if not drafted:
            self._plain_seconds = _mixed(self._plain_seconds, seconds)
            return
        self._chance = _mixed(self._chance, accepted / min(accepted + 1, drafted))
        if seconds and self._plain_seconds:
            length = max(length for length in _LENGTHS if length <= drafted)
            cost = max(0.001, (seconds / self._plain_seconds - 1) / drafted)
            self._costs[length] = _mixed(self._costs.get(length, 0.0), cost)
        if self._best(self._costs):
            self._pause = _FIRST_PAUSE
        else:
            self._paused, self._pause = self._pause, min(2 * self._pause, _LAST_PAUSE)

    def _best(self, costs: Mapping[int, float]) -> int:
        """The best number of guesses, where each costs as known for as many or the next fewer; 0 where none pays."""
        chance, cost = min(self._chance, 0.999), _FIRST_COST
        best, most = 0, _LEAST_GAIN
        for guesses in _LENGTHS:
            cost = costs.get(guesses, cost)
            gain = (1 - chance ** (guesses + 1)) / (1 - chance) / (1 + cost * guesses)
            if gain > most:
                best, most = guesses, gain
        return best


def _mixed(known: float, new: float) -> float:
    return _MEMORY * known + (1 - _MEMORY) * new if known else new


class PromptLookup:
    """What followed the last time that the sequence held its present end (Saxena, "Prompt lookup decoding", 2023).

    An index of the places after each n-gram, which only drafting brings forward: who never drafts pays nothing for it.
    As long as what followed there also came here, the same place is followed on.
    """

    def __init__(self, prompt: Tokens) -> None:
        self._tokens: list[int] = prompt.tolist()
        self._indexed = 0  # of the tokens
        self._after: dict[tuple[int, ...], int] = {}
        self._source = 0  # where the indexed tokens' end was before: the index of what followed; 0 for nowhere

    def extend(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens

    def _index(self, most: int) -> None:
        known, after = self._tokens, self._after
        for end in range(self._indexed + 1, min(self._indexed + most, len(known)) + 1):
            followed = self._source and known[self._source] == known[end - 1]
            self._source = self._source + 1 if followed else 0
            for length in _NGRAMS:
                if end < length:
                    continue
                key = tuple(known[end - length : end])
                self._source = self._source or after.get(key, 0)
                after[key] = end
            self._indexed = end

    def draft(self, most: int) -> Sequence[int]:
        """Past the sequence's end it goes round: the end then repeats itself. None while a long prompt is indexed."""
        self._index(_INDEXED_A_DRAFT)
        source, end = self._source, len(self._tokens)
        if not source or self._indexed < end:
            return []
        return [self._tokens[source + step % (end - source)] for step in range(most)]

    def close(self) -> None:
        pass


class DraftModel:
    """A small model of the same vocabulary that writes ahead of the large one, on the engine's thread.

    It draws with each request's own parameters and noise: where its logits are like the large model's, so is the draw.
    """

    def __init__(
        self, model: Model, target: Vocabulary, *, cells: int, sequences: int, batch_tokens: int, threads: int
    ) -> None:
        """cells: tokens that its sequences may hold, shared evenly. Raises ModelUnsupported, ModelTooLarge."""
        check_vocabulary(model.vocabulary, target)
        if not model.shares_prefixes(cells):
            raise ModelUnsupported("The draft model cannot take tokens back: it is recurrent or has a short window.")
        self.context = Context(model, cells=cells, sequences=sequences, batch_tokens=batch_tokens, threads=threads)
        self.batch_tokens, self.most_tokens = batch_tokens, cells // sequences
        self.free_sequences = list(range(sequences))

    def begin(self, prompt: Tokens, sampling: Sampling) -> Drafter:
        """A drafter for one sequence; on any thread. It guesses nothing while all sequences here are in use."""
        return _Ahead(self, prompt, sampling)

    def close(self) -> None:
        """Frees the context; the model stays."""
        self.context.close()


class _Ahead:
    """One sequence of a draft model: in step by taking back what was guessed wrong."""

    def __init__(self, model: DraftModel, prompt: Tokens, sampling: Sampling) -> None:
        self._model = model
        self._sampler = Sampler(sampling)
        self._tokens: list[int] = prompt.tolist()
        self._computed: list[int] = []  # what the context holds: a beginning of the tokens, then wrong guesses
        self._right = 0  # so many of them were tokens of the sequence when they were computed, not guesses
        self._sequence: int | None = None

    def extend(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens

    def draft(self, most: int) -> Sequence[int]:
        """None either while the prompt is not computed yet: a batch of it a call."""
        if len(self._tokens) + most > self._model.most_tokens or not self._has_sequence():
            return []
        self._take_back()
        row = self._compute(self._tokens[len(self._computed) : len(self._computed) + self._model.batch_tokens])
        self._right = len(self._computed)
        if len(self._computed) < len(self._tokens):
            return []
        known = len(self._tokens)
        while True:
            logits = self._model.context.logits(row)
            token = self._sampler.draw(logits, len(self._computed), self._computed[-PENALTY_WINDOW_TOKENS:])
            drafted = self._computed[known:]
            if token is None or len(drafted) + 1 >= most:
                return drafted if token is None else [*drafted, token]
            row = self._compute([token])

    def close(self) -> None:
        if self._sequence is not None:
            self._model.free_sequences.append(self._sequence)
            self._sequence = None

    def _has_sequence(self) -> bool:
        if self._sequence is None and self._model.free_sequences:
            self._sequence = self._model.free_sequences.pop()
            self._model.context.trim(Trim(self._sequence, 0))
        return self._sequence is not None

    def _take_back(self) -> None:
        """Keep what is right of the computed tokens, but compute the last known one again: its logits are wanted."""
        right, most = self._right, min(len(self._computed), len(self._tokens) - 1)
        while right < most and self._computed[right] == self._tokens[right]:
            right += 1
        right = min(right, most)
        del self._computed[right:]
        assert self._sequence is not None
        self._model.context.trim(Trim(self._sequence, right))

    def _compute(self, tokens: Sequence[int]) -> int:
        """The row of logits after the last of the tokens that come next."""
        assert self._sequence is not None
        chunk = Chunk(0, self._sequence, len(self._computed), np.array(tokens, np.int32), 1)
        self._computed += tokens
        return self._model.context.compute([chunk])[0]


def check_vocabulary(draft: Vocabulary, target: Vocabulary) -> None:
    """Raises ModelUnsupported where the two do not give every token the same bytes and the same part."""
    problem = ""
    if draft.size != target.size:
        problem = f"{draft.size} tokens instead of {target.size}"
    elif draft.control_ids != target.control_ids or draft.end_ids != target.end_ids:
        problem = "other control tokens"
    elif other := next((token for token in range(target.size) if draft.piece(token) != target.piece(token)), None):
        problem = f"another text for token {other}"
    if problem:
        raise ModelUnsupported(f"The draft model cannot draft for this model: its vocabulary has {problem}.")
