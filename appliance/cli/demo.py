"""`appliance demo`: a real box over the sample documents, from nothing to answers with citations."""

import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance.cli import ask, models
from appliance.cli.session import Session, command

if TYPE_CHECKING:
    from appliance.client import Client

DATA_DIR = Path(".demo")
COLLECTION = "default"  # what the other verbs take without --collection
START_SECONDS = 300  # the first start makes keys and certificates, and may build the embedding model
STOP_SECONDS = 60


@dataclass(frozen=True)
class Question:
    """A sample question, and where its answer stands: title and page; no title: in no document."""

    text: str
    document: str = ""
    page: int | None = None

    def is_right(self, answer: ask.Answer) -> bool:
        if not self.document:
            return not answer.answered
        places = {(item.title, item.span.page) for item in answer.citations}
        return any(title == self.document and self.page in (None, page) for title, page in places)

    def expectation(self) -> str:
        if not self.document:
            return "no answer"
        return self.document if self.page is None else f"{self.document}, page {self.page}"


def add_to(app: typer.Typer) -> None:
    command(app)(demo)


def demo(
    session: Session,
    once: Annotated[bool, typer.Option("--once", help="Leave after the answers: 0 if all are right, else 1.")] = False,
    samples: Annotated[
        Path | None, typer.Option("--samples", help="Folder of documents/ and their questions.toml.")
    ] = None,
) -> None:
    """Start a box, read the sample documents, answer questions.

    The box keeps its data in ./.demo, or in --data-dir, and serves until Ctrl-C.
    """
    from appliance.cli import output

    folder = (samples or Path(__file__).parent / "samples").resolve()
    questions = read_questions(folder / "questions.toml")
    data_dir = (session.data_dir or DATA_DIR).absolute()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the daemon is stopped then too
    output.note(f"Starting a box in {data_dir}")
    with daemon(data_dir, folder) as process, Session(data_dir, timeout=session.timeout).connect() as client:
        right = _run(client, folder, questions, session.json)
        if not once:
            _serve(process, data_dir)
    if once and not right:
        output.note("Not every question was answered from the right place.")
        raise typer.Exit(1)


def read_questions(path: Path) -> tuple[Question, ...]:
    """Raises NotFound, InvalidArgument where the file is missing or not as it should be."""
    from appliance.errors import InvalidArgument, NotFound

    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["question"]
        return tuple(Question(entry["text"], entry.get("document", ""), entry.get("page")) for entry in entries)
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InvalidArgument.of("samples", f"{path}: {error}.") from None


@contextmanager
def daemon(data_dir: Path, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A daemon that serves this data directory on a free port of loopback; its log goes to `daemon.log` there.

    folder: without links; what may be taken in by its path.

    It is in a process group of its own: Ctrl-C reaches us alone, and we stop it when we are done with it.
    """
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    free = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    argv = [sys.executable, "-m", "appliance.daemon", "--data-dir", str(data_dir), "--ingest-roots", str(folder), *free]
    before = _endpoint_age(data_dir)
    with open(data_dir / "daemon.log", "ab") as log:
        begin = log.tell()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)
    try:
        _await_serving(process, data_dir, before, begin)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_serving(process: "subprocess.Popen[bytes]", data_dir: Path, before: int, log_begin: int) -> None:
    """Until the daemon writes its endpoint and takes calls. An endpoint as old as `before` is of a daemon before it."""
    from appliance.errors import DeadlineExceeded

    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            _show_why(data_dir / "daemon.log", log_begin)
            raise typer.Exit(process.returncode or 1)
        if _endpoint_age(data_dir) != before and _is_serving(data_dir):
            return
        time.sleep(0.1)
    raise DeadlineExceeded(f"The daemon did not begin to serve; see {data_dir / 'daemon.log'}.")


def _is_serving(data_dir: Path) -> bool:
    from appliance.errors import ApplianceError

    try:
        with Session(data_dir).connect() as client:
            return client.serving()
    except ApplianceError:
        return False


def _endpoint_age(data_dir: Path) -> int:
    """When the endpoint was written; 0 where there is none."""
    try:
        return (data_dir / "endpoint").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _show_why(log: Path, begin: int) -> None:
    """What a daemon that could not start said of it: the lines of its log that are no records."""
    with open(log, "rb") as file:
        file.seek(begin)
        said = file.read().decode(errors="replace").splitlines()
    for line in said[-50:]:
        if not line.startswith("{"):
            typer.echo(line, err=True)


def _run(client: "Client", folder: Path, questions: tuple[Question, ...], as_json: bool) -> bool:
    """Ingest, ask, show; whether every answer cites what it should."""
    from appliance.cli import output, progress
    from appliance.cli.ingest.shown import show_summary
    from appliance.types import FileState

    begun = client.ingest(str(folder / "documents"), COLLECTION)
    job = progress.wait(client, client.job(begun.job))
    if not as_json:
        show_summary(client.ingestion(begun.id), list(client.files(begun.id, (FileState.QUARANTINED,))))
    progress.raise_failure(job)
    answers = [_ask(client, question, as_json) for question in questions]
    right = all(question.is_right(answer) for question, answer in zip(questions, answers, strict=True))
    if as_json:
        shown = [
            {"question": question.text, "right": question.is_right(answer), **ask.as_document(answer)}
            for question, answer in zip(questions, answers, strict=True)
        ]
        output.show_json({"answers": shown, "models": list(client.models())})
        return right
    output.show("\nModels", "bold")
    models.show_table(client.models())
    return right


def _ask(client: "Client", question: Question, as_json: bool) -> ask.Answer:
    """One question in quote mode, which answers alike whatever chat models were imported."""
    from appliance.cli import output
    from appliance.types import AnswerMode

    if not as_json:
        output.show(f"\n? {question.text}\n", "bold cyan")
    with client.ask(COLLECTION, question.text, AnswerMode.QUOTE) as pieces:
        answer = ask.gather(pieces, ask.ignore if as_json else ask.show_text_piece)
    if not as_json:
        ask.show_rest(answer)
        if not question.is_right(answer):
            output.show(f"Wrong. Expected: {question.expectation()}.", "bold red")
    return answer


def _serve(process: "subprocess.Popen[bytes]", data_dir: Path) -> None:
    from appliance.cli import output
    from appliance.errors import Broken

    program = "appliance" if shutil.which("appliance") else shlex.quote(sys.argv[0])
    where = f"{program} --data-dir {shlex.quote(str(data_dir))}"
    output.show("\nThe box serves until Ctrl-C. Go on in another terminal:", "bold")
    output.show(f'  {where} ask "How do I …?"')
    output.show(f"  {where} ingest upload FOLDER")
    output.show(f"  {where} status")
    output.show(f"Drop a GGUF chat model into {data_dir / 'import'}, and it serves these too:", "bold")
    output.show(f"  {where} chat")
    output.show(f'  {where} ask --mode generate "How do I …?"')
    try:
        process.wait()
    except KeyboardInterrupt:
        return output.note("Stopping.")
    raise Broken(f"The daemon ended by itself; see {data_dir / 'daemon.log'}.")
