"""From an empty data directory to answers with citations, and back after a restart and a kill."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.client import Client
from appliance.errors import NotFound
from appliance.types import AskFinish, AskPiece, Citation, FileState, JobState, ModelKind, ModelState, Passages, Text
from tests.daemon import Daemon, running, start

pytestmark = pytest.mark.long
SAMPLES = Path(__file__).parents[2] / "appliance" / "cli" / "samples"
QUESTIONS = tomllib.loads((SAMPLES / "questions.toml").read_text())["question"]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("box") / "data") as started:
        with started.client() as client:
            ingest(client, SAMPLES / "documents", "handbook")
        yield started


@pytest.fixture
def client(box: Daemon) -> Iterator[Client]:
    with box.client() as opened:
        yield opened


def ingest(client: Client, path: Path, collection: str) -> list[FileState]:
    """Ingest and wait; how each file ended."""
    begun = client.ingest(str(path), collection)
    assert [seen.state for seen in client.watch_job(begun.job)][-1] is JobState.SUCCEEDED
    return [file.state for file in client.files(begun.id)]


def answer_of(pieces: list[AskPiece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


@pytest.mark.parametrize("question", [q for q in QUESTIONS if "document" in q], ids=lambda question: question["text"])
def test_a_sample_question_in_other_words_is_answered_from_the_right_page(
    client: Client, question: dict[str, str]
) -> None:
    pieces = list(client.ask("handbook", question["text"]))
    assert isinstance(pieces[0], Passages)
    citations = [piece for piece in pieces if isinstance(piece, Citation)]
    assert citations
    assert citations[0].title == question["document"]
    assert citations[0].span.page == question.get("page", 1)
    last = pieces[-1]
    assert isinstance(last, AskFinish)
    assert last.answered


@pytest.mark.parametrize("question", [q["text"] for q in QUESTIONS if "document" not in q])
def test_a_question_that_no_document_answers_says_so(client: Client, question: str) -> None:
    pieces = list(client.ask("handbook", question))
    last = pieces[-1]
    assert isinstance(last, AskFinish)
    assert not last.answered
    assert "do not answer" in answer_of(pieces)
    assert not any(isinstance(piece, Citation) for piece in pieces)


def test_every_citation_is_the_stored_text_at_its_place(client: Client) -> None:
    for question in QUESTIONS:
        pieces = list(client.ask("handbook", question["text"]))
        for citation in (piece for piece in pieces if isinstance(piece, Citation)):
            _, pages = client.document(citation.document)
            stored = pages[citation.span.page - 1][citation.span.start : citation.span.end]
            assert stored == citation.quote
            assert answer_of(pieces)[citation.answer_start : citation.answer_end] == citation.quote


def test_ask_json_has_the_promised_shape(box: Daemon) -> None:
    command = [sys.executable, "-m", "appliance.cli.main", f"--data-dir={box.data_dir}"]
    asked = [*command, "ask", "-c", "handbook", "--json", QUESTIONS[0]["text"]]
    answer = json.loads(subprocess.run(asked, capture_output=True, check=True, timeout=120).stdout)
    assert answer.keys() >= {"mode", "answer", "citations", "usage", "timings"}
    assert answer["mode"] == "quote"
    assert answer["citations"]
    assert answer["citations"][0].keys() >= {"document", "page", "start", "end", "quote"}


def test_a_second_ingest_of_the_same_bytes_finds_only_duplicates(client: Client) -> None:
    assert set(ingest(client, SAMPLES / "documents", "handbook")) == {FileState.DUPLICATE}


def test_the_models_say_what_is_loaded_and_from_where(client: Client) -> None:
    by_kind = {model.kind: model for model in client.models()}
    assert by_kind[ModelKind.EMBEDDING].state is ModelState.READY
    assert by_kind[ModelKind.EMBEDDING].source
    assert len(by_kind[ModelKind.EMBEDDING].sha256) == 64
    pointer = client.load_model(by_kind[ModelKind.POINTER].name)
    assert pointer.state is ModelState.READY
    assert pointer.memory_bytes > 0


def test_a_deleted_document_answers_nothing_any_more(client: Client, tmp_path: Path) -> None:
    (tmp_path / "canteen.txt").write_text("The canteen is closed on every second Thursday of the month.")
    ingest(client, tmp_path / "canteen.txt", "short-lived")
    question = "On which Thursday of the month is the canteen closed?"
    assert "second Thursday" in answer_of(list(client.ask("short-lived", question)))
    (document,) = client.documents("short-lived")
    client.delete_document(document.name)
    assert "Thursday" not in answer_of(list(client.ask("short-lived", question)))
    assert client.search("short-lived", question).passages == ()
    with pytest.raises(NotFound):
        client.document(document.name)


def test_documents_outlive_a_kill_of_the_daemon(tmp_path: Path) -> None:
    (tmp_path / "rules.txt").write_text("Badges expire after 90 days.")
    first = start(tmp_path / "data")
    with first.client() as client:
        ingest(client, tmp_path / "rules.txt", "handbook")
    first.kill()
    with running(tmp_path / "data") as second, second.client() as client:
        (document,) = client.documents("handbook")
        assert client.document(document.name)[1] == ("Badges expire after 90 days.",)
