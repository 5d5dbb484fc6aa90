"""`appliance`: the command line of a box. One file a verb."""

import io
import sys

import typer

from appliance.cli import (
    apps,
    ask,
    chat,
    demo,
    documents,
    groups,
    health,
    ingest,
    jobs,
    knowledge,
    models,
    search,
    serve,
    status,
)
from appliance.cli.session import Address, DataDirOrEnvironment, Json, Timeout

EXIT_CODES = """Exit codes, stable for ever: 0 done; 1 broken, or health is critical; 2 usage; 3 refused: trying again
will not help; 4 not found; 5 not allowed; 6 busy or unreachable: try again; 7 damaged data or keys; 8 done, but some
files were refused or left; 130 cancelled."""

app = typer.Typer(
    name="appliance",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,  # their tracebacks would show local variables, and with them content
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    data_dir: DataDirOrEnvironment = None, address: Address = None, json: Json = False, timeout: Timeout = None
) -> None:
    """Answers from your documents, with citations, on a box of your own.

    These options may stand before or after a verb.
    """


for verb in (serve, demo, status, chat, ask, ingest, search, documents, knowledge, models, jobs, apps, groups, health):
    verb.add_to(app)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding is no reason to fail
    app(prog_name="appliance")


if __name__ == "__main__":
    main()
