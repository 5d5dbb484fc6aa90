"""`appliance ingest` against a scripted box: previews, starts, how they end, what was refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import errors
from appliance.cli import progress
from appliance.gen.v1 import ingest_pb2 as pb
from appliance.gen.v1 import job_pb2
from tests.box import Box, refusal
from tests.cli import answers
from tests.cli.answers import Cli
from tests.cli.ingesting import (
    ENDED,
    FILES,
    RUNNING,
    SCANNING,
    STICK,
    WAITING,
    FileState,
    State,
    ingestion,
    methods,
    script,
)

# --- preview and start


def test_a_preview_says_what_is_there_what_is_refused_and_how_to_go_on(box: Box, cli: Cli, tmp_path: Path) -> None:
    script(box, SCANNING, WAITING)
    result = cli("ingest", "preview", "/media/stick", "-c", "handbook", "--reader", "role:admin")
    assert result.exit_code == 0
    for words in (
        "Preview of stick RECORDS (serial 4C53): nothing is taken in yet.",
        "to take in     2 files, 6.0 KiB",
        "known already  1 file",
        "refused        1 file",
        "UNKNOWN_TYPE",
        "Save it as PDF.",
        "Take it in: appliance ingest start 7f",
    ):
        assert words in result.stdout
    assert [line.split() for line in result.stdout.splitlines() if line.startswith(("pdf", "markdown"))] == [
        ["pdf", "1", "4.0", "KiB"],
        ["markdown", "1", "2.0", "KiB"],
    ]
    request = box.calls[0].request
    assert (request.source, request.collection) == ("/media/stick", "collections/handbook")
    assert (list(request.readers), request.approve) == (["role:admin"], False)
    assert "ApproveIngestion" not in methods(box)


def test_a_preview_as_json_has_files_by_format_and_the_next_command(box: Box, cli: Cli) -> None:
    script(box, SCANNING, WAITING)
    shown = json.loads(cli("ingest", "preview", "/media/stick", "--json").stdout)
    assert shown["formats"][0] == {"format": "pdf", "files": 1, "size_bytes": 4096}
    assert [file["path"] for file in shown["refused"]] == ["x.exe"]
    assert [file["path"] for file in shown["duplicates"]] == ["known.md"]
    assert (shown["ingestion"]["name"], shown["next"]) == ("ingestions/7f", "appliance ingest start 7f")


def test_the_next_command_names_the_box_where_it_was_named(
    box: Box, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("APPLIANCE_DATA_DIR")
    script(box, SCANNING, WAITING)
    result = cli("--data-dir", str(tmp_path), "ingest", "preview", "/media/stick")
    assert f"Take it in: appliance --data-dir {tmp_path} ingest start 7f" in result.stdout


def test_a_previewed_ingestion_is_approved_and_ends_with_the_files_that_failed(box: Box, cli: Cli) -> None:
    script(box, RUNNING, WAITING, ENDED)
    result = cli("ingest", "start", "7f")
    assert result.stdout.splitlines()[:2] == [
        "2 of 4 files taken into handbook: 1 known already, 1 refused.",
        "From stick RECORDS (serial 4C53), for everyone.",
    ]
    assert "x.exe" in result.stdout
    assert "a.md" not in result.stdout
    assert "StartIngestion" not in methods(box)
    assert "ApproveIngestion" in methods(box)


def test_where_files_were_refused_the_verb_says_so_and_ends_with_a_code_of_its_own(box: Box, cli: Cli) -> None:
    script(box, RUNNING, ENDED)
    for words in (("start", "/stick", "--yes"), ("watch", "7f"), ("resume", "7f"), ("quarantine", "release", "9a")):
        result = cli("ingest", *words)
        assert (result.exit_code, errors.SomeRefused.exit_code) == (8, 8)
        assert "error: 1 of 4 files was refused." in result.stderr
    told = cli("ingest", "start", "/stick", "--yes", "--json")
    assert (told.exit_code, json.loads(told.stdout)["ingestion"]["state"]) == (8, "succeeded")
    assert json.loads(told.stderr)["error"]["reason"] == "SOME_REFUSED"
    assert cli("ingest", "show", "7f").exit_code == 0
    script(box, RUNNING, ingestion(State.STATE_SUCCEEDED, counts={"committed": 3}))
    assert cli("ingest", "start", "/stick", "--yes").exit_code == 0


def test_many_refused_files_are_told_by_their_reasons_with_the_command_that_tells_of_each(box: Box, cli: Cli) -> None:
    refused = [
        pb.FileOutcome(path=f"{n}.exe", state=FileState.STATE_QUARANTINED, reason="UNKNOWN_TYPE", remedy="Save it.")
        for n in range(2815)
    ]
    refused.append(pb.FileOutcome(path="x.pdf", state=FileState.STATE_QUARANTINED, reason="PDF_BROKEN"))
    script(box, RUNNING, ingestion(State.STATE_SUCCEEDED, counts={"committed": 1, "quarantined": 2816}))
    box.answers["ListFiles"] = answers.files(*refused)
    shown = cli("ingest", "start", "/stick", "--yes").stdout
    assert "1 of 2,817 files taken into handbook: 2,816 refused." in shown
    assert [line.split()[:3] for line in shown.splitlines() if line.startswith(("UNKNOWN", "PDF"))] == [
        ["UNKNOWN_TYPE", "2,815", "0.exe"],
        ["PDF_BROKEN", "1", "x.pdf"],
    ]
    assert "Each of them: appliance ingest report 7f --format csv" in shown
    box.answers["ListFiles"] = answers.files(*refused[:20])
    shown = cli("ingest", "show", "7f").stdout
    assert all(f"{n}.exe" in shown for n in range(20))
    assert "Each of them" not in shown


def test_with_yes_a_source_is_taken_in_without_a_stop(box: Box, cli: Cli) -> None:
    script(box, RUNNING, ENDED)
    result = cli("ingest", "start", "/media/stick", "--yes", "--json")
    assert json.loads(result.stdout)["ingestion"]["counts"] == {"committed": 2, "duplicate": 1, "quarantined": 1}
    assert [file["reason"] for file in json.loads(result.stdout)["failed"]] == ["UNKNOWN_TYPE"]
    assert box.calls[0].request.approve
    assert "ApproveIngestion" not in methods(box)


def test_without_yes_a_source_is_previewed_and_somebody_asked(box: Box, cli: Cli) -> None:
    script(box, SCANNING, WAITING, ENDED)
    box.answers["ApproveIngestion"] = lambda request, context: pb.ApproveIngestionResponse(ingestion=RUNNING)
    result = cli("ingest", "start", "/media/stick", input="y\n")
    assert result.stdout.index("Preview of") < result.stdout.index("2 of 4 files taken")


@pytest.mark.parametrize("verb", ["start", "preview"])
def test_where_there_is_nothing_to_take_in_nobody_is_asked_and_nothing_waits(box: Box, cli: Cli, verb: str) -> None:
    script(box, SCANNING, WAITING)
    box.answers["ListFiles"] = answers.files(FILES[2])
    box.answers["CancelIngestion"] = lambda request, context: pb.CancelIngestionResponse(
        ingestion=ingestion(State.STATE_CANCELLED)
    )
    result = cli("ingest", verb, "/media/stick")
    assert result.exit_code == 0
    assert "There is nothing to take in." in result.stdout
    assert "Take it in" not in result.stdout + result.stderr
    assert "CancelIngestion" in methods(box)
    assert json.loads(cli("ingest", verb, "/media/stick", "--json").stdout)["next"] == ""
    box.answers["ListFiles"] = answers.files(*FILES[2:])
    assert cli("ingest", "start", "/media/stick").exit_code == errors.SomeRefused.exit_code


@pytest.mark.parametrize("said", ["n\n", ""])
def test_where_nobody_agrees_nothing_is_approved_and_it_waits(box: Box, cli: Cli, said: str) -> None:
    script(box, SCANNING, WAITING)
    result = cli("ingest", "start", "/media/stick", input=said)
    assert result.exit_code == 130
    assert "Take it in: appliance ingest start 7f" in result.stdout
    assert "Drop it:    appliance ingest cancel 7f" in result.stdout
    assert "error: Nothing was taken in: ingestions/7f waits." in result.stderr
    assert "Nothing to do" not in result.stderr
    assert "ApproveIngestion" not in methods(box)


def test_a_relative_path_is_sent_absolute_also_where_it_is_a_bare_word(
    box: Box, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "7f").mkdir()
    monkeypatch.chdir(tmp_path)
    script(box, RUNNING, ENDED)
    cli("ingest", "start", "7f", "--yes")
    assert box.calls[0].request.source == str(tmp_path / "7f")


def test_a_source_of_the_box_is_named_without_its_prefix(box: Box, cli: Cli) -> None:
    script(box, RUNNING, ENDED)
    box.answers["GetIngestion"] = refusal(errors.NotFound("There is no such ingestion."))
    stick = pb.Source(name="sources/usb-4c53", provenance=STICK, state=pb.Source.STATE_READY)
    box.answers["ListSources"] = lambda request, context: pb.ListSourcesResponse(sources=[stick])
    cli("ingest", "start", "usb-4c53", "--yes", "--no-wait")
    assert next(call.request.source for call in box.calls if call.method == "StartIngestion") == "sources/usb-4c53"


@pytest.mark.parametrize("verb", [("ingest", "start"), ("ingest", "preview"), ("ingest", "sources", "watch")])
def test_a_path_that_is_no_utf_8_is_told_so_and_nothing_starts(box: Box, cli: Cli, verb: tuple[str, ...]) -> None:
    result = cli(*verb, "/srv/caf\udce9")
    assert (result.exit_code, "is no UTF-8: name a folder around it" in result.stderr) == (3, True)
    assert methods(box) == []


def test_a_word_that_names_nothing_is_told_so_and_nothing_starts(box: Box, cli: Cli) -> None:
    script(box, RUNNING)
    box.answers["GetIngestion"] = refusal(errors.NotFound("There is no such ingestion."))
    box.answers["ListSources"] = lambda request, context: pb.ListSourcesResponse()
    result = cli("ingest", "start", "nothere", "--yes")
    assert result.exit_code == 4
    assert "Nothing is called nothere: no ingestion, no source, and no path here." in result.stderr
    assert "StartIngestion" not in methods(box)


def test_a_path_that_the_box_takes_nothing_from_is_told_how_to_send_it(box: Box, cli: Cli, tmp_path: Path) -> None:
    outside = errors.SourceRefused("Nothing is taken from there: it lies in no folder of the option `ingest_roots`.")
    box.answers["StartIngestion"] = refusal(outside)
    words = ("-c", "handbook", "--reader", "role:admin", "--reader", "user:ann")
    for verb in ("start", "preview"):
        result = cli("ingest", verb, str(tmp_path), *words)
        assert result.exit_code == errors.SourceRefused.exit_code
        told = " ".join(result.stderr.split())
        assert f"Send it: appliance ingest upload {tmp_path} {' '.join(words)}" in told
        assert "ingest_roots" in told
    assert "Send it" not in cli("ingest", "start", "/not/on/this/machine", "--yes").stderr


def test_without_waiting_the_way_back_is_named(box: Box, cli: Cli) -> None:
    script(box, RUNNING)
    assert "appliance ingest watch 7f" in cli("ingest", "start", "/stick", "--yes", "--no-wait").stdout
    assert set(methods(box)) == {"StartIngestion"}


def test_readers_are_said_before_the_preview_and_not_after_it(box: Box, cli: Cli) -> None:
    script(box, RUNNING, WAITING)
    assert cli("ingest", "start", "7f", "--reader", "role:admin").exit_code == 2
    assert "ApproveIngestion" not in methods(box)


def test_one_that_waits_says_how_it_is_approved(box: Box, cli: Cli) -> None:
    script(box, RUNNING, WAITING)
    for verb in ("watch", "show"):
        shown = cli("ingest", verb, "7f").stdout
        assert "Take it in: appliance ingest start 7f\nDrop it:    appliance ingest cancel 7f" in shown


def test_what_another_person_must_approve_says_so(box: Box, cli: Cli) -> None:
    script(box, SCANNING)
    box.answers["StartIngestion"] = refusal(errors.SecondPerson("Another person must approve it."))
    result = cli("ingest", "start", "/stick", "--yes")
    assert result.exit_code == errors.SecondPerson.exit_code == 5
    assert "Have another operator approve it" in result.stderr


# --- how it ends


def test_one_that_fails_says_what_was_kept_and_fails_as_its_job_did(box: Box, cli: Cli) -> None:
    failed = answers.job(job_pb2.Job.STATE_FAILED, error_reason="DISK_FULL", error_message="No space is left.")
    script(box, RUNNING, ingestion(State.STATE_FAILED, problem="No space is left."), job=failed)
    result = cli("ingest", "start", "/stick", "--yes")
    assert result.exit_code == errors.DiskFull.exit_code
    assert "Failed: 0 of 0 files taken into handbook. What was taken is kept." in result.stdout
    assert "error: No space is left." in result.stderr


def test_one_whose_job_is_forgotten_fails_with_its_problem(box: Box, cli: Cli) -> None:
    script(box, ingestion(State.STATE_FAILED, problem="The disk was full."))
    box.answers["GetJob"] = refusal(errors.NotFound("There is no job."))
    result = cli("ingest", "resume", "7f")
    assert result.exit_code == 1
    assert "error: The disk was full." in result.stderr


def test_a_file_that_was_left_by_one_that_is_done_shows_in_the_exit_code(box: Box, cli: Cli) -> None:
    script(box, ingestion(State.STATE_SUCCEEDED, counts={"committed": 2, "left": 1}))
    result = cli("ingest", "watch", "7f")
    assert (result.exit_code, "1 of 3 files was left." in result.stderr) == (8, True)


def test_a_pulled_stick_is_to_be_plugged_in_again(box: Box, cli: Cli) -> None:
    gone = answers.job(job_pb2.Job.STATE_FAILED, error_reason="SOURCE_GONE", error_message="The stick was pulled.")
    script(box, RUNNING, ingestion(State.STATE_INTERRUPTED, problem="The stick was pulled. Plug it in."), job=gone)
    for _ in range(2):
        result = cli("ingest", "start", "/stick", "--yes")
        assert result.exit_code == errors.SourceGone.exit_code == 6
        assert "error: The stick was pulled." in result.stderr
        assert "Plug it in again" in result.stderr
        box.answers["GetJob"] = refusal(errors.NotFound("There is no job."))


def test_a_source_that_is_refused_by_now_is_not_to_be_plugged_in_again(box: Box, cli: Cli) -> None:
    refused = answers.job(job_pb2.Job.STATE_FAILED, error_reason="SOURCE_REFUSED", error_message="It lies outside.")
    script(box, RUNNING, ingestion(State.STATE_INTERRUPTED, problem="It lies outside. Do so."), job=refused)
    result = cli("ingest", "start", "/stick", "--yes")
    assert result.exit_code == errors.SourceRefused.exit_code == 3
    assert "error: It lies outside.\n" in result.stderr
    assert "Plug it in again" not in result.stderr


def test_ctrl_c_leaves_it_at_work_and_says_how_to_come_back(
    box: Box, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(states: Iterator[Any]) -> None:
        raise KeyboardInterrupt

    script(box, RUNNING, RUNNING)
    monkeypatch.setattr(progress, "show", interrupted)
    result = cli("ingest", "watch", "7f")
    assert result.exit_code == 130
    assert "appliance ingest watch 7f" in result.stderr
    assert "appliance ingest cancel 7f" in result.stderr
    assert not {"CancelJob", "CancelIngestion"} & set(methods(box))


def test_a_job_that_the_box_has_forgotten_is_no_reason_to_stop_watching(box: Box, cli: Cli) -> None:
    script(box, RUNNING, RUNNING, ENDED)
    box.answers["WatchJob"] = refusal(errors.NotFound("There is no job."))
    assert "2 of 4 files taken" in cli("ingest", "watch", "7f").stdout


def test_a_cancelled_one_keeps_what_was_committed(box: Box, cli: Cli) -> None:
    script(box, ingestion(State.STATE_CANCELLED))
    assert "ingestions/7f is cancelled. What was committed stays." in cli("ingest", "cancel", "7f").stdout
    assert cli("ingest", "watch", "ingestions/7f").exit_code == 130


def test_ingestions_are_listed_and_shown_with_every_file(box: Box, cli: Cli) -> None:
    script(box, ENDED)
    box.answers["ListIngestions"] = lambda request, context: pb.ListIngestionsResponse(ingestions=[ENDED])
    assert "stick RECORDS (serial 4C53)" in cli("ingest", "list").stdout
    [listed] = json.loads(cli("ingest", "list", "--json").stdout)["ingestions"]
    assert (listed["state"], listed["operator"]) == ("succeeded", "olga")
    assert "a.md" in cli("ingest", "show", "7f", "--all").stdout
    assert "a.md" not in cli("ingest", "show", "7f").stdout
    assert len(json.loads(cli("ingest", "show", "7f", "--all", "--json").stdout)["files"]) == len(FILES)


# --- quarantine


def test_refused_files_are_listed_with_reason_and_remedy(box: Box, cli: Cli) -> None:
    words: dict[str, Any] = {
        "reason": "PDF_ENCRYPTED",
        "detail": "It asks for a password.",
        "remedy": "Save it without.",
    }
    refused = pb.FileOutcome(id="9a", path="x.pdf", state=FileState.STATE_QUARANTINED, **words)
    box.answers["ListQuarantine"] = lambda request, context: pb.ListQuarantineResponse(files=[refused])
    shown = cli("ingest", "quarantine", "list").stdout
    assert "PDF_ENCRYPTED" in shown
    assert "It asks for a password. Save it without." in shown
    [file] = json.loads(cli("ingest", "quarantine", "list", "--json").stdout)["files"]
    assert (file["id"], file["remedy"]) == ("9a", "Save it without.")


def test_a_file_that_was_refused_again_and_again_is_listed_once_and_whether_its_bytes_are_kept(
    box: Box, cli: Cli
) -> None:
    def refused(file: str, path: str, sha256: str, kept: bool = False, released: bool = False) -> pb.FileOutcome:
        state = FileState.STATE_QUARANTINED
        return pb.FileOutcome(id=file, path=path, sha256=sha256, state=state, kept=kept, released=released)

    every = (
        refused("cccccccccccccccc-2", "x.pdf", "ab", kept=True),
        refused("cccccccccccccccc-1", "x.pdf", "cd"),
        refused("bbbbbbbbbbbbbbbb-1", "x.pdf", "ab", released=True),
        refused("aaaaaaaaaaaaaaaa-1", "y.pdf", "ab"),
    )
    box.answers["ListQuarantine"] = lambda request, context: pb.ListQuarantineResponse(files=every)
    result = cli("ingest", "quarantine", "list")
    lines = [line.split("  ") for line in result.stdout.splitlines()[1:]]
    assert [[word.strip() for word in line if word][:3] for line in lines] == [
        ["cccccccc-2", "x.pdf", "kept"],
        ["cccccccc-1", "x.pdf", "not kept"],
        ["aaaaaaaa-1", "y.pdf", "not kept"],
    ]
    assert "1 older refusal of the same: --all" in result.stderr
    found = json.loads(cli("ingest", "quarantine", "list", "--json", "--all").stdout)["files"]
    assert [file["id"][0] for file in found] == ["c", "c", "b", "a"]
    assert [file["kept"] for file in found] == [True, False, False, False]
    assert "not kept, released" in cli("ingest", "quarantine", "list", "--all").stdout


def test_released_files_go_on_their_way_for_the_readers_that_are_named(box: Box, cli: Cli) -> None:
    script(box, RUNNING, ENDED)
    cli("ingest", "quarantine", "release", "9a", "9b", "--reader", "group:hr")
    assert (list(box.calls[0].request.ids), list(box.calls[0].request.readers)) == (["9a", "9b"], ["group:hr"])


def test_a_purge_asks_first(box: Box, cli: Cli) -> None:
    box.answers["PurgeFiles"] = lambda request, context: pb.PurgeFilesResponse(purged=2)
    assert cli("ingest", "quarantine", "purge", "9a", input="n\n").exit_code == 130
    assert (
        cli("ingest", "quarantine", "purge").exit_code
        == cli("ingest", "quarantine", "purge", "9a", "--all").exit_code
        == 2
    )
    assert box.calls == []
    assert "Destroyed the bytes of 2 files." in cli("ingest", "quarantine", "purge", "--all", "--yes").stdout
    assert (box.calls[0].request.all, list(box.calls[0].request.ids)) == (True, [])
