"""`appliance chat`: talk with a chat model in the terminal."""

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.session import ModelOption, Session, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from appliance.client import Client
    from appliance.types import Finish, Message, Sampling

HINT = "Ctrl-C stops an answer, /new starts afresh, Ctrl-D leaves."


def add_to(app: typer.Typer) -> None:
    command(app)(chat)


def chat(
    session: Session,
    prompt: Annotated[str | None, typer.Argument(help="One question; without it a conversation, or stdin.")] = None,
    model: ModelOption = "",
    system: Annotated[str, typer.Option("--system", help="Instructions that come before the conversation.")] = "",
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, max=5, help="0: greedy.")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", min=1, help="Longest answer.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the sampling.")] = None,
) -> None:
    """Talk with a chat model. Its answer streams as it is made."""
    from appliance.types import Message, Sampling, Speaker

    given: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    sampling = replace(Sampling(), **given) if given else None
    before = [Message(Speaker.SYSTEM, system)] if system else []
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is None and session.json:
        raise typer.BadParameter("--json needs a PROMPT, as an argument or on stdin")
    with session.connect() as client:
        if prompt is None:
            converse(client, before, model, sampling)
        else:
            _answer_once(client, [*before, Message(Speaker.USER, prompt)], model, sampling, session.json)


def converse(client: "Client", before: "Sequence[Message]", model: str, sampling: "Sampling | None") -> None:
    """Questions and answers until the end of input. An error ends the question, not the conversation."""
    import readline  # noqa: F401 - gives `input` line editing and history

    from appliance.cli import output
    from appliance.errors import ApplianceError
    from appliance.types import Message, Speaker

    output.note(HINT)
    messages = list(before)
    while (line := _read_line()) is not None:
        if line == "/new":
            messages = list(before)
            continue
        asked = [*messages, Message(Speaker.USER, line)]
        try:
            text, _ = stream_answer(client, asked, model, sampling, shown=True)
        except ApplianceError as error:
            output.show_error(error, as_json=False)
            continue
        if text:
            messages = [*asked, Message(Speaker.ASSISTANT, text)]


def stream_answer(
    client: "Client", messages: "Sequence[Message]", model: str, sampling: "Sampling | None", shown: bool
) -> "tuple[str, Finish | None]":
    """The answer and how it ended; Ctrl-C keeps what came until then and ends it with None."""
    from appliance.cli import output
    from appliance.types import Text

    texts: list[str] = []
    finish = None
    with client.chat(messages, model, sampling) as pieces:
        try:
            for piece in pieces:
                if not isinstance(piece, Text):
                    finish = piece
                    continue
                texts.append(piece.text)
                if shown:
                    output.show_text(piece.text)
        except KeyboardInterrupt:
            pass
    if shown:
        output.show_text("\n")
    return "".join(texts), finish


def _answer_once(
    client: "Client", messages: "Sequence[Message]", model: str, sampling: "Sampling | None", as_json: bool
) -> None:
    from appliance.cli import output
    from appliance.errors import Cancelled

    text, finish = stream_answer(client, messages, model, sampling, shown=not as_json)
    if finish is None:
        raise Cancelled("The answer was stopped.")
    if as_json:
        shape = {"text": text, "reason": finish.reason, "usage": finish.usage, "timings": finish.timings}
        output.show_json(shape)


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
