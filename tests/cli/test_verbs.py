import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import errors
from appliance.cli import chat, demo
from appliance.cli.search import in_lines
from appliance.client import Client
from appliance.gen.v1 import inference_pb2, ingest_pb2, job_pb2, knowledge_pb2
from appliance.types import Finish, Message, Speaker, Text
from tests.box import Box, refusal
from tests.cli import answers
from tests.cli.answers import Cli

HOSTILE = "evil\x1b[2J\u202efdp[bold].md"


# --- ask and search ---------------------------------------------------------------------------------------------------


def test_ask_as_json_is_one_document_with_verified_citations(box: Box, cli: Cli) -> None:
    box.answers["Ask"] = answers.ask("Badges ", "expire.")
    result = cli("ask", "--json", "When?")
    assert json.loads(result.stdout) == {
        "mode": "quote",
        "answer": "Badges expire.",
        "answered": True,
        "citations": [
            {
                "document": "badges.md",
                "name": answers.DOCUMENT,
                "page": 3,
                "start": 10,
                "end": 24,
                "quote": "Badges expire.",
            }
        ],
        "unsupported": [],
        "groundedness": 0.0,
        "cached": False,
        "queries": [],
        "usage": {"input_tokens": 7, "cached_input_tokens": 3, "output_tokens": 2},
        "timings": {
            "queue_seconds": 0.0,
            "search_seconds": 0.25,
            "prefill_seconds": 0.0,
            "decode_seconds": 0.0,
            "total_seconds": 0.5,
        },
    }
    assert result.stderr == ""


def test_ask_shows_sources_then_the_answer_then_citations(box: Box, cli: Cli) -> None:
    box.answers["Ask"] = answers.ask("Badges expire.", " Soon.", unsupported=(15, 20))
    shown = cli("ask", "When?", "-c", "handbook", "--mode", "quote").stdout
    order = [
        "Sources",
        "1  badges.md, page 3",
        "Badges expire. Soon.",
        "[1] badges.md, page 3, 10–24",
        "“Badges expire.”",
    ]
    places = [shown.index(part) for part in [*order, "Not supported by the documents: “Soon.”"]]
    assert places == sorted(places)
    assert box.calls[0].request.collection == "collections/handbook"
    assert box.calls[0].request.mode == knowledge_pb2.ANSWER_MODE_QUOTE


def test_a_question_that_the_documents_do_not_answer_says_so(box: Box, cli: Cli) -> None:
    box.answers["Ask"] = answers.ask(answered=False)
    result = cli("ask", "Why?")
    assert result.exit_code == 0
    assert "The documents do not answer this question." in result.stdout
    assert json.loads(cli("ask", "Why?", "--json").stdout)["answered"] is False


def test_an_answer_without_an_end_is_an_error(box: Box, cli: Cli) -> None:
    box.answers["Ask"] = lambda request, context: iter([knowledge_pb2.AskResponse(text="Badges")])
    result = cli("ask", "Why?", "--json")
    assert (result.exit_code, result.stdout) == (1, "")


def test_hostile_titles_and_texts_are_escaped_in_every_verb(box: Box, cli: Cli) -> None:
    box.answers["Ask"] = answers.ask(HOSTILE, title=HOSTILE)
    box.answers["Search"] = lambda request, context: knowledge_pb2.SearchResponse(passages=[answers.passage(HOSTILE)])
    box.answers["ListDocuments"] = answers.documents(HOSTILE)
    box.answers["ListQuarantine"] = lambda request, context: ingest_pb2.ListQuarantineResponse(
        files=[answers.outcome(HOSTILE, ingest_pb2.FileOutcome.STATE_QUARANTINED, "NOT_UTF8")]
    )
    box.answers["Chat"] = answers.chat(HOSTILE)
    verbs = [("ask", "Q"), ("search", "Q"), ("documents", "list"), ("ingest", "quarantine", "list"), ("chat", "Q")]
    for verb in verbs:
        for form in ((), ("--json",)):
            result = cli(*verb, *form)
            assert result.exit_code == 0, result.output
            assert "evil" in result.stdout
            assert "[bold]" in result.stdout
            assert "\x1b" not in result.stdout
            assert "\u202e" not in result.stdout


def test_search_shows_where_each_passage_stands(box: Box, cli: Cli) -> None:
    box.answers["Search"] = lambda request, context: knowledge_pb2.SearchResponse(passages=[answers.passage()])
    assert "1. badges.md, page 3, 10–38\nBadges expire." in cli("search", "badges", "-n", "2").stdout
    assert box.calls[0].request.limit == 2
    (passage,) = json.loads(cli("search", "badges", "--json").stdout)["passages"]
    assert (passage["document"], passage["page"], passage["start"]) == (answers.DOCUMENT, 3, 10)
    box.answers["Search"] = lambda request, context: knowledge_pb2.SearchResponse()
    assert "Nothing was found." in cli("search", "badges").stdout


def test_a_heading_does_not_run_into_its_text_and_the_words_that_are_marked_stay_so() -> None:
    passage = "Badges\n \nBadges expire\nafter 90 days.\n\nNew ones are at the desk."
    shown = in_lines("Badges Badges expire after 90 days. New ones are at the desk.", passage)
    assert shown == "Badges\nBadges expire after 90 days.\nNew ones are at the desk."
    assert in_lines("… expire after 90 days. New …", passage) == "… expire after 90 days.\nNew …"
    assert in_lines("of another passage", passage) == "of another passage"
    assert in_lines("", "") == ""


def test_search_shows_a_heading_on_a_line_of_its_own(box: Box, cli: Cli) -> None:
    passage = answers.passage()
    passage.text = "Badges\n\nBadges expire."
    passage.snippet.text = "Badges Badges expire."
    box.answers["Search"] = lambda request, context: knowledge_pb2.SearchResponse(passages=[passage])
    assert "\nBadges\nBadges expire.\n" in cli("search", "badges").stdout


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_watched_job_is_a_line_of_json_at_each_change(box: Box, cli: Cli) -> None:
    states = [answers.job(job_pb2.Job.STATE_RUNNING, done=1), answers.job(job_pb2.Job.STATE_SUCCEEDED, done=2, total=2)]
    box.answers["WatchJob"] = answers.watched(*states)
    result = cli("jobs", "watch", "7f", "--json")
    assert [json.loads(line)["state"] for line in result.stdout.splitlines()] == ["running", "succeeded"]
    assert "succeeded  2 of 2 files" in cli("jobs", "watch", "jobs/7f").stdout


def test_jobs_are_listed_shown_and_cancelled(box: Box, cli: Cli) -> None:
    job = answers.job(job_pb2.Job.STATE_RUNNING, done=1, total=4)
    box.answers["ListJobs"] = lambda request, context: job_pb2.ListJobsResponse(jobs=[job])
    box.answers["GetJob"] = lambda request, context: job_pb2.GetJobResponse(job=job)
    box.answers["CancelJob"] = lambda request, context: job_pb2.CancelJobResponse(job=job)
    assert "1/4 files" in cli("jobs", "list").stdout
    assert json.loads(cli("jobs", "list", "--json").stdout)["jobs"][0]["id"] == "7f"
    assert "1 of 4 files" in cli("jobs", "show", "7f").stdout
    assert json.loads(cli("jobs", "cancel", "7f", "--json").stdout)["state"] == "running"


# --- documents and models ---------------------------------------------------------------------------------------------


def test_a_document_is_found_by_its_title_and_by_its_id(box: Box, cli: Cli) -> None:
    box.answers["ListDocuments"] = answers.documents("a.md", "b.md", "b.md")
    box.answers["DeleteDocument"] = lambda request, context: knowledge_pb2.DeleteDocumentResponse()
    assert cli("documents", "delete", "a.md", "--yes").exit_code == 0
    assert cli("documents", "delete", "2", input="y\n").exit_code == 0
    assert cli("documents", "delete", "collections/x/documents/9", "-y", "--json").exit_code == 0
    deleted = [call.request.name for call in box.calls if call.method == "DeleteDocument"]
    assert deleted == [
        "collections/default/documents/0",
        "collections/default/documents/2",
        "collections/x/documents/9",
    ]
    missing, ambiguous = cli("documents", "delete", "c.md", "--yes"), cli("documents", "delete", "b.md", "--yes")
    assert missing.exit_code == 4
    assert "holds no document 'c.md'" in missing.stderr
    assert ambiguous.exit_code == 3
    assert "name one by its id" in ambiguous.stderr


def test_a_document_shows_where_it_came_from_and_its_pages(box: Box, cli: Cli) -> None:
    document = knowledge_pb2.Document(
        name=answers.DOCUMENT,
        title="badges.md",
        source="/stick",
        parser="text 1",
        page_count=2,
        create_time=answers.STAMP,
    )
    found = knowledge_pb2.GetDocumentResponse(document=document, pages=["first", "second"])
    box.answers["GetDocument"] = lambda request, context: found
    shown = cli("documents", "show", answers.DOCUMENT, "--page", "2").stdout
    assert "/stick" in shown
    assert "— page 2 of 2 —\nsecond" in shown
    assert "first" not in shown
    pages = json.loads(cli("documents", "show", answers.DOCUMENT, "--json").stdout)["pages"]
    assert pages == [{"page": 1, "text": "first"}, {"page": 2, "text": "second"}]
    assert cli("documents", "show", answers.DOCUMENT, "--page", "3").exit_code == 4


def test_collections_are_listed_compacted_and_destroyed(box: Box, cli: Cli) -> None:
    collection = knowledge_pb2.Collection(name="collections/default", document_count=3, create_time=answers.STAMP)
    box.answers["ListCollections"] = lambda request, context: knowledge_pb2.ListCollectionsResponse(
        collections=[collection]
    )
    box.answers["CompactCollection"] = lambda request, context: knowledge_pb2.CompactCollectionResponse(
        collection=collection
    )
    box.answers["DeleteCollection"] = lambda request, context: knowledge_pb2.DeleteCollectionResponse()
    assert "default" in cli("knowledge", "list").stdout
    assert json.loads(cli("knowledge", "compact", "--json").stdout)["document_count"] == 3
    assert cli("knowledge", "shred", "default", "--yes").exit_code == 0
    assert box.calls[-1].request.name == "collections/default"


def test_models_say_what_is_loaded_and_from_where(box: Box, cli: Cli) -> None:
    box.answers["ListModels"] = answers.models("qwen")
    shown = cli("models", "list").stdout
    assert "ready" in shown
    assert "/stick/model.gguf" in shown
    assert "3.0 MiB" in shown
    assert json.loads(cli("models", "list", "--json").stdout)["models"][0]["name"] == "qwen"


# --- chat -------------------------------------------------------------------------------------------------------------


def test_chat_answers_a_prompt_given_as_argument_or_on_stdin(box: Box, cli: Cli) -> None:
    box.answers["Chat"] = answers.chat("Hel", "lo")
    assert cli("chat", "Hi", "--system", "Be brief.", "--seed", "7").stdout == "Hello\n"
    assert cli("chat", input="Hi\n").stdout == "Hello\n"
    first, second = (call.request for call in box.calls)
    assert [message.text for message in first.messages] == ["Be brief.", "Hi"]
    assert first.sampling.seed == 7
    assert not second.HasField("sampling")
    shown = json.loads(cli("chat", "Hi", "--json").stdout)
    assert (shown["text"], shown["reason"], shown["usage"]["output_tokens"]) == ("Hello", "stop", 2)


def test_chat_without_a_chat_model_says_where_to_drop_one(box: Box, cli: Cli) -> None:
    box.answers["Chat"] = refusal(errors.NoChatModel("No chat model is imported."))
    result = cli("chat", "Hi")
    assert result.exit_code == 3
    assert "import folder" in result.stderr


def test_a_conversation_keeps_its_history_until_it_starts_afresh(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box.answers["Chat"] = answers.chat("Hello")
    lines = iter(["one", "  ", "two", "/new", "three"])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    with Client.local(box.data_dir) as client:
        chat.converse(client.chat, [Message(Speaker.SYSTEM, "S")])
    sent = [[message.text for message in call.request.messages] for call in box.calls]
    assert sent == [["S", "one"], ["S", "one", "Hello", "two"], ["S", "three"]]
    assert capsys.readouterr().out.count("Hello\n") == 3


def test_an_error_ends_the_question_and_not_the_conversation(
    box: Box, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box.answers["Chat"] = refusal(errors.PromptTooLong("Too long."))
    lines: Iterator[str | None] = iter(["one", "two", None])
    monkeypatch.setattr(chat, "_read_line", lambda: next(lines))
    with Client.local(box.data_dir) as client:
        chat.converse(client.chat, [])
    assert [[message.text for message in call.request.messages] for call in box.calls] == [["one"], ["two"]]
    assert capsys.readouterr().err.count("error: Too long.") == 2


class InterruptedStream:
    """A stream in which Ctrl-C is pressed after the first piece."""

    def __init__(self) -> None:
        self.cancelled = False

    def __enter__(self) -> "InterruptedStream":
        return self

    def __exit__(self, *given: object) -> None:
        self.cancelled = True

    def __iter__(self) -> Iterator[Text | Finish]:
        yield Text("Hel")
        raise KeyboardInterrupt


def test_ctrl_c_stops_the_answer_and_frees_the_call_but_not_the_conversation() -> None:
    stream = InterruptedStream()
    assert chat.read_answer(stream, shown=False) == [Text("Hel")]  # type: ignore[arg-type]
    assert stream.cancelled


TOOLS = [
    {"name": "weather", "description": "Of a city.", "parameters": {"type": "object"}},
    {"type": "function", "function": {"name": "time"}},
]


def test_tools_are_offered_from_a_file_and_their_calls_shown(box: Box, cli: Cli, tmp_path: Path) -> None:
    call = inference_pb2.ToolCall(id="a1", name="weather", arguments='{"city": "Bern"}')
    finish = inference_pb2.Finish(reason=inference_pb2.Finish.REASON_TOOL_CALLS)
    pieces = [inference_pb2.ChatResponse(tool_call=call), inference_pb2.ChatResponse(finish=finish)]
    box.answers["Chat"] = lambda request, context: iter(pieces)
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    asked = ("chat", "Hi", "--tools", str(tmp_path / "tools.json"), "--tool-choice", "weather")
    assert cli(*asked).stdout == 'weather({"city": "Bern"})\n'
    shown = json.loads(cli(*asked, "--json").stdout)
    assert shown["tool_calls"] == [{"id": "a1", "name": "weather", "arguments": {"city": "Bern"}}]
    assert shown["reason"] == "tool_calls"
    request = box.calls[0].request
    assert [(tool.name, tool.description, tool.parameters) for tool in request.tools] == [
        ("weather", "Of a city.", '{"type": "object"}'),
        ("time", "", "{}"),
    ]
    assert request.tool_choice == inference_pb2.ToolChoice(mode=inference_pb2.ToolChoice.MODE_REQUIRED, name="weather")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "is not valid JSON"),
        ("{}", "must hold a JSON list"),
        ('[{"title": "x"}]', "[0]: must be an object with a name"),
        ('[{"name": "x", "parameters": "y"}]', "[0]: 'description' is text"),
        ("\xff", "is not UTF-8 text"),
    ],
)
def test_a_file_of_tools_that_is_none_is_named(box: Box, cli: Cli, tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "tools.json"
    path.write_bytes(text.encode("latin-1"))
    result = cli("chat", "Hi", "--tools", str(path))
    assert result.exit_code == 3
    assert named in result.stderr
    assert str(path) in result.stderr
    assert box.calls == []


def test_the_form_of_the_answer_priority_and_penalties_are_passed_on(box: Box, cli: Cli, tmp_path: Path) -> None:
    box.answers["Chat"] = answers.chat("{}")
    (tmp_path / "form").write_text('{"type": "object"}')
    penalties = ("--presence-penalty", "0.5", "--frequency-penalty", "-1")
    assert cli("chat", "Hi", "--json-schema", str(tmp_path / "form"), "--priority", "low", *penalties).exit_code == 0
    assert cli("chat", "Hi", "--grammar", str(tmp_path / "form")).exit_code == 0
    first, second = (call.request for call in box.calls)
    assert first.response_format.json_schema == second.response_format.gbnf == '{"type": "object"}'
    assert (first.priority, first.sampling.presence_penalty, first.sampling.frequency_penalty) == (1, 0.5, -1)
    both = cli("chat", "Hi", "--grammar", str(tmp_path / "form"), "--json-schema", str(tmp_path / "form"))
    assert both.exit_code == 2
    assert cli("chat", "Hi", "--grammar", str(tmp_path / "missing")).exit_code == 2


def test_log_probabilities_are_shown_beside_their_tokens(box: Box, cli: Cli) -> None:
    chosen, other = (
        inference_pb2.TokenLogprob(token=number, piece=piece, logprob=logprob)
        for number, piece, logprob in ((1, b"Hi", -0.25), (2, "é".encode()[:1], -2.0))
    )
    choice = inference_pb2.TokenChoice(chosen=chosen, top=[chosen, other])
    pieces = [
        inference_pb2.ChatResponse(text="Hi", choices=[choice]),
        inference_pb2.ChatResponse(finish=answers.FINISH),
    ]
    box.answers["Chat"] = lambda request, context: iter(pieces)
    assert '"Hi" -0.250' in cli("chat", "Hi", "--logprobs", "2").stdout
    (shown,) = json.loads(cli("chat", "Hi", "--logprobs", "2", "--json").stdout)["logprobs"]
    assert (shown["token"], shown["text"], shown["logprob"]) == (1, "Hi", -0.25)
    assert [item["text"] for item in shown["top"]] == ["Hi", "\ufffd"]
    assert box.calls[0].request.top_logprobs == 2


# --- demo -------------------------------------------------------------------------------------------------------------


def test_questions_name_the_document_and_page_of_their_answer(tmp_path: Path) -> None:
    path = tmp_path / "questions.toml"
    path.write_text('[[question]]\ntext = "When?"\ndocument = "a.pdf"\npage = 3\n[[question]]\ntext = "Why?"\n')
    assert demo.read_questions(path) == (demo.Question("When?", "a.pdf", 3), demo.Question("Why?"))


@pytest.mark.parametrize("content", ["[[question]]\n", "question = 1\n", "x", ""])
def test_questions_that_cannot_be_read_are_refused_by_their_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "questions.toml"
    path.write_text(content)
    with pytest.raises(errors.InvalidArgument, match=r"questions\.toml"):
        demo.read_questions(path)
    with pytest.raises(errors.NotFound, match="cannot be read"):
        demo.read_questions(tmp_path / "none.toml")


def test_an_answer_is_right_where_a_citation_stands_on_the_page(box: Box) -> None:
    box.answers["Ask"] = answers.ask("Badges expire.")
    with Client.local(box.data_dir) as client:
        answer = demo._ask(client, demo.Question("When?"), as_json=True)
        box.answers["Ask"] = answers.ask(answered=False)
        silence = demo._ask(client, demo.Question("Why?"), as_json=True)
    assert demo.Question("When?", "badges.md", 3).is_right(answer)
    assert demo.Question("When?", "badges.md").is_right(answer)
    assert not demo.Question("When?", "badges.md", 2).is_right(answer)
    assert not demo.Question("When?", "other.md", 3).is_right(answer)
    assert not demo.Question("When?").is_right(answer)
    assert not demo.Question("When?", "badges.md", 3).is_right(silence)
    assert demo.Question("Why?").is_right(silence)


def test_a_demo_whose_daemon_cannot_start_ends_as_the_daemon_did(cli: Cli, tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    (samples / "questions.toml").write_text('[[question]]\ntext = "When?"\n')
    (tmp_path / "appliance.toml").write_text('nonsense = "x"\n')
    result = cli("demo", "--once", "--samples", str(samples))
    assert result.exit_code == errors.ConfigInvalid.exit_code
    assert "nonsense: there is no such option." in result.stderr


def test_the_samples_hold_the_documents_that_their_questions_name() -> None:
    samples = Path(demo.__file__).parent / "samples"
    questions = demo.read_questions(samples / "questions.toml")
    named = {question.document for question in questions if question.document}
    assert named <= {path.name for path in (samples / "documents").iterdir()}
    assert any(question.page == 3 and question.document.endswith(".pdf") for question in questions)
    assert any(not question.document for question in questions)
