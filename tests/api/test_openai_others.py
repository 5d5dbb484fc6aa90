"""/v1/completions, /v1/embeddings and /v1/models by the real `openai` client."""

from typing import Any

import numpy as np
import openai
import pytest

from appliance.errors import QueueFull
from appliance.types import AppScope, Origin, Segment, Text, TokenChoice, TokenLogprob
from tests.api.http_box import STOP, HttpBox
from tests.fakes import WordEncoders

# --- completions ------------------------------------------------------------------------------------------------------


async def test_a_raw_text_is_gone_on_with(served: HttpBox) -> None:
    served.generator.say(" upon", " a time")
    answer = await served.openai().completions.create(model="writer", prompt="Once", max_tokens=5, stop="END")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" upon a time", "stop")
    asked = served.generator.asked[0]
    assert asked.prompt == (Segment(Origin.USER, "Once"),)
    assert (asked.sampling.max_tokens, asked.sampling.stop) == (5, ("END",))


async def test_several_prompts_are_answered_in_their_order_with_one_usage(served: HttpBox) -> None:
    served.generator.say("a")
    served.generator.say("b")
    answer = await served.openai().completions.create(model="writer", prompt=["A", "B"])
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "a"), (1, "b")]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 26


async def test_one_prompt_that_fails_fails_the_call_and_frees_the_rest(served: HttpBox) -> None:
    served.generator.say("a")
    served.generator.pieces.append([QueueFull("64 wait.")])
    with pytest.raises(openai.RateLimitError):
        await served.openai().completions.create(model="writer", prompt=["A", "B"])
    assert served.generator.closed == 2


async def test_a_streamed_completion_names_the_prompt_of_each_piece(served: HttpBox) -> None:
    served.generator.say("a", "b")
    served.generator.say("c")
    stream = await served.openai().completions.create(
        model="writer", prompt=["A", "B"], stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    pieces = [(chunk.choices[0].index, chunk.choices[0].text) for chunk in chunks if chunk.choices]
    assert pieces == [(0, "a"), (0, "b"), (0, ""), (1, "c"), (1, "")]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6


async def test_log_probabilities_of_completions_have_the_old_form(served: HttpBox) -> None:
    tokens = [
        TokenChoice(TokenLogprob(n, text, -n), (TokenLogprob(9, b"z", -9.0),)) for n, text in ((1, b"ab"), (2, b"c"))
    ]
    served.generator.pieces.append([Text("abc", tuple(tokens)), STOP])
    answer = await served.openai().completions.create(model="writer", prompt="x", logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.token_logprobs) == (["ab", "c"], [-1, -2])
    assert (logprobs.text_offset, logprobs.top_logprobs) == ([0, 2], [{"z": -9.0}, {"z": -9.0}])


@pytest.mark.parametrize(
    "given",
    [
        {"echo": True},
        {"suffix": "x"},
        {"n": 2},
        {"best_of": 2},
        {"prompt": [1, 2, 3]},
        {"prompt": []},
        {"prompt": ""},
        {"logprobs": 6},
        {"extra_body": {"use_beam_search": True}},
        {"extra_body": {"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}},
    ],
)
async def test_what_a_completion_cannot_be_is_refused(served: HttpBox, given: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await served.openai().completions.create(**({"model": "writer", "prompt": "x"} | given))
    assert refused.value.param in {*given, "use_beam_search", "grammar"}
    assert served.generator.asked == []


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["float", "base64", None])
async def test_vectors_are_the_embedders_own_in_their_order(served: HttpBox, form: Any) -> None:
    texts = ["badges expire", "visitors sign"]
    given = {"encoding_format": form} if form else {}
    answer = await served.openai().embeddings.create(model="minilm", input=texts, **given)
    found: Any = [item.embedding for item in answer.data]
    if form == "base64":  # asked for by name the client hands it over as it came
        import base64

        found = [np.frombuffer(base64.b64decode(text), "<f4") for text in found]
    np.testing.assert_allclose(np.array(found), served.embedder.embed(texts), rtol=1e-6)
    assert answer.usage.prompt_tokens == 4


async def test_an_imported_embedder_answers_by_its_name(served: HttpBox) -> None:
    given: Any = {"dimensions": 8, "encoding_format": "float"}
    answer = await served.openai().embeddings.create(model="bge", input=["badge"], **given)
    np.testing.assert_allclose(answer.data[0].embedding, WordEncoders.embedder.embed(["badge"])[0], rtol=1e-6)
    assert (answer.model, answer.usage.prompt_tokens) == ("bge", 3)
    client = served.openai(served.key(AppScope.INFERENCE, models=["minilm"]))
    with pytest.raises(openai.PermissionDeniedError):
        await client.embeddings.create(model="bge", input="badge")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"input": []}, openai.BadRequestError),
        ({"input": [1, 2]}, openai.BadRequestError),
        ({"input": ""}, openai.BadRequestError),
        ({"input": ["x"] * 257}, openai.BadRequestError),
        ({"input": ["x" * 50_000] * 21}, openai.BadRequestError),
        ({"dimensions": 8}, openai.BadRequestError),
        ({"model": "judge"}, openai.NotFoundError),
        ({"model": "bge", "dimensions": 9}, openai.BadRequestError),
        ({"model": "m" * 1_000_000}, openai.BadRequestError),
        ({"model": "ada"}, openai.NotFoundError),
        ({"extra_body": {"input_type": "query"}}, openai.BadRequestError),
    ],
)
async def test_what_cannot_be_embedded_is_refused(
    served: HttpBox, given: Any, error: type[openai.APIStatusError]
) -> None:
    with pytest.raises(error):
        await served.openai().embeddings.create(**({"model": "minilm", "input": "x"} | given))


# --- models -----------------------------------------------------------------------------------------------------------


async def test_the_models_are_those_that_a_caller_may_name(served: HttpBox) -> None:
    models = [model async for model in served.openai().models.list()]
    assert [model.id for model in models] == ["bge", "fast", "minilm", "style", "writer"]
    assert (await served.openai().models.retrieve("writer")).created == 1_795_132_800
    with pytest.raises(openai.NotFoundError):
        await served.openai().models.retrieve("starter")


async def test_a_key_for_some_models_sees_no_others(served: HttpBox) -> None:
    client = served.openai(served.key(AppScope.INFERENCE, models=["writer", "gone"]))
    assert [model.id async for model in client.models.list()] == ["writer"]
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("minilm")


async def test_a_model_is_left_out_only_where_the_key_opens_one(served: HttpBox) -> None:
    served.generator.say("x")
    one, two = (served.key(AppScope.INFERENCE, models=models) for models in (["writer"], ["minilm", "writer"]))
    hello: Any = {"model": openai.omit, "messages": [{"role": "user", "content": "Hi"}]}
    body = {"messages": hello["messages"]}
    async with served.http(one) as client:
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    async with served.http(two) as client:
        answer = await client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
