from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import InvalidArgument
from appliance.infer.sampling import StopFilter, check, label_logprobs
from appliance.types import Sampling


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
