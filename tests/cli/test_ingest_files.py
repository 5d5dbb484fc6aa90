"""`appliance ingest` against a scripted box: reports, uploads, sources, and `appliance documents why`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import errors
from appliance.cli.ingest.runs import write_new
from appliance.gen.v1 import ingest_pb2 as pb
from appliance.gen.v1 import job_pb2, knowledge_pb2
from tests.box import Box, refusal
from tests.cli import answers
from tests.cli.answers import Cli
from tests.cli.ingesting import ENDED, RUNNING, STICK, State, Uploads, ingestion, methods, script

# --- reports


def reported(box: Box, *pieces: bytes) -> None:
    box.answers["GetReport"] = lambda request, context: iter([pb.GetReportResponse(data=piece) for piece in pieces])


def test_a_report_is_written_to_stdout_or_to_a_new_file(box: Box, cli: Cli, tmp_path: Path) -> None:
    reported(box, b"file,", b"state\n")
    assert cli("ingest", "report", "7f", "--format", "csv").stdout == "file,state\n"
    assert box.calls[0].request.format == pb.GetReportRequest.FORMAT_CSV
    target = tmp_path / "report.csv"
    assert f"Wrote {target}, 11 B." in cli("ingest", "report", "7f", "-o", str(target)).stdout
    assert target.read_bytes() == b"file,state\n"


def test_a_report_is_never_written_over_a_file_unless_forced(box: Box, cli: Cli, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("mine")
    reported(box, b"{}")
    refused = cli("ingest", "report", "7f", "--output", str(target))
    assert refused.exit_code == errors.AlreadyExists.exit_code
    assert "--force" in refused.stderr
    assert target.read_text() == "mine"
    assert cli("ingest", "report", "7f", "--output", str(target), "--force").exit_code == 0
    assert target.read_text() == "{}"


def test_a_report_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    def breaks() -> Iterator[bytes]:
        yield b"half"
        raise errors.Unreachable("The connection broke off.")

    with pytest.raises(errors.Unreachable):
        write_new(tmp_path / "report.json", breaks(), force=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_comes_to_be_while_a_report_is_fetched_is_kept(tmp_path: Path) -> None:
    def meanwhile() -> Iterator[bytes]:
        (tmp_path / "report.json").write_text("another's")
        yield b"{}"

    with pytest.raises(errors.AlreadyExists):
        write_new(tmp_path / "report.json", meanwhile(), force=False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["another's"]


def test_a_folder_that_is_not_there_is_named(box: Box, cli: Cli, tmp_path: Path) -> None:
    reported(box, b"{}")
    result = cli("ingest", "report", "7f", "--output", str(tmp_path / "gone" / "report.json"))
    assert result.exit_code == 3
    assert "gone/report.json cannot be written: No such file or directory." in result.stderr


# --- uploads


def test_a_file_is_sent_in_pieces_with_its_hash_and_taken_in(box: Box, cli: Cli, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2500
    (tmp_path / "long.pdf").write_bytes(content)
    script(box, RUNNING, ENDED)
    uploads = Uploads(box)
    result = cli("ingest", "upload", str(tmp_path / "long.pdf"), "-c", "handbook")
    assert (result.exit_code, bytes(uploads.kept)) == (errors.SomeRefused.exit_code, content)
    assert uploads.sizes == [256 << 10, 256 << 10, len(content) - (512 << 10), 0]
    assert "2 of 4 files taken into handbook" in result.stdout
    created = box.calls[0].request
    assert (created.path, created.collection) == ("long.pdf", "collections/handbook")
    assert created.size_bytes == len(content)


def test_several_uploads_are_one_document_of_json(box: Box, cli: Cli, tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("One.")
    script(box, ENDED)
    Uploads(box)
    result = cli("ingest", "upload", str(tmp_path / "a.md"), str(tmp_path / "b.md"), "--json", "--no-wait")
    assert [one["ingestion"]["id"] for one in json.loads(result.stdout)["uploads"]] == ["7f", "7f"]


def test_one_code_tells_of_all_uploads_and_one_that_failed_comes_first(box: Box, cli: Cli, tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("One.")
    files = (str(tmp_path / "a.md"), str(tmp_path / "b.md"))
    script(box, RUNNING, ENDED)
    Uploads(box)
    result = cli("ingest", "upload", *files)
    assert (result.exit_code, "2 of 8 files were refused." in result.stderr) == (8, True)
    assert "a.md: 2 of 4 files taken into handbook: 1 known already, 1 refused.\n" in result.stdout
    assert (result.stdout.count("UNKNOWN_TYPE"), "whole story" in result.stdout) == (2, False)
    gone = answers.job(job_pb2.Job.STATE_FAILED, error_reason="SOURCE_GONE", error_message="It went away.")
    script(box, RUNNING, ENDED, ingestion(State.STATE_INTERRUPTED, problem="It went away."), job=gone)
    assert cli("ingest", "upload", *files).exit_code == errors.SourceGone.exit_code


def test_an_upload_that_breaks_off_goes_on_where_the_box_has_it(box: Box, cli: Cli, tmp_path: Path) -> None:
    content = b"0123456789abcdef" * (40 << 10)
    (tmp_path / "long.pdf").write_bytes(content)
    script(box, RUNNING, ENDED)
    uploads = Uploads(box, breaks_after=1)
    broken = cli("ingest", "upload", str(tmp_path / "long.pdf"))
    assert broken.exit_code == errors.Draining.exit_code
    assert len(uploads.kept) == 256 << 10
    assert f"appliance ingest upload {tmp_path}/long.pdf --resume 5e" in broken.stderr
    assert "appliance ingest uploads cancel 5e" in broken.stderr
    cli("ingest", "upload", str(tmp_path / "long.pdf"), "--resume", "5e")
    assert bytes(uploads.kept) == content
    assert methods(box).count("CreateUpload") == 1


def test_a_file_that_is_not_there_is_named_before_anything_is_sent(box: Box, cli: Cli, tmp_path: Path) -> None:
    Uploads(box)
    result = cli("ingest", "upload", str(tmp_path / "gone.pdf"))
    assert result.exit_code == 2
    assert "gone.pdf" in result.stderr
    assert methods(box) == []


def test_only_one_file_goes_on_from_an_upload(box: Box, cli: Cli, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    for paths in (("a", "b"), (".",)):
        result = cli("ingest", "upload", *(str(tmp_path / path) for path in paths), "--resume", "5e")
        assert (result.exit_code, "--resume takes the one FILE" in result.stderr) == (2, True)
    assert methods(box) == []


def test_a_folder_is_sent_file_by_file_with_its_name_before_theirs(box: Box, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    for name in ("b.md", "a/c.md", "a/d.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("One.")
    (folder / "secret.md").symlink_to("/etc/passwd")
    (folder / "way").symlink_to("/etc", target_is_directory=True)
    script(box, ENDED)
    uploads = Uploads(box)
    result = cli("ingest", "upload", str(folder), "--no-wait")
    assert uploads.names == ["docs/b.md", "docs/a/c.md", "docs/a/d.md"]
    for name in ("secret.md", "way"):
        assert f"{folder}/{name} is left out: it is a link" in result.stderr.replace("\n", " ")
    assert (result.exit_code, "Not all was sent: 2 left out" in result.stderr) == (8, True)
    for name in ("secret.md", "way"):
        (folder / name).unlink()
    assert cli("ingest", "upload", str(folder), "--no-wait").exit_code == 0


def test_a_file_that_cannot_be_opened_leaves_no_upload_behind(box: Box, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").touch()
    script(box, ENDED)
    uploads = Uploads(box)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("builtins.open", _forbidden)
        result = cli("ingest", "upload", str(tmp_path / "docs"))
    assert (result.exit_code, uploads.names) == (4, [])
    assert "cannot be read: Permission denied." in result.stderr.replace("\n", " ")


def _forbidden(path: Any, *arguments: Any, opened: Any = open, **named: Any) -> Any:
    if str(path).endswith("/docs/a.md"):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *arguments, **named)


def test_a_file_that_cannot_be_read_to_its_end_is_named_with_how_to_go_on(box: Box, cli: Cli) -> None:
    Uploads(box)
    result = cli("ingest", "upload", "/proc/self/mem")  # its first page is in no process
    told = result.stderr.replace("\n", " ")
    assert (result.exit_code, "/proc/self/mem cannot be read: Input/output error." in told) == (4, True)
    assert "appliance ingest uploads cancel 5e" in told


def test_a_folder_without_a_file_is_named(box: Box, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    result = cli("ingest", "upload", str(tmp_path / "empty"))
    assert result.exit_code == errors.NotFound.exit_code
    assert f"There is no file in {tmp_path}/empty." in result.stderr.replace("\n", " ")


def test_a_file_that_is_too_large_keeps_no_other_back_and_is_said(box: Box, cli: Cli, tmp_path: Path) -> None:
    for name, size in (("a.md", 9), ("b.md", 2)):
        (tmp_path / name).write_bytes(bytes(size))
    script(box, ENDED)
    uploads = Uploads(box)

    def create(request: pb.CreateUploadRequest, context: Any) -> Any:
        if request.size_bytes > 8:
            return refusal(errors.UploadTooLarge.of(8 << 20))(request, context)
        return uploads.create(request, context)

    box.answers["CreateUpload"] = create
    result = cli("ingest", "upload", str(tmp_path / "a.md"), str(tmp_path / "b.md"))
    assert (result.exit_code, uploads.names) == (3, ["b.md"])
    assert f"{tmp_path}/a.md is not taken: A file may have at most 8 MiB" in result.stderr.replace("\n", " ")
    assert "document_max_mib" in result.stderr
    assert "Split the file" in result.stderr


def test_uploads_are_listed_with_who_and_how_much_and_cancelled(box: Box, cli: Cli) -> None:
    found = [
        pb.Upload(
            name="uploads/5e",
            path="docs/a.pdf",
            collection="collections/handbook",
            user="olga",
            size_bytes=3 << 20,
            create_time=answers.STAMP,
            update_time=answers.STAMP,
        ),
        pb.Upload(name="uploads/6f", size_bytes=100, create_time=answers.STAMP, update_time=answers.STAMP),
    ]
    box.answers |= {
        "ListUploads": lambda request, context: pb.ListUploadsResponse(uploads=found),
        "CancelUpload": lambda request, context: pb.CancelUploadResponse(),
    }
    shown = cli("ingest", "uploads", "list").stdout
    for words in ("5e", "docs/a.pdf", "3.0 MiB", "handbook", "olga", "6f", "cannot be read"):
        assert words in shown
    first, _ = json.loads(cli("ingest", "uploads", "list", "--json").stdout)["uploads"]
    assert (first["id"], first["user"], first["size_bytes"]) == ("5e", "olga", 3 << 20)
    assert first["create_time"]
    box.calls.clear()
    assert "Cancelled 2 uploads" in cli("ingest", "uploads", "cancel", "5e", "uploads/6f").stdout
    assert [call.request.upload for call in box.calls] == ["uploads/5e", "uploads/6f"]


# --- sources


def test_sources_show_why_they_are_not_ready(box: Box, cli: Cli) -> None:
    watch = pb.Watch(collection="collections/handbook", readers=["everyone"], settle_polls=3)
    folder = pb.Provenance(kind=pb.Provenance.KIND_FOLDER, path="/srv/drop")
    found = [
        pb.Source(
            name="sources/usb-4c53",
            provenance=STICK,
            state=pb.Source.STATE_REFUSED,
            problem="It is not allowed.",
            filesystem="FAT32",
            size_bytes=8 << 30,
        ),
        pb.Source(name="sources/drop", provenance=folder, state=pb.Source.STATE_READY, watch=watch),
    ]
    box.answers["ListSources"] = lambda request, context: pb.ListSourcesResponse(sources=found)
    shown = cli("ingest", "sources", "list").stdout
    for words in ("usb-4c53", "It is not allowed.", "8.0 GiB", "FAT32", "folder /srv/drop", "handbook"):
        assert words in shown
    stick, drop = json.loads(cli("ingest", "sources", "list", "--json").stdout)["sources"]
    assert (stick["state"], stick["watch"]) == ("refused", None)
    assert drop["watch"] == {"collection": "handbook", "readers": ["everyone"], "approve": False, "settle_polls": 3}


def test_a_watched_folder_has_its_settings(box: Box, cli: Cli) -> None:
    def answer(request: Any, context: Any) -> pb.WatchSourceResponse:
        kind = pb.Provenance(kind=pb.Provenance.KIND_SHARE, path=request.path)
        source = pb.Source(name="sources/drop", provenance=kind, state=pb.Source.STATE_READY, watch=request.watch)
        return pb.WatchSourceResponse(source=source)

    box.answers["WatchSource"] = answer
    words = ("-c", "handbook", "--reader", "role:admin", "--share", "--approve", "--settle-polls", "5")
    assert "sources/drop is watched" in cli("ingest", "sources", "watch", "/srv/drop", *words).stdout
    request = box.calls[0].request
    assert (request.path, request.share) == ("/srv/drop", True)
    assert request.watch == pb.Watch(
        collection="collections/handbook", readers=["role:admin"], approve=True, settle_polls=5
    )


def test_devices_and_signers_are_let_in_and_out(box: Box, cli: Cli) -> None:
    box.answers |= {
        "ListSources": lambda request, context: pb.ListSourcesResponse(),
        "UnwatchSource": lambda request, context: pb.UnwatchSourceResponse(),
        "AllowDevice": lambda request, context: pb.AllowDeviceResponse(),
        "TrustSigner": lambda request, context: pb.TrustSignerResponse(),
    }
    for words in ("unwatch drop", "allow 4C53", "forbid 4C53", f"trust records {'ab' * 32}", "distrust records"):
        assert cli("ingest", "sources", *words.split()).exit_code == 0
    assert [call.request for call in box.calls if call.method != "ListSources"] == [
        pb.UnwatchSourceRequest(name="sources/drop"),
        pb.AllowDeviceRequest(serial="4C53", allowed=True),
        pb.AllowDeviceRequest(serial="4C53", allowed=False),
        pb.TrustSignerRequest(signer="records", public_key="ab" * 32),
        pb.TrustSignerRequest(signer="records"),
    ]


def test_a_serial_number_of_no_stick_that_is_plugged_in_is_allowed_with_a_word_of_that(box: Box, cli: Cli) -> None:
    stick = pb.Source(name="sources/usb-4c53", provenance=STICK, state=pb.Source.STATE_REFUSED)
    box.answers |= {
        "ListSources": lambda request, context: pb.ListSourcesResponse(sources=[stick]),
        "AllowDevice": lambda request, context: pb.AllowDeviceResponse(),
    }
    assert "No stick of that number is plugged in" in cli("ingest", "sources", "allow", "../x").stderr
    for words in (("allow", "4C53"), ("forbid", "../x")):
        assert cli("ingest", "sources", *words).stderr == ""


def test_what_a_watch_finds_is_told_how_to_be_approved(box: Box, cli: Cli) -> None:
    source = pb.Source(name="sources/drop", provenance=STICK, state=pb.Source.STATE_READY)
    box.answers["WatchSource"] = lambda request, context: pb.WatchSourceResponse(source=source)
    shown = cli("ingest", "sources", "watch", "/srv/drop").stdout
    assert "See what waits: appliance ingest list" in shown
    assert "Take it in:     appliance ingest start INGESTION" in shown


def test_a_link_in_a_folder_that_is_to_be_signed_is_named_with_what_to_do(cli: Cli, tmp_path: Path) -> None:
    cli("ingest", "keygen", str(tmp_path / "key.pem"))
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / "way").symlink_to("/etc")
    result = cli("ingest", "sign", str(tmp_path / "stick"), "--key", str(tmp_path / "key.pem"))
    assert result.exit_code == 3
    assert f"error: {tmp_path}/stick/way is a link, a pipe or a device" in result.stderr
    assert "remedy: Put a file that can be read in its place" in result.stderr


def test_a_stick_is_signed_without_a_box(cli: Cli, tmp_path: Path) -> None:
    folder, key = tmp_path / "stick", tmp_path / "key.pem"
    folder.mkdir()
    (folder / "a.md").write_text("One.")
    public = json.loads(cli("ingest", "keygen", str(key), "--json").stdout)["public_key"]
    assert len(public) == 64
    assert key.stat().st_mode & 0o077 == 0
    assert "Signed 1 file: " in cli("ingest", "sign", str(folder), "--key", str(key)).stdout
    assert cli("ingest", "keygen", str(key)).exit_code == errors.AlreadyExists.exit_code


# --- lineage


def test_a_document_says_why_it_is_there(box: Box, cli: Cli) -> None:
    document = knowledge_pb2.Document(
        name=answers.DOCUMENT, title="box/a.md", sha256="ab" * 32, parser="markdown 1", page_count=1, passage_count=3
    )
    lineage = pb.Lineage(
        ingestion="ingestions/7f", operator="olga", approver="ann", provenance=STICK, container="box.zip"
    )
    found = pb.GetLineageResponse(document=document, pipeline="ingest-3", lineage=lineage, ingestion=ENDED)
    box.answers["GetLineage"] = lambda request, context: found
    shown = cli("documents", "why", answers.DOCUMENT).stdout
    who_and_what = ("stick RECORDS (serial 4C53)", "box.zip", "olga", "ann", "markdown 1, ingest-3")
    for words in ("3 on 1 page", "ab" * 32, *who_and_what, "ingestions/7f", "appliance ingest report 7f"):
        assert words in shown
    told = json.loads(cli("documents", "why", answers.DOCUMENT, "--json").stdout)
    assert (told["lineage"]["serial"], told["document"]["pipeline"]) == ("4C53", "ingest-3")
    assert "readers" not in told["document"]  # there are some, and who asked is not told whom
    document.readers.append("everyone")
    found.document.CopyFrom(document)
    assert json.loads(cli("documents", "why", answers.DOCUMENT, "--json").stdout)["document"]["readers"] == ["everyone"]
    assert "readers      everyone" in cli("documents", "why", answers.DOCUMENT).stdout


def test_a_document_of_no_ingestion_says_so(box: Box, cli: Cli) -> None:
    document = knowledge_pb2.Document(name=answers.DOCUMENT, title="a.md")
    box.answers["GetLineage"] = lambda request, context: pb.GetLineageResponse(document=document)
    assert "none: it was imported" in cli("documents", "why", answers.DOCUMENT).stdout
