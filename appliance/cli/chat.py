"""`appliance chat`: talk with a chat model in the terminal."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from appliance.cli.session import ModelOption, Session, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.client import Stream
    from appliance.types import ChatPiece, Constraint, Finish, Message, TokenChoice, TokenLogprob, Tool, ToolChoice

    Ask = Callable[[Sequence[Message]], Stream[ChatPiece]]

HINT = "Ctrl-C stops an answer, /new starts afresh, Ctrl-D leaves."
NOT_RUN = "The box runs no tools; the conversation goes on from before the call."


def add_to(app: typer.Typer) -> None:
    command(app)(chat)


def _file(name: str, help: str) -> Any:
    return typer.Option(name, metavar="FILE", help=help, exists=True, dir_okay=False, readable=True)


def chat(
    session: Session,
    prompt: Annotated[str | None, typer.Argument(help="One question; without it a conversation, or stdin.")] = None,
    model: ModelOption = "",
    system: Annotated[str, typer.Option("--system", help="Instructions that come before the conversation.")] = "",
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, max=5, help="0: greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the sampling.")] = None,
    presence_penalty: Annotated[
        float | None, typer.Option("--presence-penalty", min=-2, max=2, help="Against words that were said. 0: none.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option("--frequency-penalty", min=-2, max=2, help="The same, by how often. 0: none.")
    ] = None,
    json_schema: Annotated[Path | None, _file("--json-schema", "Answer with JSON of this schema.")] = None,
    grammar: Annotated[Path | None, _file("--grammar", "Answer as this GBNF grammar says.")] = None,
    tools: Annotated[Path | None, _file("--tools", "Tools on offer, as JSON; calls are shown, not run.")] = None,
    tool_choice: Annotated[
        str, typer.Option("--tool-choice", metavar="auto|none|required|NAME", help="Whether a tool must be called.")
    ] = "auto",
    logprobs: Annotated[
        int | None, typer.Option("--logprobs", min=0, max=20, help="Show each token's, and so many alternatives.")
    ] = None,
    priority: Annotated[
        Literal["low", "normal", "high"], typer.Option("--priority", help="Who goes first where not all can.")
    ] = "normal",
) -> None:
    """Talk with a chat model. Its answer streams as it is made."""
    from appliance.types import Message, Priority, Sampling, Speaker

    if json_schema and grammar:
        raise typer.BadParameter("--json-schema and --grammar do not go together")
    given: dict[str, Any] = {
        "temperature": temperature,
        "max_tokens": max_tokens,
        "seed": seed,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
    }
    given = {name: value for name, value in given.items() if value is not None}
    options: dict[str, Any] = {
        "sampling": replace(Sampling(), **given) if given else None,
        "tools": read_tools(tools) if tools else (),
        "tool_choice": _tool_choice(tool_choice),
        "constraint": _constraint(json_schema, grammar),
        "top_logprobs": logprobs,
        "priority": Priority[priority.upper()],
    }
    before = [Message(Speaker.SYSTEM, system)] if system else []
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is None and session.json:
        raise typer.BadParameter("--json needs a PROMPT, as an argument or on stdin")
    with session.connect() as client:
        ask = partial(client.chat, model=model, **options)
        if prompt is None:
            converse(ask, before)
        else:
            _answer_once(ask, [*before, Message(Speaker.USER, prompt)], session.json)


def converse(ask: "Ask", before: "Sequence[Message]") -> None:
    """Questions and answers until the end of input. An error ends the question, not the conversation."""
    import readline  # noqa: F401 - gives `input` line editing and history

    from appliance.cli import output
    from appliance.errors import ApplianceError
    from appliance.types import Message, Speaker, ToolCall

    output.note(HINT)
    messages = list(before)
    while (line := _read_line()) is not None:
        if line == "/new":
            messages = list(before)
            continue
        asked = [*messages, Message(Speaker.USER, line)]
        try:
            pieces = read_answer(ask(asked), shown=True)
        except ApplianceError as error:
            output.show_error(error, as_json=False)
            continue
        if any(isinstance(piece, ToolCall) for piece in pieces):
            output.note(NOT_RUN)
        elif text := _text(pieces):
            messages = [*asked, Message(Speaker.ASSISTANT, text)]


def read_answer(stream: "Stream[ChatPiece]", shown: bool) -> "list[ChatPiece]":
    """What came; Ctrl-C keeps what came until then, which has no Finish."""
    from appliance.cli import output
    from appliance.types import Text

    read: list[ChatPiece] = []
    with stream as pieces:
        try:
            for piece in pieces:
                read.append(piece)
                if shown and isinstance(piece, Text):
                    output.show_text(piece.text)
        except KeyboardInterrupt:
            pass
    if shown:
        _show_end(read)
    return read


def _answer_once(ask: "Ask", messages: "Sequence[Message]", as_json: bool) -> None:
    from appliance.cli import output
    from appliance.errors import Cancelled
    from appliance.types import Finish

    pieces = read_answer(ask(messages), shown=not as_json)
    finish = pieces[-1] if pieces else None
    if not isinstance(finish, Finish):
        raise Cancelled("The answer was stopped.")
    if as_json:
        output.show_json(_shape(pieces, finish))


def _shape(pieces: "Sequence[ChatPiece]", finish: "Finish") -> dict[str, Any]:
    """The answer as one document; calls and log-probabilities where there are any."""
    from appliance.types import ToolCall

    shape = {"text": _text(pieces), "reason": finish.reason, "usage": finish.usage, "timings": finish.timings}
    if calls := [piece for piece in pieces if isinstance(piece, ToolCall)]:
        shape["tool_calls"] = [
            {"id": call.id, "name": call.name, "arguments": json.loads(call.arguments)} for call in calls
        ]
    if choices := _choices(pieces):
        shape["logprobs"] = [
            _token(choice.chosen) | {"top": [_token(other) for other in choice.top]} for choice in choices
        ]
    return shape


def _token(token: "TokenLogprob") -> dict[str, Any]:
    return {"token": token.token, "text": token.piece.decode(errors="replace"), "logprob": token.logprob}


def _show_end(pieces: "Sequence[ChatPiece]") -> None:
    """What comes after the text: its last newline, calls, log-probabilities."""
    from appliance.cli import output
    from appliance.types import ToolCall

    calls = [piece for piece in pieces if isinstance(piece, ToolCall)]
    if _text(pieces) or not calls:
        output.show_text("\n")
    for call in calls:
        output.show(f"{call.name}({call.arguments})")
    if choices := _choices(pieces):
        rows = ([_row(choice.chosen), " ".join(map(_row, choice.top))] for choice in choices)
        output.show_table(["TOKEN", "INSTEAD"], rows)


def _row(token: "TokenLogprob") -> str:
    return f"{json.dumps(token.piece.decode(errors='replace'), ensure_ascii=False)} {token.logprob:.3f}"


def _text(pieces: "Sequence[ChatPiece]") -> str:
    from appliance.types import Text

    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


def _choices(pieces: "Sequence[ChatPiece]") -> "list[TokenChoice]":
    from appliance.types import Text

    return [choice for piece in pieces if isinstance(piece, Text) for choice in piece.choices]


# --- what is read from files ------------------------------------------------------------------------------------------


def read_tools(path: Path) -> "tuple[Tool, ...]":
    """A JSON list of tools: name, description and the JSON schema of their parameters, bare or as OpenAI writes them.

    Raises InvalidArgument, which names the file and what is wrong in it.
    """
    from appliance.errors import InvalidArgument
    from appliance.types import Tool

    try:
        items = json.loads(_read(path))
    except (ValueError, RecursionError):
        raise InvalidArgument.of(str(path), "is not valid JSON.") from None
    if not isinstance(items, list):
        raise InvalidArgument.of(str(path), "must hold a JSON list of tools.")
    found = []
    for number, item in enumerate(items):
        tool = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
            raise InvalidArgument.of(f"{path}: [{number}]", "must be an object with a name.")
        description, parameters = tool.get("description", ""), tool.get("parameters", {})
        if not isinstance(description, str) or not isinstance(parameters, dict):
            raise InvalidArgument.of(f"{path}: [{number}]", "'description' is text, and 'parameters' a JSON schema.")
        found.append(Tool(tool["name"], description, json.dumps(parameters)))
    return tuple(found)


def _constraint(json_schema: Path | None, grammar: Path | None) -> "Constraint | None":
    from appliance.types import Constraint, ConstraintKind

    if json_schema:
        return Constraint(ConstraintKind.JSON_SCHEMA, _read(json_schema))
    return Constraint(ConstraintKind.GBNF, _read(grammar)) if grammar else None


def _tool_choice(choice: str) -> "ToolChoice | None":
    """None for auto: as without the option."""
    from appliance.types import ToolChoice, ToolMode

    match choice:
        case "auto":
            return None
        case "none" | "required":
            return ToolChoice(ToolMode(choice))
        case name:
            return ToolChoice(ToolMode.REQUIRED, name)


def _read(path: Path) -> str:
    from appliance.errors import InvalidArgument

    try:
        return path.read_text()
    except UnicodeDecodeError:
        raise InvalidArgument.of(str(path), "is not UTF-8 text.") from None


def _read_line() -> str | None:
    """A line that says something; None at the end of input. Ctrl-C drops what was typed."""
    while True:
        try:
            if line := input("> ").strip():
                return line
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
