from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import ModelUnsupported
from appliance.infer import llama
from appliance.infer.answer import Answer
from appliance.infer.pages import Trim
from appliance.infer.scheduler import Chunk
from appliance.infer.speculate import MAX_DRAFT_TOKENS, DraftModel, Pace, PromptLookup
from appliance.types import Constraint, ConstraintKind, Floats, Generation, Origin, Sampling, Segment
from tests import gguf_models
from tests.infer.conftest import Bench, words
from tests.infer.scripted import Said, Target, markov, run

Models = Mapping[str, llama.Model]
LOOP = [400, 401, 402, 403, 404, 405]
SAMPLINGS = [
    Sampling(temperature=0.0, max_tokens=60),
    Sampling(temperature=0.7, seed=1, max_tokens=60),
    Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=2, max_tokens=60),
    Sampling(temperature=0.8, repeat_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2, seed=3, max_tokens=60),
]


@pytest.fixture(autouse=True)
def _no_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many guesses are made here must not depend on how fast the machine is."""
    monkeypatch.setattr("appliance.infer.answer.Pace", partial(Pace, lambda: 0.0))


class Stubborn:
    """Always guesses the same."""

    def __init__(self, guess: Sequence[int]) -> None:
        self.guess, self.closed = guess, False

    def extend(self, tokens: Sequence[int]) -> None:
        pass

    def draft(self, most: int) -> Sequence[int]:
        return self.guess[:most]

    def close(self) -> None:
        self.closed = True


def looping(vocabulary: int, sureness: float) -> Target:
    """A model that mostly goes on round the loop."""

    def row(tokens: Sequence[int]) -> Floats:
        logits = np.random.default_rng(tokens[-1]).standard_normal(vocabulary).astype(np.float32)
        if tokens[-1] in LOOP:
            logits[LOOP[(LOOP.index(tokens[-1]) + 1) % len(LOOP)]] += sureness
        else:
            logits[LOOP] += sureness
        return logits

    return row


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("sureness", [2.0, 7.0, 30.0])
def test_speculation_changes_no_token(loaded: Models, sampling: Sampling, sureness: float) -> None:
    vocabulary, prompt = loaded["llama"].vocabulary, np.array(LOOP * 3, np.int32)
    target, request = looping(vocabulary.size, sureness), Generation((), sampling)
    plain = run(Answer(request, vocabulary, prompt), target, prompt.tolist())
    drafted = run(Answer(request, vocabulary, prompt, PromptLookup(prompt)), target, prompt.tolist())
    assert drafted.tokens == plain.tokens
    assert drafted.text == plain.text
    assert drafted.ended == plain.ended
    if sureness == 30.0 and sampling.repeat_penalty == 1.0:
        assert drafted.steps < plain.steps / 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    guess=st.lists(st.integers(300, 1023), max_size=6),
    most=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
    max_tokens=st.integers(1, 12),
)
def test_no_guess_however_wrong_changes_a_token(
    loaded: Models, guess: list[int], most: int, seed: int, max_tokens: int
) -> None:
    vocabulary, prompt = loaded["llama"].vocabulary, np.array(LOOP, np.int32)
    target = looping(vocabulary.size, 5.0)
    request = Generation((), Sampling(temperature=1.0, seed=seed, max_tokens=max_tokens))
    plain = run(Answer(request, vocabulary, prompt), target, LOOP)
    for drafter in (Stubborn(guess), Stubborn(plain.tokens), Stubborn([*plain.tokens, *guess])):
        drafted = run(Answer(request, vocabulary, prompt, drafter), target, LOOP, most)
        assert drafted.tokens == plain.tokens
        assert drafter.closed


def test_speculated_answers_have_the_models_distribution(loaded: Models) -> None:
    """Chi-square over four tokens of many seeds, drafted and checked, against the products of the softmax."""
    vocabulary, prompt = loaded["llama"].vocabulary, np.array(LOOP * 2, np.int32)
    few = LOOP[:3]
    chances = {last: np.array([0.5, 0.3, 0.2])[np.roll(range(3), last % 3)] for last in LOOP}

    def target(tokens: Sequence[int]) -> Floats:
        logits = np.full(vocabulary.size, -np.inf, np.float32)
        logits[few] = np.log(chances[tokens[-1]])
        return logits

    seen: Counter[tuple[int, ...]] = Counter()
    accepted, seeds = 0, 6000
    guesses = np.random.default_rng(0).choice(few, (seeds, 3)).tolist()
    for seed in range(seeds):
        sampling = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed, max_tokens=4)
        answer = Answer(Generation((), sampling), vocabulary, prompt, Stubborn(guesses[seed]))
        said = run(answer, target, prompt.tolist())
        seen[tuple(said.tokens)] += 1
        accepted += said.accepted
    statistic = 0.0
    for outcome in product(few, repeat=4):
        chain = zip([LOOP[-1], *outcome], outcome, strict=False)
        expected = seeds * np.prod([chances[last][few.index(token)] for last, token in chain])
        statistic += (seen[outcome] - expected) ** 2 / expected
    assert sum(seen.values()) == seeds
    assert accepted > seeds / 3, "guesses took part"
    assert statistic < 124.8, "80 degrees of freedom, p = 0.001"


@pytest.mark.parametrize("grammar", ['root ::= (" bace" | " dido" | " bemi" " fogu")+', 'root ::= " bace dido"+'])
def test_speculation_changes_no_token_under_a_grammar(loaded: Models, grammar: str) -> None:
    vocabulary = loaded["llama"].vocabulary
    prompt = np.array(vocabulary.encode_more(" bace dido bemi fogu" * 4), np.int32)
    target = markov(vocabulary.size)
    for seed in range(3):
        sampling = Sampling(temperature=1.0, seed=seed, max_tokens=40)
        request = Generation((), sampling, constraint=Constraint(ConstraintKind.GBNF, grammar))
        plain = run(Answer(request, vocabulary, prompt), target, prompt.tolist())
        drafted = run(Answer(request, vocabulary, prompt, PromptLookup(prompt)), target, prompt.tolist())
        assert drafted.tokens == plain.tokens
        assert drafted.text == plain.text


def test_a_lookup_follows_what_came_after_the_same_words() -> None:
    lookup = PromptLookup(np.array([1, 2, 3, 4, 5, 6, 1, 2], np.int32))
    assert lookup.draft(4) == [3, 4, 5, 6]
    lookup.extend([3, 4])
    assert lookup.draft(2) == [5, 6]
    lookup.extend([9])
    assert lookup.draft(2) == []
    lookup.extend([5, 6])
    assert lookup.draft(3) == [1, 2, 3]


def test_a_lookup_prefers_the_longer_match_and_then_the_later_one() -> None:
    longer = PromptLookup(np.array([1, 2, 3, 4, 7, 3, 4, 8, 1, 2, 3, 4], np.int32))
    assert longer.draft(1) == [7]
    later = PromptLookup(np.array([3, 4, 7, 0, 3, 4, 8, 0, 3, 4], np.int32))
    assert later.draft(1) == [8]


def test_a_lookup_goes_round_where_the_end_repeats_itself() -> None:
    assert PromptLookup(np.array([7, 1, 2, 3, 1, 2, 3], np.int32)).draft(7) == [1, 2, 3, 1, 2, 3, 1]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9))
def test_a_lookup_made_at_once_is_one_that_grew(tokens: list[int], most: int) -> None:
    grown = PromptLookup(np.empty(0, np.int32))
    for token in tokens:
        grown.extend([token])
        assert len(grown.draft(most)) in (0, most)
    assert grown.draft(most) == PromptLookup(np.array(tokens, np.int32)).draft(most)


def test_a_lookup_that_is_never_asked_indexes_nothing_and_a_long_prompt_takes_several_drafts() -> None:
    lookup = PromptLookup(np.tile(np.arange(100, dtype=np.int32), 100))
    lookup.extend([0, 1, 2])
    assert (lookup._indexed, lookup._after) == (0, {})
    drafts = [lookup.draft(2) for _ in range(3)]
    assert drafts == [[], [], [3, 4]]


def paced(cost: float, chance: float, steps: int, seed: int = 0) -> tuple[float, int]:
    """Tokens a second of a made-up model that takes 1 s a step and `cost` s a guess, and how many guesses were made."""
    random, now, gained, drafted = np.random.default_rng(seed), 0.0, 0, 0
    pace = Pace(lambda: now)
    now = 1.0
    for _ in range(steps):
        pace.begin()
        guesses = pace.tokens
        accepted = 0
        while accepted < guesses and random.random() < chance:
            accepted += 1
        now += 1.0 + cost * guesses
        pace.end(guesses, accepted, accepted + 1)
        gained += accepted + 1
        drafted += guesses
    return gained / (now - 1.0), drafted


def test_guesses_grow_long_where_they_hold_and_cost_little() -> None:
    assert paced(0.02, 1.0, 300)[0] > 15
    assert paced(0.02, 0.9, 300)[0] > 4


@pytest.mark.parametrize("seed", range(5))
def test_guessing_stops_where_guesses_fail(seed: int) -> None:
    speed, drafted = paced(0.5, 0.02, 1000, seed)
    assert speed > 0.9
    assert drafted < 100


@pytest.mark.parametrize("seed", range(5))
def test_guessing_stops_where_a_guess_costs_as_much_as_a_step(seed: int) -> None:
    speed, drafted = paced(1.0, 0.8, 1000, seed)
    assert speed > 0.9
    assert drafted < 200


def test_guessing_is_taken_up_again_when_guesses_begin_to_hold() -> None:
    pace = Pace(lambda: 0.0)
    for _ in range(200):
        pace.end(pace.tokens, 0, 1)
    assert pace.tokens == 0
    for _ in range(3000):
        pace.end(pace.tokens, pace.tokens, pace.tokens + 1)
    assert pace.tokens == MAX_DRAFT_TOKENS


def test_an_answer_whose_guesses_fail_is_hardly_drafted_for(loaded: Models) -> None:
    vocabulary, prompt = loaded["llama"].vocabulary, np.array(LOOP, np.int32)
    request = Generation((), Sampling(temperature=1.0, seed=1, max_tokens=400))
    target = markov(vocabulary.size, never=vocabulary.end_ids)
    said = run(Answer(request, vocabulary, prompt, Stubborn([999] * 32)), target, LOOP)
    assert len(said.tokens) == 400
    assert said.drafted < 100
    assert said.accepted == 0


@pytest.mark.parametrize("architecture", gguf_models.ARCHITECTURES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_an_engine_says_the_same_with_guesses_as_without(
    bench: Callable[..., Bench], architecture: str, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature, max_tokens=100, seed=3)
    request = Generation((Segment(Origin.USER, f"{words(0, 12)} " * 20),), sampling)
    plain, drafted = bench(architecture, speculate_below_streams=0), bench(architecture, speculate_below_streams=1)
    assert drafted.answer(request)[0] == plain.answer(request)[0]
    assert plain.engine.stats.drafted_tokens_total == 0
    assert temperature or drafted.engine.stats.accepted_tokens_total > 0


@pytest.mark.parametrize("kind", ["recurrent", "hybrid"])
def test_nothing_is_drafted_for_a_state_that_cannot_go_back(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    request = Generation((Segment(Origin.USER, f"{words(0, 12)} " * 20),), Sampling(temperature=0.0, max_tokens=50))
    expected = bench("llama").answer(request)[0]
    monkeypatch.setattr(f"appliance.infer.llama.native.llama_model_is_{kind}", lambda _: True)
    made = bench("llama")
    assert made.answer(request)[0] == expected
    assert made.engine.stats.drafted_tokens_total == 0


class Computed:
    """A real model as a target: its context computes the whole sequence anew at each row."""

    def __init__(self, model: llama.Model) -> None:
        self.context = llama.Context(model, cells=512, sequences=1, batch_tokens=512, threads=1)

    def __call__(self, tokens: Sequence[int]) -> Floats:
        self.context.trim(Trim(0, 0))
        (row,) = self.context.compute([Chunk(0, 0, 0, np.array(tokens, np.int32), 1)])
        return self.context.logits(row).copy()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, loaded: Models) -> Iterator[llama.Model]:
    """Of the same vocabulary as the llama model, with other weights."""
    path: Path = tmp_path_factory.mktemp("draft") / "other.gguf"
    model = llama.Model(str(gguf_models.write_llama(path, seed=7)))
    yield model
    model.close()


def draft_model(model: llama.Model, target: llama.Model, sequences: int = 2) -> DraftModel:
    return DraftModel(model, target.vocabulary, cells=512, sequences=sequences, batch_tokens=16, threads=1)


def answers(draft: DraftModel, target: llama.Model, sampling: Sampling) -> tuple[Said, Said]:
    """Plain, and with the draft model."""
    vocabulary, request = target.vocabulary, Generation((), sampling)
    prompt = np.array(vocabulary.encode_more(" bace dido bemi" * 8), np.int32)
    computed = Computed(target)
    try:
        plain = run(Answer(request, vocabulary, prompt), computed, prompt.tolist())
        ahead = draft.begin(prompt, sampling)
        return plain, run(Answer(request, vocabulary, prompt, ahead), computed, prompt.tolist())
    finally:
        computed.context.close()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draft_model_changes_no_token_and_its_like_is_nearly_always_right(loaded: Models, sampling: Sampling) -> None:
    draft = draft_model(loaded["llama"], loaded["llama"])
    plain, drafted = answers(draft, loaded["llama"], sampling)
    draft.close()
    assert drafted.tokens == plain.tokens
    assert drafted.accepted >= 0.9 * drafted.drafted > 0
    assert drafted.steps < plain.steps / 2


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draft_model_that_is_wrong_changes_no_token(loaded: Models, other: llama.Model, sampling: Sampling) -> None:
    draft = draft_model(other, loaded["llama"])
    plain, drafted = answers(draft, loaded["llama"], sampling)
    draft.close()
    assert drafted.tokens == plain.tokens
    assert drafted.accepted < drafted.drafted


def test_a_draft_model_guesses_for_as_many_sequences_as_it_holds(loaded: Models) -> None:
    draft = draft_model(loaded["llama"], loaded["llama"], sequences=2)
    prompt = np.array([400, 401, 402], np.int32)
    first, second, third = (draft.begin(prompt, SAMPLINGS[0]) for _ in range(3))
    guess = first.draft(4)
    assert len(guess) == 4
    assert second.draft(4) == guess
    assert third.draft(4) == []
    first.close()
    assert third.draft(4) == guess
    draft.close()


class Counted(list[int]):
    """Tells how many of its items were read by index or slice."""

    reads = 0

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        self.reads += len(found) if isinstance(at, slice) else 1
        return found


def test_a_draft_reads_only_what_is_new_of_a_long_sequence(loaded: Models) -> None:
    draft = draft_model(loaded["llama"], loaded["llama"], sequences=1)
    ahead = draft.begin(np.arange(400, 600, dtype=np.int32), SAMPLINGS[0])
    while not (guess := ahead.draft(4)):
        pass
    ahead.extend([*guess[:2], 400])
    ahead._tokens = tokens = Counted(ahead._tokens)  # type: ignore[attr-defined]
    assert len(ahead.draft(4)) == 4
    assert 0 < tokens.reads < 20
    draft.close()


def test_a_draft_model_guesses_nothing_for_a_sequence_that_outgrows_it(loaded: Models) -> None:
    draft = draft_model(loaded["llama"], loaded["llama"], sequences=2)
    assert draft.begin(np.full(255, 400, np.int32), SAMPLINGS[0]).draft(4) == []
    draft.close()


def test_a_draft_model_takes_in_a_long_prompt_a_batch_at_a_time(loaded: Models) -> None:
    draft = draft_model(loaded["llama"], loaded["llama"])
    ahead = draft.begin(np.arange(400, 440, dtype=np.int32), SAMPLINGS[0])
    assert [len(ahead.draft(4)) for _ in range(4)] == [0, 0, 4, 4]
    draft.close()


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_a_draft_model_of_another_vocabulary_is_refused(loaded: Models, architecture: str) -> None:
    with pytest.raises(ModelUnsupported, match=r"^The draft model cannot draft for this model: its vocabulary has "):
        draft_model(loaded[architecture], loaded["llama"])
