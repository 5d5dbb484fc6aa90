"""The vetted prompt scaffolds, as data: what stands around each turn in the prompts of a model family.

Each follows what the family was trained on, as `llm_chat_apply_template` in llama.cpp's src/llama-chat.cpp writes it;
the beginning-of-sequence token is the engine's to add. `models/scaffold.py` tells which one a model uses, by these
names.
"""

from dataclasses import dataclass, replace
from enum import Enum


@dataclass(frozen=True, slots=True)
class Around:
    """Scaffold text before and after a turn, or a part of one."""

    before: str
    after: str


class Place(Enum):
    """Where the list of tools stands."""

    SYSTEM_END = 1
    SYSTEM_START = 2
    BEFORE_FIRST_USER = 3
    BEFORE_LAST_USER = 4


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """How a family is told of tools, asks for calls, and is given what the calls gave back.

    offer: around the list of tools, which are JSON with `offer_indent`, `offer_between` them. calls: around the calls
    of a turn; call: around each, `call_between` them; a call is JSON with its arguments under `arguments`, and with its
    id where `call_ids`. result: around each result, "{id}" stands for the call's id; a JSON string where
    `result_quoted`. result_turn: the turn of one result; None: all of them stand in one turn of the user.

    opens, close: what begins a call in an answer, and what may end one; control tokens do not show in an answer. stops:
    where an answer goes on to invent a result. marks: what untrusted text must not spell.
    """

    offer: Around
    place: Place = Place.SYSTEM_END
    offer_indent: int | None = None
    offer_between: str = "\n"
    calls: Around = Around("", "")
    call: Around = Around("<tool_call>\n", "\n</tool_call>")
    call_between: str = "\n"
    call_ids: bool = False
    arguments: str = "arguments"
    result: Around = Around("<tool_response>\n", "\n</tool_response>")
    result_quoted: bool = False
    result_turn: Around | None = None
    opens: tuple[str, ...] = ("<tool_call>",)
    close: str = "</tool_call>"
    stops: tuple[str, ...] = ("<tool_response>",)
    marks: tuple[str, ...] = (
        "<tools>",
        "</tools>",
        "<tool_call>",
        "</tool_call>",
        "<tool_response>",
        "</tool_response>",
    )


# The format of NousResearch's Hermes function calling, in the words of Qwen's own template.
HERMES = ToolStyle(
    offer=Around(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n",
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    )
)
# The JSON format of Meta's template for Llama 3.1 and later, with its tools in the system turn.
LLAMA3 = ToolStyle(
    offer=Around(
        "Environment: ipython\n\nYou have access to the following functions. To call a function, please respond with "
        'JSON for a function call. Respond in the format {"name": function name, "parameters": dictionary of argument '
        "name and its value}. Do not use variables.\n\n",
        "",
    ),
    place=Place.SYSTEM_START,
    offer_indent=4,
    offer_between="\n\n",
    call=Around("", ""),
    call_between="; ",
    arguments="parameters",
    result=Around("", ""),
    result_turn=Around("<|start_header_id|>ipython<|end_header_id|>\n\n", "<|eot_id|>"),
    opens=("<|python_tag|>",),
    close=";",
    stops=(),
    marks=(),
)
# mistral-common, src/mistral_common/tokens/tokenizers/instruct.py: versions 3 and 7.
MISTRAL_V3 = ToolStyle(
    offer=Around("[AVAILABLE_TOOLS] [", "][/AVAILABLE_TOOLS]"),
    place=Place.BEFORE_LAST_USER,
    offer_between=", ",
    calls=Around("[TOOL_CALLS] [", "]"),
    call=Around("", ""),
    call_between=", ",
    call_ids=True,
    result=Around('[TOOL_RESULTS] {"content": "', '", "call_id": "{id}"}[/TOOL_RESULTS]'),
    result_quoted=True,
    result_turn=Around("", ""),
    opens=("[TOOL_CALLS]", '[{"name":'),
    close="",
    stops=(),
    marks=("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
)
MISTRAL_V3_TEKKEN = replace(
    MISTRAL_V3,
    offer=Around("[AVAILABLE_TOOLS][", "][/AVAILABLE_TOOLS]"),
    calls=Around("[TOOL_CALLS][", "]"),
    result=Around('[TOOL_RESULTS]{"content": "', '", "call_id": "{id}"}[/TOOL_RESULTS]'),
)
MISTRAL_V7 = replace(
    MISTRAL_V3_TEKKEN,
    place=Place.BEFORE_FIRST_USER,
    result=Around("[TOOL_RESULTS]{id}[TOOL_CONTENT]", "[/TOOL_RESULTS]"),
    result_quoted=False,
    marks=(*MISTRAL_V3.marks, "[TOOL_CONTENT]"),
)
# Our own words, for families that were trained on no format of tools, or on one that is not plain JSON.
OWN_WORDS = ToolStyle(
    offer=Around(
        "You can ask for tools. Each line between <tools> and </tools> describes one as JSON.\n<tools>\n",
        "\n</tools>\nTo ask for one, write nothing but lines of this form, one a call, with the arguments that its "
        'parameters describe:\n<tool_call>{"name": "TOOL", "arguments": {"ARGUMENT": "VALUE"}}</tool_call>\n'
        "What a tool gave back then stands between <tool_response> and </tool_response>. Where no tool is needed, "
        "answer in plain words.",
    ),
    call=Around("<tool_call>", "</tool_call>"),
)


@dataclass(frozen=True, slots=True)
class Scaffold:
    """`system`: a turn of its own; None where the family has none, and `folded` goes around it in the first user turn.

    `literals`: turn marks that the family spells as ordinary text, so that the vocabulary cannot guard them.
    """

    user: Around
    assistant: Around
    system: Around | None = None
    folded: Around = Around("", "\n\n")
    literals: tuple[str, ...] = ()
    tools: ToolStyle = OWN_WORDS


def _named(before: str, after: str, tools: ToolStyle = OWN_WORDS) -> Scaffold:
    """The families that write each role by name in the same way."""
    user, assistant, system = (Around(before.format(role=role), after) for role in ("user", "assistant", "system"))
    return Scaffold(user, assistant, system, tools=tools)


SCAFFOLDS = {
    "chatml": _named("<|im_start|>{role}\n", "<|im_end|>\n", HERMES),
    "llama3": _named("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", LLAMA3),
    "phi3": _named("<|{role}|>\n", "<|end|>\n"),
    "phi4": _named("<|im_start|>{role}<|im_sep|>", "<|im_end|>"),
    "llama4": _named("<|header_start|>{role}<|header_end|>\n\n", "<|eot|>"),
    "granite": _named("<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n"),
    "deepseek3": Scaffold(
        user=Around("<｜User｜>", ""),
        assistant=Around("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        system=Around("", "\n\n"),
    ),
    "gemma": Scaffold(
        user=Around("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant=Around("<start_of_turn>model\n", "<end_of_turn>\n"),
    ),
    "command-r": Scaffold(
        user=Around("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        assistant=Around("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        system=Around("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    ),
    "mistral-v7": Scaffold(
        user=Around("[INST]", "[/INST]"),
        assistant=Around("", "</s>"),
        system=Around("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        tools=MISTRAL_V7,
    ),
    "mistral": Scaffold(user=Around("[INST] ", "[/INST]"), assistant=Around(" ", "</s>"), tools=MISTRAL_V3),
    "mistral-v3-tekken": Scaffold(
        user=Around("[INST]", "[/INST]"), assistant=Around("", "</s>"), tools=MISTRAL_V3_TEKKEN
    ),
    "mistral-v1": Scaffold(
        user=Around(" [INST] ", " [/INST]"),
        assistant=Around(" ", "</s>"),
        literals=("[INST]", "[/INST]"),
    ),
    "llama2": Scaffold(
        user=Around("[INST] ", " [/INST]"),
        assistant=Around(" ", " </s><s>"),
        folded=Around("<<SYS>>\n", "\n<</SYS>>\n\n"),
        literals=("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    ),
    "zephyr": Scaffold(
        user=Around("<|user|>\n", "</s>\n"),
        assistant=Around("<|assistant|>\n", "</s>\n"),
        system=Around("<|system|>\n", "</s>\n"),
        literals=("<|user|>", "<|assistant|>", "<|system|>"),
    ),
    "plain": Scaffold(
        user=Around("User: ", "\n\n"), assistant=Around("Assistant: ", "\n\n"), folded=Around("", "\n\n")
    ),
}
