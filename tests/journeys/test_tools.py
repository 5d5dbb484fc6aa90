"""Tools, forms and log-probabilities through a whole box, with random weights: only what is forced is sure."""

import json
import re
from collections.abc import Iterator

import pytest

from appliance import errors
from appliance.client import Client
from appliance.types import (
    ChatPiece,
    Constraint,
    ConstraintKind,
    Finish,
    FinishReason,
    JobState,
    Message,
    Sampling,
    Speaker,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
)
from tests import gguf_models
from tests.daemon import running

pytestmark = pytest.mark.long
HELLO = [Message(Speaker.USER, "How is the weather?")]
CITY = {"$ref": "#/$defs/city"}
WEATHER = Tool(
    "weather",
    "The weather of a city.",
    json.dumps(
        {
            "$defs": {"city": {"enum": ["Bern", "Basel"]}},
            "type": "object",
            "properties": {"city": CITY, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        }
    ),
)
REQUIRED = ToolChoice(ToolMode.REQUIRED)
SAMPLING = Sampling(temperature=1.0, seed=3, max_tokens=200)


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def client(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Client]:
    """Of a box with one chat model, by whose family prompts are written."""
    folder = tmp_path_factory.mktemp("box")
    write = {"qwen2": gguf_models.write_qwen2, "llama": gguf_models.write_llama}[request.param]
    model = write(folder / "model.gguf")
    with (
        running(folder / "data", "--model-context-tokens=2048", "--inference-threads=1") as box,
        box.client() as client,
    ):
        assert [job.state for job in client.watch_job(client.import_model(str(model)).id)][-1] is JobState.SUCCEEDED
        yield client


def text(pieces: list[ChatPiece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


def test_a_forced_call_satisfies_the_tools_schema_and_its_result_goes_back(client: Client) -> None:
    call, finish = client.chat(HELLO, sampling=SAMPLING, tools=[WEATHER, Tool("time")], tool_choice=REQUIRED)
    assert isinstance(call, ToolCall)
    arguments = json.loads(call.arguments)
    if call.name == "weather":
        assert arguments["city"] in ("Bern", "Basel")
        assert 1 <= arguments["days"] <= 9
    else:
        assert (call.name, type(arguments)) == ("time", dict)
    assert isinstance(finish, Finish)
    assert finish.reason is FinishReason.TOOL_CALLS

    talk = [*HELLO, Message(Speaker.ASSISTANT, "", (call,)), Message(Speaker.TOOL, "Sunny.", tool_call_id=call.id)]
    *_, end = client.chat(talk, sampling=Sampling(max_tokens=4), tools=[WEATHER])
    assert isinstance(end, Finish)
    assert end.usage.input_tokens > finish.usage.input_tokens


def test_a_named_tool_is_the_one_that_is_called(client: Client) -> None:
    for seed in range(4):
        call, _ = client.chat(
            HELLO,
            sampling=Sampling(seed=seed, max_tokens=200),
            tools=[WEATHER, Tool("time")],
            tool_choice=ToolChoice(ToolMode.REQUIRED, "weather"),
        )
        assert isinstance(call, ToolCall)
        assert call.name == "weather"


def test_a_call_that_does_not_fit_is_text_and_ends_by_length(client: Client) -> None:
    pieces = list(client.chat(HELLO, sampling=Sampling(max_tokens=3), tools=[WEATHER], tool_choice=REQUIRED))
    assert not any(isinstance(piece, ToolCall) for piece in pieces)
    assert isinstance(pieces[-1], Finish)
    assert pieces[-1].reason is FinishReason.LENGTH


def test_an_answer_has_the_form_that_was_asked_for_with_its_log_probabilities(client: Client) -> None:
    grammar = Constraint(ConstraintKind.GBNF, 'root ::= ("yes" | "no") [0-9]')
    pieces = list(client.chat(HELLO, sampling=SAMPLING, constraint=grammar, top_logprobs=2))
    assert re.fullmatch("(yes|no)[0-9]", text(pieces))
    choices = [choice for piece in pieces if isinstance(piece, Text) for choice in piece.choices]
    assert b"".join(choice.chosen.piece for choice in choices).decode() == text(pieces)
    assert all(choice.chosen.logprob <= 0 and len(choice.top) == 2 for choice in choices)

    schema = Constraint(ConstraintKind.JSON_SCHEMA, '{"enum": [{"ok": true}, {"ok": false}]}')
    assert "ok" in json.loads(text(list(client.chat(HELLO, sampling=SAMPLING, constraint=schema))))


def test_a_schema_that_nothing_satisfies_is_refused_by_name(client: Client) -> None:
    schema = Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "integer", "minimum": 5, "maximum": 4}')
    with pytest.raises(errors.InvalidArgument, match="response_format"):
        list(client.chat(HELLO, constraint=schema))
    with pytest.raises(errors.InvalidArgument, match=r"constraint|response_format"):
        list(client.chat(HELLO, constraint=Constraint(ConstraintKind.GBNF, "root ::= missing")))
