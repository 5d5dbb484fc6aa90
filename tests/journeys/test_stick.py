"""A stick of documents: preview, approval, progress, and at the end the list of the files that failed and why."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.message import EmailMessage
from html.parser import HTMLParser
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.access import ca, roles
from appliance.client import Client
from appliance.errors import SecondPerson, SomeRefused, SourceRefused
from appliance.gen.v1 import ingest_pb2 as pb
from appliance.types import FileState, IngestionState, JobState, Principal, Role
from tests import stick_images
from tests.daemon import Daemon, eventually, running, start
from tests.pdf_files import encrypted_pdf, text_pdf

pytestmark = pytest.mark.long
RUSSIAN = "Регламент/Резервный генератор.txt"
GENERATOR = "The emergency generator in the south yard is refuelled every second Tuesday by the caretaker."
NESTED = "Visitors leave their badges with the porter in the east lodge."
FAILS = {
    "broken.pdf": "PDF_BROKEN",
    "secret.pdf": "PDF_ENCRYPTED",
    "minutes of may.docx": "TYPE_MISMATCH",
    "tool.exe": "UNKNOWN_TYPE",
}


def word(text: str) -> bytes:
    made, out = docx.Document(), BytesIO()
    made.add_heading("Minutes", 1)
    made.add_paragraph(text)
    made.save(out)
    return out.getvalue()


def slides(text: str) -> bytes:
    made, out = pptx.Presentation(), BytesIO()
    slide = made.slides.add_slide(made.slide_layouts[1])
    slide.shapes.title.text = "Keys"
    slide.placeholders[1].text = text
    made.save(out)
    return out.getvalue()


def workbook(*rows: tuple[str, ...]) -> bytes:
    made, out = openpyxl.Workbook(), BytesIO()
    for row in rows:
        made.active.append(row)
    made.save(out)
    return out.getvalue()


def mail(text: str) -> bytes:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "porter@site.example", "staff@site.example", "Lift"
    made.set_content(text)
    return made.as_bytes()


def archive(files: Mapping[str, bytes]) -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return out.getvalue()


def stick_files() -> dict[str, bytes]:
    """What somebody carries over: good documents of many kinds, and what goes wrong in practice."""
    return {
        RUSSIAN: GENERATOR.encode(),
        "badges.md": b"# Badges\n\nBadges expire after 90 days and are renewed at reception.\n",
        "manual.pdf": text_pdf(),
        "minutes.docx": word("The board moved the fire drill to the first Monday of October."),
        "keys.pptx": slides("The master key lies in the blue cabinet of the night desk."),
        "rooms.xlsx": workbook(("room", "phone"), ("Archive", "4417"), ("Laboratory", "4420")),
        "canteen.html": b"<html><body><h1>Canteen</h1><p>The canteen opens at half past six.</p></body></html>",
        "phones.csv": b"name,phone\nAda King,4411\nJohn Doe,4412\n",
        "lift.eml": mail("The goods lift stops for repairs on Friday at noon."),
        "bundle.zip": archive({"site/visitors.md": NESTED.encode(), "site/again.md": b"Bicycles stand in the cellar."}),
        "broken.pdf": b"%PDF-1.7\n" + b"this was a document once " * 40,
        "secret.pdf": encrypted_pdf("AES-256"),
        "minutes of may.docx": b"\x89PNG\r\n\x1a\n" + bytes(500),
        "tool.exe": b"MZ" + bytes(500),
    }


GOOD = len(stick_files()) - len(FAILS) - 1 + 2  # the archive is two documents, and none itself


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("box") / "data") as started:
        yield started


@pytest.fixture(scope="module")
def stick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not stick_images.has("mkfs.fat", "mcopy", "mmd"):
        pytest.skip("mtools and dosfstools are not installed")
    return stick_images.fat(tmp_path_factory.mktemp("stick") / "stick.img", stick_files(), label="RECORDS")


def appliance(box: Daemon, *words: str, exit_code: int = 0) -> str:
    """What a command line says on stdout; it must end so."""
    command = [sys.executable, "-m", "appliance.cli.main", f"--data-dir={box.data_dir}", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == exit_code, ended.stderr + ended.stdout
    return ended.stdout


def as_json(box: Daemon, *words: str, exit_code: int = 0) -> Any:
    return json.loads(appliance(box, *words, "--json", exit_code=exit_code))


def taken_but_for_some(box: Daemon, *words: str) -> Any:
    """As an ingestion ended that refused some of its files."""
    return as_json(box, "ingest", "start", *words, exit_code=SomeRefused.exit_code)


def titles(box: Daemon, collection: str) -> list[str]:
    return [document["title"] for document in as_json(box, "documents", "list", "-c", collection)["documents"]]


class Page(HTMLParser):
    """The texts of a page, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_a_stick_is_previewed_taken_in_reported_asked_and_known_from_then_on(
    box: Daemon, stick: Path, tmp_path: Path
) -> None:
    shown = appliance(box, "ingest", "preview", str(stick), "-c", "records")
    previewed = as_json(box, "ingest", "list")["ingestions"][0]
    assert previewed["state"] == "waiting"
    assert f"ingest start {previewed['id']}\n" in shown
    assert "tool.exe" in shown
    assert "UNKNOWN_TYPE" in shown
    assert as_json(box, "search", "-c", "records", "badges")["passages"] == []

    taken = taken_but_for_some(box, previewed["id"][:8])
    assert {file["path"]: file["reason"] for file in taken["failed"]} == FAILS
    assert all(file["remedy"] for file in taken["failed"])
    counts = taken["ingestion"]["counts"]
    assert (counts["committed"], counts["unpacked"], counts["quarantined"]) == (GOOD, 1, len(FAILS))
    assert taken["ingestion"]["state"] == "succeeded"
    assert taken["ingestion"]["provenance"]["label"] == "RECORDS"
    assert len(titles(box, "records")) == GOOD

    look_at_the_reports(box, previewed["id"], tmp_path)
    look_at_an_answer(box, previewed["id"])

    again = taken_but_for_some(box, str(stick), "-c", "records", "--yes")["ingestion"]["counts"]
    assert again.get("committed", 0) == 0
    assert again["duplicate"] == GOOD
    assert len(titles(box, "records")) == GOOD


def look_at_the_reports(box: Daemon, ingestion: str, folder: Path) -> None:
    report = json.loads(appliance(box, "ingest", "report", ingestion))
    reasons = {file["path"]: file["reason"] for file in report["files"] if file["state"] == "quarantined"}
    assert reasons == FAILS
    assert {"committed", "quarantined", "unpacked"} == {file["state"] for file in report["files"]}
    assert RUSSIAN in {file["path"] for file in report["files"]}

    target = folder / "report.html"
    appliance(box, "ingest", "report", ingestion, "--format", "html", "--output", str(target))
    page = Page(target.read_text())
    assert {"table", "h1"} <= page.tags
    assert not {"script", "iframe", "img", "link"} & page.tags
    for path, reason in FAILS.items():
        assert any(path in text for text in page.texts), path
        assert any(reason in text for text in page.texts), reason

    rows = list(csv.DictReader(StringIO(appliance(box, "ingest", "report", ingestion, "--format", "csv"))))
    assert {row["path"]: row["reason"] for row in rows if row["reason"]} == FAILS


def look_at_an_answer(box: Daemon, ingestion: str) -> None:
    answer = as_json(box, "ask", "-c", "records", "Who refuels the emergency generator in the south yard?")
    assert answer["answered"]
    assert answer["citations"][0]["document"] == RUSSIAN
    assert answer["citations"][0]["quote"] in GENERATOR
    told = as_json(box, "documents", "why", answer["citations"][0]["name"])
    assert told["document"]["sha256"] == hashlib.sha256(GENERATOR.encode()).hexdigest()
    assert told["document"]["passage_count"] == 1
    assert told["lineage"]["ingestion"] == f"ingestions/{ingestion}"
    assert (told["lineage"]["kind"], told["lineage"]["label"]) == ("image", "RECORDS")
    assert told["lineage"]["operator"] == told["lineage"]["approver"] == ca.local_principal().user

    nested = as_json(box, "ask", "-c", "records", "Where do visitors leave their badges?")
    member = as_json(box, "documents", "why", nested["citations"][0]["name"])
    assert member["lineage"]["container"] == "bundle.zip"
    assert ingestion in appliance(box, "documents", "why", nested["citations"][0]["name"])


def test_a_stick_of_another_file_system_is_mounted_where_the_box_may(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not stick_images.has("mkfs.ext4", "losetup"):
        pytest.skip("only root mounts, and mkfs.ext4 is needed")
    free = [shutil.which("losetup") or "losetup", "--find"]
    if subprocess.run(free, capture_output=True).returncode != 0:
        pytest.skip("this machine has no loop device")
    image, files = tmp_path / "stick.img", stick_files()
    for name, content in files.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(content)
    made = ["mkfs.ext4", "-q", "-L", "RECORDS", "-d", str(tmp_path / "files"), str(image), "40M"]
    subprocess.run(made, check=True, capture_output=True)
    with running(tmp_path / "data", "--stick-mount=ext4") as box:
        shown = as_json(box, "ingest", "preview", str(image), "-c", "records")
        assert [file["path"] for file in shown["refused"]] == ["tool.exe"]
        taken = taken_but_for_some(box, shown["ingestion"]["id"])
        assert {file["path"]: file["reason"] for file in taken["failed"]} == FAILS
        assert taken["ingestion"]["counts"]["committed"] == GOOD
        again = taken_but_for_some(box, str(image), "-c", "records", "--yes")["ingestion"]["counts"]
        assert (again.get("committed", 0), again["duplicate"]) == (0, GOOD)
        assert str(image) not in Path("/proc/mounts").read_text()
    with running(tmp_path / "other") as box, box.client() as client, pytest.raises(SourceRefused):
        client.ingest(str(image), "records")


def test_a_signed_stick_says_who_signed_it_and_which_file_is_another(box: Daemon, tmp_path: Path) -> None:
    if not stick_images.has("mkfs.fat", "mcopy", "mmd"):
        pytest.skip("mtools and dosfstools are not installed")
    folder, key = tmp_path / "files", tmp_path / "records.pem"
    folder.mkdir()
    (folder / "gates.md").write_text("The north gate opens at six.")
    (folder / "locks.md").write_text("The locks are oiled in May.")
    public = as_json(box, "ingest", "keygen", str(key))["public_key"]
    appliance(box, "ingest", "sign", str(folder), "--key", str(key))
    (folder / "locks.md").write_text("The locks are never oiled.")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    image = stick_images.fat(tmp_path / "signed.img", files, label="SIGNED")
    appliance(box, "ingest", "sources", "trust", "records", public)
    taken = taken_but_for_some(box, str(image), "-c", "signed", "--yes")
    assert taken["ingestion"]["provenance"]["signer"] == "records"
    assert {file["path"]: file["reason"] for file in taken["failed"]} == {"locks.md": "SIGNATURE_MISMATCH"}
    assert "signed by records" in appliance(box, "documents", "why", "gates.md", "-c", "signed")


def test_a_watched_folder_is_taken_in_by_itself_once_its_files_are_whole(tmp_path: Path) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    with running(tmp_path / "data", "--source-poll-seconds=1") as box, box.client() as client:
        appliance(box, "ingest", "sources", "watch", str(drop), "-c", "rules", "--approve", "--settle-polls", "0")
        (drop / "gates.md").write_text("The north gate opens at six.")
        (drop / "half.md").write_text("The south gate op")
        (drop / "gates.md.ready").touch()
        eventually(lambda: any(found.state is IngestionState.SUCCEEDED for found in client.ingestions()))
        assert titles(box, "rules") == ["gates.md"]
        [ingestion] = client.ingestions()
        assert (ingestion.operator, ingestion.approver) == ("policy", "policy")


def test_a_watched_file_that_stays_the_same_is_taken_and_is_not_brought_back_once_it_was_deleted(
    tmp_path: Path,
) -> None:
    drop = tmp_path / "drop"
    drop.mkdir()
    (drop / "gates.md").write_text("The north gate opens at six.")
    with running(tmp_path / "data", "--source-poll-seconds=1") as box, box.client() as client:
        appliance(box, "ingest", "sources", "watch", str(drop), "-c", "rules", "--approve", "--settle-polls", "1")
        eventually(lambda: [found.state for found in client.ingestions()] == [IngestionState.SUCCEEDED])
        [document] = client.documents("rules")
        client.delete_document(document.name)
        os.utime(drop / "gates.md")
        eventually(lambda: [found.state for found in client.ingestions()] == [IngestionState.SUCCEEDED] * 2)
        newest = next(iter(client.ingestions()))
        assert [(file.state, file.reason) for file in client.files(newest.id)] == [
            (FileState.DUPLICATE, "DELETED_BEFORE")
        ]
        assert titles(box, "rules") == []


def test_files_are_taken_only_from_folders_that_are_named_and_the_rest_is_sent(tmp_path: Path) -> None:
    docs, drop, data = tmp_path / "docs", tmp_path / "drop", tmp_path / "data"
    for folder, name in ((docs, "gates.md"), (drop, "locks.md")):
        folder.mkdir()
        (folder / name).write_text(f"The {folder.name} rules of {name}.")
    with running(data) as box:
        appliance(box, "ingest", "sources", "watch", str(drop), "-c", "rules")
    with running(data, "--ingest-roots=/srv", "--source-poll-seconds=1") as box, box.client() as client:
        for place in (docs, data / "keys", Path("/etc/passwd"), tmp_path / "none"):
            with pytest.raises(SourceRefused, match="ingest_roots"):
                client.ingest(str(place), "rules")
        command = [sys.executable, "-m", "appliance.cli.main", f"--data-dir={data}", "ingest", "start", str(docs)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert refused.returncode == SourceRefused.exit_code
        assert f"ingest upload {docs} -c default" in " ".join(refused.stderr.split())
        [source] = as_json(box, "ingest", "sources", "list")["sources"]
        assert (source["state"], "ingest_roots" in source["problem"]) == ("refused", True)
        eventually(lambda: "SOURCE_NOT_WATCHED" in {finding.code for finding in client.health().findings})

        [sent] = as_json(box, "ingest", "upload", str(docs), "-c", "rules")["uploads"]
        assert sent["ingestion"]["counts"] == {"committed": 1}
        imports = data / "import" / "documents" / "default"
        shutil.copy(drop / "locks.md", imports)  # the box made the folder when it named it
        taken = as_json(box, "ingest", "start", str(imports), "-c", "rules", "--yes")
        assert taken["ingestion"]["counts"] == {"committed": 1}
        assert sorted(titles(box, "rules")) == ["docs/gates.md", "locks.md"]
        assert "MODEL_REFUSED" not in {finding.code for finding in client.health().findings}


def client_of(box: Daemon, user: str) -> Client:
    """An operator of the box, by a certificate of its authority."""
    now, name = datetime.now(UTC), roles.identity_uri(Principal("default", user, Role.OPERATOR))
    authority = ca.open_authority(box.data_dir / "access", now)
    names = [x509.UniformResourceIdentifier(name)]
    certificate, key = authority.issue(user, names, ExtendedKeyUsageOID.CLIENT_AUTH, now)
    return Client(box.address, authority.pem, certificate, key)


def test_where_a_second_person_must_approve_the_first_one_cannot(tmp_path: Path) -> None:
    (tmp_path / "badges.md").write_text("Badges expire after 90 days.")
    with (
        running(tmp_path / "data", "--ingest-approval=second") as box,
        client_of(box, "olga") as olga,
        client_of(box, "ann") as ann,
    ):
        with pytest.raises(SecondPerson, match="may not approve"):
            olga.ingest(str(tmp_path / "badges.md"), "rules")
        assert list(olga.ingestions()) == []
        begun = olga.start_ingestion(str(tmp_path / "badges.md"), "rules")
        assert list(olga.watch_job(begun.job))[-1].state is JobState.SUCCEEDED
        assert olga.ingestion(begun.id).state is IngestionState.WAITING
        with pytest.raises(SecondPerson):
            olga.approve_ingestion(begun.id)
        approved = ann.approve_ingestion(begun.id)
        assert list(ann.watch_job(approved.job))[-1].state is JobState.SUCCEEDED
        ended = ann.ingestion(begun.id)
        assert (ended.state, ended.operator, ended.approver) == (IngestionState.SUCCEEDED, "olga", "ann")
        assert ended.counts[FileState.COMMITTED] == 1


def test_a_file_from_another_machine_is_taken_in_with_its_sender(box: Daemon, tmp_path: Path) -> None:
    (tmp_path / "parking.md").write_text("The garage has forty places for visitors.")
    [sent] = as_json(box, "ingest", "upload", str(tmp_path / "parking.md"), "-c", "uploads")["uploads"]
    assert sent["ingestion"]["counts"] == {"committed": 1}
    [document] = as_json(box, "documents", "list", "-c", "uploads")["documents"]
    told = as_json(box, "documents", "why", "parking.md", "-c", "uploads")
    assert told["document"]["id"] == document["id"]
    assert told["lineage"]["kind"] == "upload"
    assert told["document"]["readers"] == ["everyone"]
    assert told["lineage"]["operator"] == ca.local_principal().user


def test_an_upload_outlives_a_kill_of_the_daemon(tmp_path: Path) -> None:
    content = b"<p>Badges expire after 90 days.</p><!--" + bytes(range(32, 127)) * 20_000 + b"-->"
    first = start(tmp_path / "data")
    with first.client() as client:
        upload = client.create_upload("rules.html", "rules")
        half = pb.UploadFileRequest(upload=upload, data=content[: 1 << 20])
        assert client._call(client._ingest.UploadFile, iter([half])).size_bytes == 1 << 20
    first.kill()
    with running(tmp_path / "data") as second, second.client() as client:
        told: list[int] = []
        ended = client.upload(upload, BytesIO(content), told.append)
        assert told[0] == (1 << 20) + (256 << 10)
        assert list(client.watch_job(ended.job))[-1].state is JobState.SUCCEEDED
        [file] = client.files(ended.id)
        assert (file.state, file.sha256) == (FileState.COMMITTED, hashlib.sha256(content).hexdigest())
