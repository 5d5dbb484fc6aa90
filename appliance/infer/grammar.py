"""Answers that keep to a JSON schema or a GBNF grammar, by llguidance. This module alone knows it.

A grammar says which tokens may come next. What is drawn is checked first, and only where it is refused is the whole
vocabulary masked: because a token's score is its own (see `sampling`), that is the draw which masking first would have
given. Text that the grammar leaves no choice about is not drawn at all but appended ("jump-forward"): llguidance
writes it in the vocabulary's own tokenization and holds back a last token that what follows might still change.

A vocabulary's control tokens cannot be produced inside a grammar, but for end tokens where it may end. Compiling is
bounded by the length of the text, and by llguidance's own limits on the size of grammar, automata and work a token.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import llguidance
import numpy as np
from llguidance.gbnf_to_lark import gbnf_to_lark

from appliance.errors import InvalidArgument
from appliance.infer.llama import Vocabulary
from appliance.infer.pages import Tokens
from appliance.infer.sampling import Mask
from appliance.types import Constraint, ConstraintKind

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # only the stub has it

MAX_CHARACTERS = {ConstraintKind.JSON_SCHEMA: 64 * 1024, ConstraintKind.GBNF: 32 * 1024}
MAX_RULES = 256
MOST_TRIED, TRIED_AT_ONCE = 512, 64  # tokens; llguidance takes about 30 us for one, and holds the GIL meanwhile
_FIELDS = {ConstraintKind.JSON_SCHEMA: "response_format", ConstraintKind.GBNF: "constraint"}
_LIMITS = llguidance.LLParserLimits(
    initial_lexer_fuel=1_000_000,  # 20 ms
    step_lexer_fuel=30_000,  # 2 ms
    step_max_items=10_000,  # 15 ms
    max_lexer_states=20_000,  # 1 to 2 kB each
    max_grammar_size=20_000,
    verbose_errors=False,
)
# as json.dumps writes: what a model has seen most, and no endless blanks
_JSON: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Grammar:
    """Where one answer is in its grammar. Not safe for threads."""

    def __init__(self, constraint: Constraint, vocabulary: Vocabulary) -> None:
        """Compiles it: milliseconds to a second. Raises InvalidArgument with the reason."""
        field = _FIELDS[constraint.kind]
        if len(constraint.text) > (most := MAX_CHARACTERS[constraint.kind]):
            raise InvalidArgument.of(field, f"must have at most {most} characters.")
        source = _from_gbnf(constraint.text) if constraint.kind is ConstraintKind.GBNF else _from_json(constraint.text)
        self._matcher = llguidance.LLMatcher(_tokenizer(vocabulary), source, log_level=0, limits=_LIMITS)
        ahead = self._matcher.deep_copy()  # what is forced goes wrong now rather than in the middle of an answer
        forced = ahead.compute_ff_tokens()[:MOST_TRIED]
        for start in range(0, len(forced), TRIED_AT_ONCE):
            ahead.consume_tokens(forced[start : start + TRIED_AT_ONCE])
        if not ahead.is_stopped():
            ahead.compute_bitmask()
        for matcher in (self._matcher, ahead):
            if matcher.is_error():
                raise InvalidArgument.of(field, _reason(matcher.get_error()))

    @property
    def ended(self) -> bool:
        """May nothing more come?"""
        return self._matcher.is_stopped()

    @property
    def failed(self) -> bool:
        """Has it become too complex for its limits? It has then ended without being satisfied."""
        return self._matcher.is_error()

    def admits(self, token: int) -> bool:
        return self._matcher.validate_tokens([token]) == 1

    def mask(self) -> Mask:
        """The tokens that may come next, one bit each, lowest first."""
        return np.frombuffer(self._matcher.compute_bitmask(), np.uint32)

    def take(self, token: int) -> None:
        """The token is the next; one that `admits`."""
        self._matcher.consume_token(token)

    def forced(self) -> list[int]:
        """The tokens that can only come next; still to be taken."""
        return self._matcher.compute_ff_tokens()

    def admitted(self, tokens: Tokens) -> Tokens:
        """The beginning of a draft that the grammar admits."""
        return tokens[: self._matcher.validate_tokens(tokens.tolist())]


class _Words:
    """A vocabulary as llguidance asks for it: the bytes of each token, and text to tokens."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = [vocabulary.piece(token) for token in range(vocabulary.size)]
        self.special_token_ids = vocabulary.control_ids
        self.eos_token_id = vocabulary.end_ids[0]
        self._vocabulary = vocabulary

    def __call__(self, text: str | bytes) -> list[int]:
        return self._vocabulary.encode_more(text if isinstance(text, str) else text.decode())


@lru_cache(maxsize=4)
def _tokenizer(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    """Made once a model: about 0.1 s at 32k tokens."""
    if not vocabulary.end_ids:
        raise InvalidArgument.of("constraint", "the model has no token that ends an answer.")
    words = llguidance.TokenizerWrapper(_Words(vocabulary))
    return llguidance.LLTokenizer(words, vocabulary.size, list(vocabulary.end_ids))


def _from_json(text: str) -> str:
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(text, overrides=_JSON)
    except ValueError as error:
        raise InvalidArgument.of("response_format", _reason(str(error))) from None


def _from_gbnf(text: str) -> str:
    if text.count("::=") > MAX_RULES:
        raise InvalidArgument.of("constraint", f"must have at most {MAX_RULES} rules.")
    try:
        return gbnf_to_lark(text)
    except RecursionError:
        raise InvalidArgument.of("constraint", "its groups are nested too deep.") from None
    except Exception as error:  # noqa: BLE001  the converter raises Exception itself, and what malformed text leads to
        raise InvalidArgument.of("constraint", _reason(str(error))) from None


def _reason(text: str) -> str:
    """What llguidance says, on one line and not at length."""
    text = " ".join(text.replace("<non-verbose/>", "").replace("NoExtensionBias", "nothing can satisfy it").split())
    return (text or "it is malformed")[:300].rstrip(".") + "."
