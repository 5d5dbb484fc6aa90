"""`appliance knowledge`: collections, their keys, checks and copies; what is asked of the box, and what is shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import BackupRefused, StoreDamaged
from appliance.gen.v1 import job_pb2, knowledge_pb2
from tests.box import Box
from tests.cli import answers
from tests.cli.answers import Cli

COLLECTION = knowledge_pb2.Collection(
    name="collections/handbook", document_count=3, passage_count=7, create_time=answers.STAMP, embedder="models/bge"
)
OURS = knowledge_pb2.Collection(name="collections/rules", create_time=answers.STAMP)
JOB = "collections/handbook"


def running(box: Box, method: str, answer: Any, **ending: Any) -> None:
    """The box starts a job for that method; `ending` is its last state."""
    started = answers.job(job_pb2.Job.STATE_QUEUED, subject=JOB)
    state = ending.pop("state", job_pb2.Job.STATE_SUCCEEDED)
    box.answers[method] = lambda request, context: answer(job=started)
    box.answers["WatchJob"] = answers.watched(started, answers.job(state, subject=JOB, done=4, total=4, **ending))


def test_a_collection_is_made_and_listed_with_its_embedder(box: Box, cli: Cli) -> None:
    box.answers["CreateCollection"] = lambda request, context: knowledge_pb2.CreateCollectionResponse(collection=OURS)
    box.answers["ListCollections"] = lambda request, context: knowledge_pb2.ListCollectionsResponse(
        collections=[COLLECTION, OURS]
    )
    assert "rules" in cli("knowledge", "create", "rules").stdout
    assert box.calls[-1].request.collection_id == "rules"
    first, second = cli("knowledge", "list").stdout.splitlines()[-2:]
    assert ("handbook" in first, "bge" in first, "rules" in second, "built-in" in second) == (True,) * 4
    found = json.loads(cli("knowledge", "list", "--json").stdout)["collections"]
    assert [(item["id"], item["embedder"]) for item in found] == [("handbook", "bge"), ("rules", "")]


def faulty(box: Box) -> None:
    fault = knowledge_pb2.Fault(file="knowledge/default/handbook/seg/9f", problem="Chunk 3 is not what was written.")
    box.answers["ListFaults"] = lambda request, context: knowledge_pb2.ListFaultsResponse(faults=[fault])


def test_a_whole_collection_is_said_to_be_whole(box: Box, cli: Cli) -> None:
    running(box, "VerifyCollection", knowledge_pb2.VerifyCollectionResponse)
    faulty(box)  # of an earlier time
    result = cli("knowledge", "verify", "handbook")
    assert result.exit_code == 0
    assert "every byte is what was written" in result.stdout
    assert "seg/9f" not in result.stdout


def test_a_collection_is_named_behind_the_verb_or_by_the_option_that_all_verbs_have(box: Box, cli: Cli) -> None:
    running(box, "VerifyCollection", knowledge_pb2.VerifyCollectionResponse)
    for words in (("handbook",), ("-c", "handbook"), ("handbook", "-c", "other"), ()):
        box.calls.clear()
        assert cli("knowledge", "verify", *words).exit_code == 0
        assert box.calls[0].request.name == f"collections/{'handbook' if words else 'default'}"


def test_damage_is_shown_by_file_and_fails(box: Box, cli: Cli) -> None:
    damage = {"error_reason": StoreDamaged.reason, "error_message": "1 of the collection's files is damaged."}
    running(box, "VerifyCollection", knowledge_pb2.VerifyCollectionResponse, state=job_pb2.Job.STATE_FAILED, **damage)
    faulty(box)
    result = cli("knowledge", "verify", "handbook")
    assert result.exit_code != 0
    assert "knowledge/default/handbook/seg/9f" in result.stdout
    shown = json.loads(cli("knowledge", "verify", "handbook", "--json").stdout)
    assert [fault["problem"] for fault in shown["faults"]] == ["Chunk 3 is not what was written."]


def test_a_verification_that_was_cancelled_shows_no_damage_of_an_earlier_one(box: Box, cli: Cli) -> None:
    running(box, "VerifyCollection", knowledge_pb2.VerifyCollectionResponse, state=job_pb2.Job.STATE_CANCELLED)
    faulty(box)
    result = cli("knowledge", "verify", "handbook")
    assert result.exit_code != 0
    assert "seg/9f" not in result.stdout


def test_vectors_are_made_anew_by_the_embedder_that_is_named(box: Box, cli: Cli) -> None:
    running(box, "ReembedCollection", knowledge_pb2.ReembedCollectionResponse)
    assert cli("knowledge", "reembed", "handbook", "--model", "bge").exit_code == 0
    (request,) = [call.request for call in box.calls if call.method == "ReembedCollection"]
    assert (request.name, request.model) == ("collections/handbook", "models/bge")
    assert "jobs/7f" in cli("knowledge", "reembed", "handbook", "--no-wait").stdout


@pytest.mark.parametrize(
    ("verb", "method", "answer"),
    [
        ("export", "ExportCollection", knowledge_pb2.ExportCollectionResponse),
        ("import", "ImportCollection", knowledge_pb2.ImportCollectionResponse),
    ],
)
def test_the_passphrase_of_a_copy_comes_from_a_file_or_stdin(
    box: Box, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, method: str, answer: Any
) -> None:
    running(box, method, answer)
    secret = tmp_path / "secret"
    secret.write_text("correct horse battery\n")
    monkeypatch.chdir(tmp_path)
    for source, typed in ((str(secret), ""), ("-", "correct horse battery\n")):
        result = cli("knowledge", verb, "handbook", "copy.akex", "--passphrase-file", source, input=typed)
        assert result.exit_code == 0, result.output
        assert "correct horse" not in result.output
        request = next(call.request for call in reversed(box.calls) if call.method == method)
        assert (request.path, request.passphrase) == (f"{tmp_path}/copy.akex", "correct horse battery")
    missing = cli("knowledge", verb, "handbook", "copy.akex", "--passphrase-file", str(tmp_path / "none"))
    assert missing.exit_code != 0
    assert "passphrase-file" in missing.stderr
    secret.write_text("\n")
    assert cli("knowledge", verb, "handbook", "copy.akex", "--passphrase-file", str(secret)).exit_code != 0


def test_a_backup_is_made_and_restored_in_place_by_those_who_say_so(box: Box, cli: Cli) -> None:
    running(box, "BackupCollection", knowledge_pb2.BackupCollectionResponse)
    assert cli("knowledge", "backup", "handbook", "/backups/handbook").exit_code == 0
    assert next(call.request for call in box.calls if call.method == "BackupCollection").path == "/backups/handbook"
    running(box, "RestoreCollection", knowledge_pb2.RestoreCollectionResponse)
    for options, replaces in (((), False), (("--replace",), True)):
        assert cli("knowledge", "restore", "handbook", "/backups/handbook", *options).exit_code == 0
        request = next(call.request for call in reversed(box.calls) if call.method == "RestoreCollection")
        assert (request.collection_id, request.path, request.replace) == ("handbook", "/backups/handbook", replaces)


def test_a_restore_that_is_refused_fails_as_its_job_did(box: Box, cli: Cli) -> None:
    refused = {"error_reason": BackupRefused.reason, "error_message": "Collection handbook is there and sound."}
    running(
        box, "RestoreCollection", knowledge_pb2.RestoreCollectionResponse, state=job_pb2.Job.STATE_FAILED, **refused
    )
    result = cli("knowledge", "restore", "handbook", "/backups/handbook")
    assert result.exit_code != 0
    assert "there and sound" in result.stderr


def test_keys_are_rotated_and_counted(box: Box, cli: Cli) -> None:
    box.answers["RotateKeys"] = lambda request, context: knowledge_pb2.RotateKeysResponse(collection_count=2)
    assert cli("knowledge", "rotate-keys").exit_code == 130  # nobody said yes, and earlier backups are at stake
    assert "2 collections" in cli("knowledge", "rotate-keys", "--yes").stdout
    assert json.loads(cli("knowledge", "rotate-keys", "--yes", "--json").stdout) == {"collections": 2}


def test_a_collection_is_destroyed_with_a_signed_proof_and_not_unasked(box: Box, cli: Cli) -> None:
    box.answers["DeleteCollection"] = lambda request, context: knowledge_pb2.DeleteCollectionResponse(
        statement='{"collection": "handbook"}', signature=b"\x01\xff"
    )
    assert cli("knowledge", "shred", "handbook", input="n\n").exit_code != 0
    assert box.calls == []
    shown = cli("knowledge", "shred", "handbook", "--yes").stdout
    assert ('{"collection": "handbook"}' in shown, "signature 01ff" in shown) == (True, True)
    proof = json.loads(cli("knowledge", "shred", "handbook", "--yes", "--json").stdout)
    assert proof == {"statement": '{"collection": "handbook"}', "signature": "01ff"}


def test_a_tenant_is_destroyed_by_those_who_type_its_name_twice(box: Box, cli: Cli) -> None:
    proof = knowledge_pb2.ShredProof(statement='{"collection": "handbook"}', signature=b"\x01")
    box.answers["ShredTenant"] = lambda request, context: knowledge_pb2.ShredTenantResponse(proofs=[proof])
    for typed in ("", "y\n", "other\n"):
        assert cli("knowledge", "shred-tenant", "acme", input=typed).exit_code != 0
    assert box.calls == []
    result = cli("knowledge", "shred-tenant", "acme", input="acme\n")
    assert (result.exit_code, "signature 01" in result.stdout) == (0, True)
    assert box.calls[-1].request.tenant == "acme"


def test_an_older_state_is_accepted_by_those_who_say_so(box: Box, cli: Cli) -> None:
    box.answers["AcceptRollback"] = lambda request, context: knowledge_pb2.AcceptRollbackResponse(collection=COLLECTION)
    assert cli("knowledge", "accept-rollback", "handbook", input="n\n").exit_code != 0
    assert box.calls == []
    assert "handbook" in cli("knowledge", "accept-rollback", "handbook", "--yes").stdout
    assert box.calls[-1].request.name == "collections/handbook"


def test_a_document_is_shown_by_a_beginning_of_its_id_that_is_its_own_and_deleted_by_all_of_it(
    box: Box, cli: Cli
) -> None:
    found = [
        knowledge_pb2.Document(name=f"collections/default/documents/{name}", title=title, create_time=answers.STAMP)
        for name, title in (("d5b79510", "a.md"), ("d5b7ffff", "b.md"), ("9c00ffff", "d5b795"))
    ]
    box.answers["ListDocuments"] = lambda request, context: knowledge_pb2.ListDocumentsResponse(documents=found)
    box.answers["GetDocument"] = lambda request, context: knowledge_pb2.GetDocumentResponse(document=found[0])
    for words, name in (("d5b7951", "d5b79510"), ("d5b795", "9c00ffff")):  # a title goes first
        assert cli("documents", "show", words).exit_code == 0
        assert box.calls[-1].request.name == f"collections/default/documents/{name}"
    several = cli("documents", "show", "d5b7")
    assert (several.exit_code, "d5b79510, d5b7ffff" in several.stderr) == (3, True)
    assert cli("documents", "show", "9c0").exit_code == 4
    assert cli("documents", "delete", "d5b7951", "--yes").exit_code == 4


def test_documents_that_may_not_be_read_are_named_to_be_deleted_and_not_to_be_shown(box: Box, cli: Cli) -> None:
    box.answers["ListDocuments"] = lambda request, context: (
        answers.documents("pay.md")(request, context) if request.all else knowledge_pb2.ListDocumentsResponse()
    )
    box.answers["DeleteDocument"] = lambda request, context: knowledge_pb2.DeleteDocumentResponse()
    assert cli("documents", "show", "pay.md").exit_code == 4
    assert "pay.md" not in cli("documents", "list").stdout
    assert "pay.md" in cli("documents", "list", "--all").stdout
    assert cli("documents", "delete", "pay.md", "--yes").exit_code == 0
    assert box.calls[-1].request.name == "collections/default/documents/0"


def test_a_long_conversation_sends_its_last_turns(box: Box, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    box.answers["Ask"] = answers.ask("Badges expire.")
    questions = iter([f"Question {number}?" for number in range(12)])
    monkeypatch.setattr("appliance.cli.ask._next_question", lambda: next(questions, ""))
    monkeypatch.setattr("appliance.cli.ask._has_terminal", lambda: True)
    assert cli("ask").exit_code == 0
    turns = box.calls[-1].request.history
    assert [turn.question for turn in turns] == [f"Question {number}?" for number in range(3, 11)]
