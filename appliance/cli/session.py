"""What every verb shares: the options that say which box, in which form, how long; and how a verb becomes a command.

Imports of the client and of rich stay inside functions: `appliance --help` and completion must not wait for them.
"""

import inspect
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from appliance.client import Client

COMPLETION_SECONDS = 2.0

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Data directory of the box.")]
DataDirOrEnvironment = Annotated[  # not on the verbs: there the environment would win over an option before the verb
    Path | None, typer.Option("--data-dir", envvar="APPLIANCE_DATA_DIR", help="Data directory of the box.")
]
Address = Annotated[str | None, typer.Option("--address", metavar="HOST:PORT", help="Where the box listens.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", min=0.001, metavar="SECONDS", help="Deadline of each call to the box.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@dataclass(frozen=True)
class Session:
    """Which box a verb talks to, and in which form it answers."""

    data_dir: Path | None = None
    address: str | None = None
    json: bool = False
    timeout: float | None = None

    @classmethod
    def of(cls, context: typer.Context) -> "Session":
        """From the options of the verb and, where it has none, those given before it."""
        given = {item.name: context.params.get(item.name) for item in fields(cls)}
        before = context.find_root().params
        return cls(**{name: value or before.get(name) or getattr(cls, name) for name, value in given.items()})

    def connect(self) -> "Client":
        """Raises Unreachable, Unauthenticated."""
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own lines on stderr say less than our errors
        from appliance.client import Client

        return Client.local(self.data_dir, self.address, self.timeout)

    def line(self, *words: str) -> str:
        """The command line of another verb for the same box."""
        box = []
        if self.data_dir and str(self.data_dir) != os.environ.get("APPLIANCE_DATA_DIR"):
            box = ["--data-dir", str(self.data_dir)]
        if self.address:
            box += ["--address", self.address]
        return shlex.join(("appliance", *box, *words))


def command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a verb of a function that takes a Session first: the session's options are added to its own.

    An ApplianceError ends the verb with its message and remedy on stderr and its exit code.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        def run(context: typer.Context, **given: Any) -> None:
            session = Session.of(context)
            own = {key: value for key, value in given.items() if key not in _SHARED}
            with _errors_shown(session):
                function(session, **own)

        signature = _with_shared_options(function)
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in signature.parameters.values()}
        app.command(name)(run)
        return function

    return register


def confirm(question: str, yes: bool) -> None:
    """Raises Cancelled unless `yes`, or somebody says so."""
    from appliance.errors import Cancelled

    try:
        if not yes and not typer.confirm(question, err=True):
            raise Cancelled("Nothing was changed.")
    except typer.Abort:
        raise Cancelled("Nothing was changed: nobody confirmed it. Give --yes where nobody can be asked.") from None


def complete_model(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(ctx, incomplete, lambda client: (model.name for model in client.models()))


def complete_collection(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(ctx, incomplete, lambda client: (collection.id for collection in client.collections()))


def complete_job(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(ctx, incomplete, lambda client: (job.id for job in client.jobs()))


def complete_ingestion(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(ctx, incomplete, lambda client: (found.id for found in client.ingestions()))


def complete_app_key(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(ctx, incomplete, lambda client: (key.id for key in client.app_keys()))


def complete_group(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(ctx, incomplete, lambda client: (group.name for group in client.groups()))


def _complete(context: typer.Context, incomplete: str, names: "Callable[[Client], Iterable[str]]") -> list[str]:
    """Names of the box that begin so; none where it does not answer at once: completion never complains."""
    session = Session.of(context)
    try:
        with Session(session.data_dir, session.address, timeout=COMPLETION_SECONDS).connect() as client:
            return [name for name in names(client) if name.startswith(incomplete)]
    except Exception:  # noqa: BLE001
        return []


@contextmanager
def _errors_shown(session: Session) -> Iterator[None]:
    from appliance.cli import output
    from appliance.errors import ApplianceError

    try:
        yield
    except ApplianceError as error:
        output.show_error(error, session.json)
        raise typer.Exit(error.exit_code) from None


CollectionOption = Annotated[
    str,
    typer.Option(
        "--collection",
        "-c",
        envvar="APPLIANCE_COLLECTION",
        help="Collection of documents.",
        autocompletion=complete_collection,
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Chat model; else the box's default.", autocompletion=complete_model)
]
_SHARED = {"context": typer.Context, "data_dir": DataDir, "address": Address, "json": Json, "timeout": Timeout}


def _with_shared_options(function: Callable[..., None]) -> inspect.Signature:
    """The function's signature, its Session replaced by the session's options (as keywords)."""
    _, *own = inspect.signature(function).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter("context", keyword, annotation=typer.Context),
        *(
            inspect.Parameter(item.name, keyword, default=item.default, annotation=_SHARED[item.name])
            for item in fields(Session)
        ),
    ]
    return inspect.Signature([*(item.replace(kind=keyword) for item in own), *shared])
