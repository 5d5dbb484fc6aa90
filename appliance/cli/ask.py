"""`appliance ask`: a question to the documents, with the sources first and verified citations last."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from appliance.cli.search import FilterOption, RerankerOption
from appliance.cli.session import CollectionOption, ModelOption, Session, command

if TYPE_CHECKING:
    from appliance.types import AnswerMode, AskPiece, Citation, Finish, Passages, Unsupported

HISTORY_TURNS = 8  # as many as the box looks at
NOT_ANSWERED = "The documents do not answer this question."


@dataclass(frozen=True)
class Answer:
    """A whole answer. `text` is what was streamed."""

    mode: "AnswerMode"
    text: str
    answered: bool
    citations: "tuple[Citation, ...]"
    unsupported: "tuple[Unsupported, ...]"
    finish: "Finish"
    groundedness: float
    cached: bool
    queries: tuple[str, ...]


def add_to(app: typer.Typer) -> None:
    command(app)(ask)


def ask(
    session: Session,
    question: Annotated[str | None, typer.Argument(help="The question; without one a conversation begins.")] = None,
    collection: CollectionOption = "default",
    mode: Annotated[
        Literal["quote", "generate"] | None,
        typer.Option("--mode", help="Sentences of the documents verbatim, or an answer written from them."),
    ] = None,
    model: ModelOption = "",
    condition: FilterOption = "",
    reranker: RerankerOption = "",
) -> None:
    """Answer a question from the documents.

    The sources come first, then the answer, then its citations. In a conversation a question may refer to those before
    it; an empty line ends it.
    """
    from appliance.cli import output
    from appliance.types import AnswerMode, Turn

    if not question and not _has_terminal():
        raise typer.BadParameter("give a QUESTION; without one a terminal is needed for a conversation")
    history: list[Turn] = []
    with session.connect() as client:
        while asked := question or _next_question():
            pieces = client.ask(
                collection,
                asked,
                AnswerMode(mode) if mode else None,
                model,
                history=history[-HISTORY_TURNS:],
                condition=condition,
                reranker=reranker,
            )
            with pieces:
                answer = gather(pieces, ignore if session.json else show_piece)
            if session.json:
                output.show_json(as_document(answer))
            else:
                show_rest(answer)
            if question:
                return
            history.append(Turn(asked, answer.text))


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def _next_question() -> str:
    """The next line of a conversation; '' at its end."""
    try:
        return input("\n? ").strip()
    except EOFError:
        return ""


def gather(pieces: "Iterable[AskPiece]", shown: "Callable[[AskPiece], None]") -> Answer:
    """The whole of a stream; `shown` sees each piece as it comes. Raises Broken where the stream has no end."""
    from appliance import types
    from appliance.errors import Broken

    found: dict[type, list[Any]] = {kind: [] for kind in (types.Passages, types.Text, types.Citation)}
    found |= {types.Unsupported: [], types.AskFinish: []}
    for piece in pieces:
        shown(piece)
        found[type(piece)].append(piece)
    if not found[types.Passages] or not found[types.AskFinish]:
        raise Broken("The answer broke off.")
    ending = found[types.AskFinish][-1]
    return Answer(
        found[types.Passages][0].mode,
        "".join(piece.text for piece in found[types.Text]),
        ending.answered,
        tuple(found[types.Citation]),
        tuple(found[types.Unsupported]),
        ending.finish,
        ending.groundedness,
        ending.cached,
        ending.queries,
    )


def as_document(answer: Answer) -> dict[str, Any]:
    """What `--json` prints. A citation's `document` is the file as people know it, `name` its resource name."""
    citations = [
        {
            "document": item.title,
            "name": item.document,
            "page": item.span.page,
            "start": item.span.start,
            "end": item.span.end,
            "quote": item.quote,
        }
        for item in answer.citations
    ]
    return {
        "mode": answer.mode.value,
        "answer": answer.text,
        "answered": answer.answered,
        "citations": citations,
        "unsupported": answer.unsupported,
        "groundedness": answer.groundedness,
        "cached": answer.cached,
        "queries": answer.queries,
        "usage": answer.finish.usage,
        "timings": answer.finish.timings,
    }


def show_piece(piece: "AskPiece") -> None:
    """Sources in a line each, then text as it comes; the rest waits for the end."""
    from appliance.cli import output
    from appliance.types import Passages, Text

    if isinstance(piece, Passages):
        _show_sources(piece)
    elif isinstance(piece, Text):
        output.show_text(piece.text)


def show_text_piece(piece: "AskPiece") -> None:
    """Text as it comes, without the sources."""
    from appliance.types import Passages

    if not isinstance(piece, Passages):
        show_piece(piece)


def show_rest(answer: Answer) -> None:
    """What follows the streamed text: citations by number, and sentences without support."""
    from appliance.cli import output

    output.show("" if answer.text else NOT_ANSWERED)
    for number, item in enumerate(answer.citations, 1):
        place = f"page {item.span.page}, {item.span.start}–{item.span.end}"
        output.show(f"\n[{number}] {output.printable(item.title)}, {place}", "bold")
        output.show(f"    “{_one_line(item.quote)}”")
    for span in answer.unsupported:
        sentence = _one_line(answer.text[span.answer_start : span.answer_end])
        output.show(f"\nNot supported by the documents: “{sentence}”", "yellow")
    if answer.queries:
        output.show(f"\nSearched for: {'; '.join(map(output.printable, answer.queries))}", "dim")
    usage, seconds = answer.finish.usage, answer.finish.timings.total_seconds
    grounded = f"{answer.groundedness:.0%} backed, " if answer.answered else ""
    again = ", answered before" if answer.cached else ""
    output.show(f"\n{answer.mode.value} mode, {grounded}{usage.output_tokens} tokens, {seconds:.2f} s{again}", "dim")


def _show_sources(found: "Passages") -> None:
    from appliance.cli import output

    if not found.passages:
        return output.show("Sources: none.", "dim")
    output.show("Sources", "dim")
    for number, passage in enumerate(found.passages, 1):
        output.show(f"  {number:>2}  {output.printable(passage.title)}, page {passage.span.page}", "dim")
    return output.show()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def ignore(piece: "AskPiece") -> None:
    """With --json nothing is shown before the end."""
