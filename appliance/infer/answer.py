"""One request's output: which tokens follow, and what text of them is shown.

The engine asks for a draft, computes the rows of logits that follow it, and hands them to `advance`: the answer draws
its own token at each row, and goes on to the next row only while the draft says the same. So a draft decides how many
tokens a step gives, never which (speculative decoding by exact match).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from appliance.errors import InvalidArgument
from appliance.infer import sampling
from appliance.infer.grammar import Grammar
from appliance.infer.llama import Detokenizer, Vocabulary
from appliance.infer.pages import Tokens
from appliance.infer.speculate import Drafter, Pace
from appliance.types import MAX_TOP_LOGPROBS, FinishReason, Floats, Generation, Text, TokenChoice, TokenLogprob

_NOTHING: Tokens = np.empty(0, np.int32)
MOST_FORCED = 64  # tokens a step: all streams wait while they are taken, and while their rows are computed
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Advance:
    """What a step gave. tokens: those that now belong to the sequence, in order: `accepted` drafted ones, then the one
    drawn, then those that a grammar forces. label_logprobs: in the order of the request's labels."""

    tokens: tuple[int, ...]
    piece: Text | None = None
    ended: FinishReason | None = None
    label_logprobs: tuple[float, ...] = ()
    accepted: int = 0


class Answer:
    """A request on its way. Not safe for threads; `__init__` may run on another thread than the rest."""

    def __init__(
        self,
        generation: Generation,
        vocabulary: Vocabulary,
        prompt: Tokens,
        drafter: Drafter | None = None,
        *,
        jumps: bool = True,
    ) -> None:
        """prompt: int32 token ids. Compiles the constraint. jumps: append what a grammar forces, instead of drawing it.

        Raises InvalidArgument, naming the field.
        """
        sampling.check(generation.sampling)
        if generation.top_logprobs is not None and not 0 <= generation.top_logprobs <= MAX_TOP_LOGPROBS:
            raise InvalidArgument.of("top_logprobs", f"must be between 0 and {MAX_TOP_LOGPROBS}.")
        if generation.labels and generation.constraint:
            raise InvalidArgument.of("labels", "cannot be combined with a constraint.")
        self._vocabulary = vocabulary
        self._labels = np.array([vocabulary.label(label) for label in generation.labels], np.int32)
        self._label_texts = generation.labels
        self._sampler = sampling.Sampler(generation.sampling)
        self._grammar = Grammar(generation.constraint, vocabulary) if generation.constraint else None
        self._jumps = jumps
        # what the grammar forces, last first, that later steps are to take, or rows for log-probabilities
        self._forced: list[int] = []
        self._recent = deque(prompt[-sampling.PENALTY_WINDOW_TOKENS :].tolist(), sampling.PENALTY_WINDOW_TOKENS)
        self._position = len(prompt)
        self._left = generation.sampling.max_tokens
        self._top = generation.top_logprobs
        self._drafter, self._pace = drafter, Pace()
        self._transcript = _Transcript(vocabulary, generation.sampling.stop)
        self._ended: FinishReason | None = None

    def draft(self, most: int) -> Tokens:
        """int32: what the next tokens may be, at most so many; the engine computes a row after each."""
        most = min(most, self._left - 1)
        if most <= 0 or len(self._labels):
            return _NOTHING
        if self._forced:
            forced = self._forced[: -most - 1 : -1] if self._top is not None else []  # else no row is wanted
            return np.array(forced, np.int32)
        if self._drafter is None:
            return _NOTHING
        self._pace.begin()
        if not self._pace.tokens:
            return _NOTHING
        tokens = np.array(self._drafter.draft(min(most, self._pace.tokens)), np.int32)
        return self._grammar.admitted(tokens) if self._grammar else tokens

    def advance(self, rows: Sequence[Floats], drafted: Tokens) -> Advance:
        """Take the step's logits: rows[i], float32 [vocabulary], follow i drafted tokens; one row more than drafted.

        They are views that need not outlive the call.
        """
        if len(self._labels):
            return self._label(rows[0])
        guesses, tokens, accepted = drafted.tolist(), list[int](), 0
        was_forced = bool(self._forced)
        while self._ended is None and accepted == len(tokens):
            for token in self._step(rows[accepted]):
                tokens.append(token)
                right = accepted == len(tokens) - 1 and accepted < len(guesses) and guesses[accepted] == token
                accepted += right
        if self._drafter:
            self._drafter.extend(tokens)
            if not was_forced:
                self._pace.end(len(guesses), accepted, len(tokens))
        if self._ended:
            self._transcript.end()
        return Advance(tuple(tokens), self._transcript.take(), self._ended, accepted=accepted)

    def close(self) -> None:
        """Free what the answer holds; on any thread."""
        if self._drafter:
            self._drafter.close()

    def _step(self, row: Floats) -> list[int]:
        """The tokens that a row of logits gives: the next, and those that are forced after it. None at a fault."""
        token = self._forced.pop() if self._forced else self._draw(row)
        if token is None:
            return []
        self._take(token, None if self._top is None else row)
        tokens = [token]
        if self._grammar and self._jumps and not self._forced and self._ended is None:
            self._forced = self._grammar.forced()[::-1]
        while self._forced and self._top is None and self._ended is None and len(tokens) <= MOST_FORCED:
            tokens.append(self._forced.pop())
            self._take(tokens[-1])
        return tokens

    def _draw(self, row: Floats) -> int | None:
        """The token after a row of logits that the grammar admits; None, and the end, where there is none."""
        token = self._sampler.draw(row, self._position, self._recent)
        if self._grammar and token is not None and not self._grammar.admits(token):
            token = self._sampler.draw(row, self._position, self._recent, self._grammar.mask())
            if self._grammar.failed:
                token = None
        if token is None:
            log.warning("answer.cut", position=self._position, constrained=self._grammar is not None)
            self._ended = FinishReason.LENGTH
        return token

    def _take(self, token: int, row: Floats | None = None) -> None:
        """The token is part of the answer. row: what it was drawn from, where its log-probability is wanted."""
        self._recent.append(token)
        self._position += 1
        self._left -= 1
        if self._vocabulary.is_end(token):
            self._ended = FinishReason.STOP
            return
        self._transcript.feed(token, None if row is None else self._choice(token, row))
        if self._grammar:
            self._grammar.take(token)
        if self._transcript.stopped or (self._grammar and self._grammar.ended and not self._grammar.failed):
            self._ended = FinishReason.STOP
        elif not self._left or (self._grammar and self._grammar.failed):
            self._ended = FinishReason.LENGTH

    def _label(self, row: Floats) -> Advance:
        values = sampling.label_logprobs(row, self._labels)
        best = int(values.argmax())
        token = int(self._labels[best])
        choices = () if self._top is None else (self._choice(token, row),)
        piece = Text(self._label_texts[best], choices)
        return Advance((token,), piece, FinishReason.STOP, tuple(values.tolist()))

    def _choice(self, token: int, row: Floats) -> TokenChoice:
        logprob, likeliest = sampling.logprobs(row, token, self._top or 0)
        piece = self._vocabulary.piece
        return TokenChoice(
            TokenLogprob(token, piece(token), logprob),
            tuple(TokenLogprob(other, piece(other), value) for other, value in likeliest),
        )


class _Transcript:
    """Tokens to the text that may be shown, and each choice with the piece in which its text ends."""

    def __init__(self, vocabulary: Vocabulary, stops: tuple[str, ...]) -> None:
        self._reader = Detokenizer(vocabulary)
        self._stops = sampling.StopFilter(stops)
        self._waiting: deque[tuple[int, int, TokenChoice]] = deque()  # characters before its text and up to its end
        self._read = self._shown = 0
        self._fresh = ""
        self._over = False

    @property
    def stopped(self) -> bool:
        return self._stops.stopped

    def feed(self, token: int, choice: TokenChoice | None = None) -> None:
        text = self._reader.feed(token)
        start, self._read = self._read, self._read + len(text)
        if choice:
            self._waiting.append((start, self._read + self._reader.partial, choice))
        self._fresh += self._stops.feed(text)

    def end(self) -> None:
        """No token comes any more: what was held back is shown, unless a stop string cut it off."""
        self._fresh += self._stops.feed(self._reader.flush()) + self._stops.flush()
        self._over = True

    def take(self) -> Text | None:
        """The text that became ready since the last call. What lies behind a stop string is dropped, choices too."""
        self._shown += len(self._fresh)
        choices = []
        while self._waiting and self._is_shown(*self._waiting[0][:2]):
            choices.append(self._waiting.popleft()[2])
        text, self._fresh = self._fresh, ""
        return Text(text, tuple(choices)) if text or choices else None

    def _is_shown(self, start: int, end: int) -> bool:
        if self._over:
            return start < self._shown or not self.stopped
        return end <= self._shown
