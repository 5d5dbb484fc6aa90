"""What prompts say of tools, family by family; golden/FAMILY.txt is the whole prompt."""

from pathlib import Path

import pytest

from appliance.errors import InvalidArgument
from appliance.tenancy.compose import ScaffoldComposer
from appliance.tenancy.scaffolds import SCAFFOLDS
from appliance.tenancy.tools import QUOTED
from appliance.types import Message, Origin, Speaker, Tool, ToolCall
from tests.tenancy.test_compose import said, text

GOLDEN = Path(__file__).parent / "golden"
S, U, A, T = Speaker.SYSTEM, Speaker.USER, Speaker.ASSISTANT, Speaker.TOOL
WEATHER = Tool(
    "weather",
    "The weather of a city.",
    '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}',
)
TIME = Tool("time")
CALLS = (ToolCall("a1b2c3d4e", "weather", '{"city":"Zürich"}'), ToolCall("f5g6h7i8j", "time", "{}"))
TALK = [
    Message(S, "Be brief."),
    Message(U, "Hi"),
    Message(A, "Hello!"),
    Message(U, "How is Zürich?"),
    Message(A, "", CALLS),
    Message(T, 'Sunny, "22" degrees', tool_call_id="a1b2c3d4e"),
    Message(T, "noon", tool_call_id="f5g6h7i8j"),
    Message(A, "Sunny at noon."),
    Message(U, "And Bern?"),
]


@pytest.fixture
def composer() -> ScaffoldComposer:
    return ScaffoldComposer(secret=b"golden")


@pytest.mark.parametrize("family", SCAFFOLDS)
def test_tools_calls_and_results_are_written_as_the_family_knows_them(composer: ScaffoldComposer, family: str) -> None:
    written = text(composer.chat(family, TALK, [WEATHER, TIME]))
    assert written == (GOLDEN / f"{family}.txt").read_text()


def test_every_golden_prompt_is_of_a_family() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(SCAFFOLDS)


@pytest.mark.parametrize("family", SCAFFOLDS)
def test_tools_are_the_tenants_words_and_results_are_retrieved(composer: ScaffoldComposer, family: str) -> None:
    segments = composer.chat(family, TALK, [WEATHER, TIME])
    assert "The weather of a city." in said(segments, Origin.TENANT)
    assert "Sunny," in said(segments, Origin.RETRIEVED)
    assert said(segments, Origin.RETRIEVED).endswith("noon")
    trusted = said(segments, Origin.SCAFFOLD) + said(segments, Origin.SYSTEM)
    assert not any(word in trusted for word in ("weather", "Zürich", "Sunny", "noon", "a1b2c3d4e", "Be brief"))
    assert QUOTED in said(segments, Origin.SYSTEM)


@pytest.mark.parametrize("family", [name for name, one in SCAFFOLDS.items() if one.literals or one.tools.marks])
def test_hostile_tools_and_results_spell_no_mark_in_one_piece(composer: ScaffoldComposer, family: str) -> None:
    marks = [*SCAFFOLDS[family].literals, *SCAFFOLDS[family].tools.marks]
    hostile = "".join(marks) + '"}]\n'
    talk = [
        Message(U, hostile),
        Message(A, hostile, (ToolCall("1", "f", "{}"),)),
        Message(T, hostile, tool_call_id="1"),
    ]
    segments = composer.chat(family, talk, [Tool("f", hostile)])
    pieces = [segment.text for segment in segments if segment.origin is not Origin.SCAFFOLD]
    assert not any(mark in piece for mark in marks for piece in pieces)
    assert said(segments, Origin.USER).count("".join(marks)) == 2


def test_a_result_cannot_know_its_marker_and_a_conversation_keeps_its_own(composer: ScaffoldComposer) -> None:
    talk = TALK[3:7]
    again, other = composer.chat("chatml", talk), ScaffoldComposer().chat("chatml", talk)
    assert composer.chat("chatml", talk) == again != other
    longer = composer.chat("chatml", [*talk, Message(A, "Sunny."), Message(U, "Sure?")])
    assert longer[: len(again) - 1] == again[:-1]  # the cached prefix, up to the assistant's opening
    assert longer[len(again) - 1].text.startswith(again[-1].text)


def test_without_tools_nothing_is_said_of_them(composer: ScaffoldComposer) -> None:
    written = text(composer.chat("chatml", TALK[:4]))
    assert "tool" not in written
    assert QUOTED not in written


def test_results_are_marked_as_quoted_also_where_tools_are_no_longer_offered(composer: ScaffoldComposer) -> None:
    written = text(composer.chat("chatml", TALK))
    assert QUOTED in written
    assert "<tools>" not in written


def test_half_a_surrogate_pair_in_arguments_is_written_as_valid_text(composer: ScaffoldComposer) -> None:
    talk = [Message(U, "Hi"), Message(A, "", (ToolCall("1", "f", '{"x": "\\ud800"}'),)), Message(T, "", (), "1")]
    assert '{"x": "?"}' in text(composer.chat("chatml", talk))


ASKED = Message(A, "", CALLS)


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([Message(U, "Hi"), ASKED], "messages: must end with the results"),
        ([Message(U, "Hi"), ASKED, Message(U, "Well?")], r"messages\[2\]: is user; tool must speak"),
        ([Message(U, "Hi"), Message(T, "x", (), "1")], r"messages\[1\]: is tool; assistant must speak"),
        ([Message(U, "Hi"), ASKED, Message(T, "x", (), "zzz")], r"messages\[2\].tool_call_id: answers no open call"),
        (
            [Message(U, "Hi"), ASKED, Message(T, "x", (), "a1b2c3d4e"), Message(T, "x", (), "a1b2c3d4e")],
            r"messages\[3\].tool_call_id: answers no open call",
        ),
        ([Message(U, "Hi"), ASKED, Message(T, "x", (), "a1b2c3d4e")], "must end with the results"),
        ([Message(U, "Hi", CALLS)], r"messages\[0\].tool_calls: only the assistant"),
        ([Message(U, "Hi", (), "1")], r"messages\[0\].tool_call_id: only a tool"),
        ([Message(U, "Hi"), Message(A, "", (ToolCall("<s>", "f", "{}"),))], r"\[1\].tool_calls\[0\].id: must be"),
        ([Message(U, "Hi"), Message(A, "", (CALLS[0], CALLS[0]))], r"tool_calls\[1\].id: must be"),
        ([Message(U, "Hi"), Message(A, "", (ToolCall("1", "f", "[]"),))], r"arguments: must be a JSON object"),
        ([Message(U, "Hi"), Message(A, "", (ToolCall("1", "f", '{"a": NaN}'),))], r"arguments: must be a JSON object"),
        ([Message(U, "Hi"), Message(A, "", (ToolCall("1", "f", '{"a": 1e999}'),))], "arguments: must be a JSON object"),
        ([Message(U, "Hi"), Message(A, "", (ToolCall("1", "f", '{"a":' * 9999),))], "arguments: must be a JSON object"),
        ([Message(U, "Hi"), Message(A, "", ())], r"messages\[1\]: must not be empty"),
    ],
)
def test_calls_and_results_that_make_no_sense_are_refused(
    composer: ScaffoldComposer, messages: list[Message], named: str
) -> None:
    with pytest.raises(InvalidArgument, match=named):
        composer.chat("chatml", messages)
