from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api import messages, requests
from appliance.errors import InvalidArgument
from appliance.gen.v1 import inference_pb2 as pb
from appliance.infer.sampling import check
from appliance.types import SAMPLING_RANGES


def test_names_give_their_ids() -> None:
    assert requests.collection("collections/hand-book") == "hand-book"
    assert requests.document("collections/a/documents/5f2c") == ("a", "5f2c")
    assert requests.job("jobs/7f3a") == "7f3a"
    assert requests.model("models/qwen3-14b_q4.gguf") == "qwen3-14b_q4.gguf"
    assert requests.model_or_default("") == ""


@pytest.mark.parametrize(
    "name", ["", "a", "collections/", "collections/../x", "collections/A", "collections/a/b", "jobs/a"]
)
def test_a_name_of_another_shape_is_refused_with_an_example(name: str) -> None:
    with pytest.raises(InvalidArgument, match="collections/handbook"):
        requests.collection(name)


@pytest.mark.parametrize("name", ["", "-docs", "docs-", "Docs", "a/b", "a_b", "x" * 64, "a\n"])
def test_a_collection_is_never_made_under_a_name_that_no_call_can_use(name: str) -> None:
    with pytest.raises(InvalidArgument, match="collection_id"):
        requests.collection_id(name)
    with pytest.raises(InvalidArgument, match="collections/handbook"):
        requests.collection(f"collections/{name}")
    assert requests.collection_id("hand-book") == requests.collection("collections/hand-book") == "hand-book"


@given(st.integers(0, 50), st.integers(0, 12))
def test_pages_put_together_give_the_whole_listing(count: int, size: int) -> None:
    items, seen, token = list(range(count)), list[int](), ""
    while True:
        part, token = requests.page(items, size, token)
        seen += part
        if not token:
            break
    assert seen == items


@pytest.mark.parametrize("token", ["!", "bm8=", "é", "LTE="])
def test_a_page_token_of_somebody_elses_making_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument, match="page_token"):
        requests.page([1, 2, 3], 1, token)


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="page_size"):
        requests.page([1], -1, "")


def test_sampling_that_is_silent_takes_our_defaults() -> None:
    assert requests.sampling(pb.Sampling()).max_tokens > 0
    assert requests.sampling(pb.Sampling(temperature=0.0)).temperature == 0.0


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Sampling(temperature=-1), "temperature"),
        (pb.Sampling(temperature=float("nan")), "temperature"),
        (pb.Sampling(top_p=0), "top_p"),
        (pb.Sampling(top_k=-1), "top_k"),
        (pb.Sampling(min_p=1), "min_p"),
        (pb.Sampling(repeat_penalty=0), "repeat_penalty"),
        (pb.Sampling(max_tokens=0), "max_tokens"),
        (pb.Sampling(stop=["a"] * 9), "stop"),
        (pb.Sampling(stop=[""]), "stop"),
        (pb.Sampling(stop=["x" * 257]), "stop"),
    ],
)
def test_a_sampling_field_out_of_range_is_named(message: pb.Sampling, field: str) -> None:
    with pytest.raises(InvalidArgument, match=field):
        requests.sampling(message)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field, (low, high) in SAMPLING_RANGES.items()
        for value in (low, high, high + 1)
        if value < 2**32
    ],
)
def test_the_worker_takes_what_the_front_door_admits_and_no_more(field: str, value: float) -> None:
    message = pb.Sampling(**{field: value})  # type: ignore[arg-type]
    least, most = SAMPLING_RANGES[field]
    expected = (
        nullcontext() if least <= getattr(message, field) <= most else pytest.raises(InvalidArgument, match=field)
    )
    with expected:
        requests.sampling(message)
    with expected:
        check(messages.sampling(message))


def test_text_that_is_blank_or_too_long_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="question"):
        requests.text(" \n", "question", 10)
    with pytest.raises(InvalidArgument, match="11 characters; at most 10"):
        requests.text("x" * 11, "question", 10)
