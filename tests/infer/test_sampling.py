from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from appliance.errors import InvalidArgument
from appliance.infer.sampling import (
    LEAST_LOGPROB,
    PENALTY_WINDOW_TOKENS,
    Mask,
    Sampler,
    StopFilter,
    check,
    label_logprobs,
    logprobs,
)
from appliance.types import MAX_TOP_LOGPROBS, Floats, Sampling
from tests.infer import reference

LOGITS = npst.arrays(
    np.float32,
    st.integers(1, 200),
    elements=st.one_of(
        st.sampled_from([0.0, 1.0, 1.0, -1.0, 2.5, float("inf"), float("-inf"), float("nan")]),
        st.floats(-30, 30, width=32),
    ),
)
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.one_of(st.just(0.0), st.floats(0.1, 3.0)),
    top_k=st.one_of(st.just(0), st.integers(1, 250)),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0.0, 0.9)),
    repeat_penalty=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
    presence_penalty=st.one_of(st.just(0.0), st.floats(-2.0, 2.0)),
    frequency_penalty=st.one_of(st.just(0.0), st.floats(-2.0, 2.0)),
    seed=st.integers(0, 2**32 - 1),
)


def mask_of(allowed: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Mask:
    padded = np.zeros(-(-len(allowed) // 32) * 32, np.uint8)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.uint32)


@settings(max_examples=400, deadline=None)
@given(
    LOGITS,
    SAMPLINGS,
    st.lists(st.integers(0, 220), max_size=90),
    st.integers(0, 2**31),
    st.one_of(st.none(), st.randoms(use_true_random=False)),
)
def test_the_native_draw_is_the_reference_draw(
    logits: Floats, sampling: Sampling, recent: list[int], position: int, masked: object
) -> None:
    allowed = None
    if masked is not None:
        allowed = np.array([masked.random() < 0.3 for _ in logits], np.bool_)  # type: ignore[attr-defined]
    before = logits.copy()
    mask = None if allowed is None else mask_of(allowed)
    drawn = Sampler(sampling).draw(logits, position, recent, mask)
    assert drawn == reference.draw(logits, sampling, position, recent[-PENALTY_WINDOW_TOKENS:], allowed)
    np.testing.assert_array_equal(logits, before, "the model's own logits are not touched")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), SAMPLINGS)
def test_the_native_draw_is_the_reference_draw_over_a_whole_vocabulary(seed: int, sampling: Sampling) -> None:
    random = np.random.default_rng(seed)
    logits = np.round(random.standard_normal(32_000).astype(np.float32) * 3, int(random.integers(0, 5)))
    recent = random.integers(0, 32_000, 64).tolist()
    assert Sampler(sampling).draw(logits, 7, recent) == reference.draw(logits, sampling, 7, recent, None)


def test_the_noise_is_philox_by_its_published_test_vectors() -> None:
    assert reference.philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert reference.philox(*pi) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.07, 0.03], np.float32))
    everything = Sampling(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, seed=5)
    sampler, draws = Sampler(everything), 20_000
    counts = np.bincount([sampler.draw(logits, position) or 0 for position in range(draws)], minlength=5)
    weights = np.exp(logits.astype(np.float64) / temperature)
    expected = draws * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 18.5, "chi-square, 4 degrees of freedom, p = 0.001"


def test_seeds_and_positions_draw_independently_of_one_another() -> None:
    logits = np.zeros(2, np.float32)
    flat = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    draws = np.array(
        [[Sampler(replace(flat, seed=seed)).draw(logits, position) for position in range(200)] for seed in range(100)],
        np.int64,
    )
    signs = 2 * draws - 1
    assert abs(signs.mean()) < 0.03
    assert abs((signs[1:] * signs[:-1]).mean()) < 0.03
    assert abs((signs[:, 1:] * signs[:, :-1]).mean()) < 0.03


@settings(max_examples=200, deadline=None)
@given(LOGITS, SAMPLINGS, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_a_draw_that_a_mask_allows_is_the_draw_with_the_mask(
    logits: Floats, sampling: Sampling, position: int, random: object
) -> None:
    allowed = np.array([random.random() < 0.5 for _ in logits], np.bool_)  # type: ignore[attr-defined]
    sampler = Sampler(sampling)
    free, masked = sampler.draw(logits, position), sampler.draw(logits, position, (), mask_of(allowed))
    if free is not None and allowed[free]:
        assert masked == free
    assert masked is None or allowed[masked]


def test_no_token_is_drawn_where_no_logit_is_a_number() -> None:
    for bad in (np.nan, -np.inf):
        for temperature in (0.0, 1.0):
            assert Sampler(Sampling(temperature=temperature)).draw(np.full(70, bad, np.float32), 0) is None


def test_a_number_is_drawn_among_logits_that_are_none() -> None:
    logits = np.full(70, np.nan, np.float32)
    logits[65] = -1e30
    for temperature in (0.0, 1.0):
        assert Sampler(Sampling(temperature=temperature)).draw(logits, 0) == 65
    logits[3] = np.inf
    for temperature in (0.0, 1.0):
        assert Sampler(Sampling(temperature=temperature)).draw(logits, 0) == 3


def test_penalties_look_at_the_last_tokens_only() -> None:
    logits = np.array([2.0, 1.5, 0.0], np.float32)
    sampler = Sampler(Sampling(temperature=0.0, presence_penalty=1.0))
    assert sampler.draw(logits, 0, [0] + [2] * (PENALTY_WINDOW_TOKENS - 1)) == 1
    assert sampler.draw(logits, 0, [0] + [2] * PENALTY_WINDOW_TOKENS) == 0


@settings(max_examples=200, deadline=None)
@given(LOGITS, st.integers(0, 2**31), st.integers(0, MAX_TOP_LOGPROBS))
def test_logprobs_are_those_of_the_logits_as_they_are(logits: Floats, pick: int, top: int) -> None:
    chosen = pick % len(logits)
    value, likeliest = logprobs(logits, chosen, top)
    numbers = reference.penalize(logits, Sampling(), ())
    order = [int(token) for token in np.lexsort((np.arange(len(logits)), -numbers)) if numbers[token] > -np.inf]
    expected = np.maximum(reference.log_softmax(logits), LEAST_LOGPROB)
    assert value == pytest.approx(expected[chosen], abs=1e-6)
    assert [token for token, _ in likeliest] == order[:top]
    assert [value for _, value in likeliest] == pytest.approx(expected[order[:top]].tolist(), abs=1e-6)


@given(
    text=st.text(alphabet="abc", max_size=40),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 40), max_size=8),
)
def test_what_is_streamed_is_the_text_before_the_stop_that_is_complete_first_however_it_was_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = StopFilter(tuple(stops))
    shown = "".join(stream.feed(text[start:end]) for start, end in pairwise(edges))
    assert not any(stop in shown for stop in stops)
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    assert stream.stopped == bool(found)
    assert shown + stream.flush() == (text[: min(found)[1]] if found else text)


def test_a_part_of_a_stop_string_is_never_shown() -> None:
    stream = StopFilter(("<|im_end|>",))
    assert stream.feed("Yes.<|im") == "Yes."
    assert stream.feed("_end|") == ""
    assert stream.feed("> more") == ""
    assert stream.stopped
    assert stream.flush() == ""


def test_what_only_looked_like_a_stop_string_is_shown_after_all() -> None:
    stream = StopFilter(("END",))
    assert stream.feed("the E") == "the "
    assert stream.feed("N") == ""
    assert stream.feed("E") == "EN"
    assert stream.flush() == "E"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 5.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", float("inf")),
        ("min_p", 1.0),
        ("top_k", -1),
        ("repeat_penalty", 0.0),
        ("max_tokens", 0),
        ("seed", 2**32),
        ("stop", ("",)),
        ("stop", ("x" * 257,)),
        ("stop", tuple("abcdefghi")),
    ],
)
def test_a_parameter_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        check(replace(Sampling(), **{field: value}))  # type: ignore[arg-type]


def test_the_defaults_and_the_edges_are_in_range() -> None:
    check(Sampling())
    check(Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=2**32 - 1, max_tokens=1, stop=("x" * 256,)))


def test_label_logprobs_are_a_distribution_over_the_labels_alone() -> None:
    logits = np.array([5.0, 100.0, 3.0, 4.0], np.float32)
    logprobs = label_logprobs(logits, np.array([2, 0], np.int32))
    assert np.exp(logprobs).sum() == pytest.approx(1.0)
    assert logprobs[1] - logprobs[0] == pytest.approx(2.0)
    assert logits[1] == 100.0


def test_label_logprobs_are_numbers_whatever_the_logits_are() -> None:
    logits = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)
    for labels in ([0, 2], [1, 3], [0, 1, 2, 3]):
        logprobs = label_logprobs(logits, np.array(labels, np.int32))
        assert np.isfinite(logprobs).all()
        assert np.exp(logprobs).sum() == pytest.approx(1.0)


def test_a_stop_filter_is_linear_in_the_text_also_where_it_holds_back_all_the_time() -> None:
    stream = StopFilter(("a" * 255 + "b", "a" * 200 + "c"))
    shown = "".join(stream.feed("a" * 50) for _ in range(1000)) + stream.flush()
    assert shown == "a" * 50_000
    assert not stream.stopped
