"""The verbs of `appliance models` against a scripted box."""

import json
from typing import Any

import pytest

from appliance import errors
from appliance.cli.models import plan_text
from appliance.gen.v1 import job_pb2, model_pb2, telemetry_pb2
from appliance.types import MemoryPlan
from tests.box import Box
from tests.cli import answers
from tests.cli.answers import Cli

GIB = 1 << 30
ALIAS = model_pb2.Alias(
    name="aliases/assistant",
    targets=[
        model_pb2.Alias.Target(model="models/stable", weight=9, requests=90, errors=1, output_tokens=900, seconds=60.0),
        model_pb2.Alias.Target(model="models/canary", weight=1),
        model_pb2.Alias.Target(model="models/other", shadow=True),
    ],
    detail="set",
    previous=2,
    update_time=answers.STAMP,
)


def importing(box: Box, ended: job_pb2.Job, *files: model_pb2.ImportedFile) -> None:
    box.answers["ImportModel"] = lambda request, context: model_pb2.ImportModelResponse(job="jobs/7f")
    box.answers["GetJob"] = lambda request, context: job_pb2.GetJobResponse(job=ended)
    box.answers["WatchJob"] = answers.watched(ended)
    box.answers["ListImportedFiles"] = lambda request, context: model_pb2.ListImportedFilesResponse(files=files)


def replying(answer: Any) -> Any:
    return lambda request, context: answer


def test_models_are_imported_loaded_unloaded_and_deleted(box: Box, cli: Cli) -> None:
    ended = answers.job(job_pb2.Job.STATE_SUCCEEDED, subject="/stick/qwen.gguf")
    importing(box, ended, model_pb2.ImportedFile(path="/stick/qwen.gguf", model="models/qwen"))
    model = answers.models("qwen")(None, None).models[0]
    plan = model_pb2.PlanModelResponse(
        model="models/qwen", context_tokens=8192, needed_bytes=10 * GIB, total_bytes=24 * GIB, unloads=["models/old"]
    )
    box.answers["GetModel"] = replying(model_pb2.GetModelResponse(model=model))
    box.answers["PlanModel"] = replying(plan)
    box.answers["LoadModel"] = replying(model_pb2.LoadModelResponse(model=model))
    box.answers["UnloadModel"] = replying(model_pb2.UnloadModelResponse(model=model))
    box.answers["DeleteModel"] = replying(model_pb2.DeleteModelResponse())
    assert "succeeded" in cli("models", "import", "/stick/qwen.gguf").stdout
    loaded = cli("models", "load", "qwen")
    assert "ready" in loaded.stdout
    assert "qwen uses 10.0 GiB of 24.0 GiB, with 8192 tokens of context." in loaded.stderr
    assert "To make room, old will be unloaded." in loaded.stderr
    assert json.loads(cli("models", "plan", "qwen", "--json").stdout)["unloads"] == ["old"]
    assert json.loads(cli("models", "unload", "qwen", "--json").stdout)["name"] == "qwen"
    assert cli("models", "delete", "qwen", "-y").exit_code == 0
    assert box.calls[-1].request.name == "models/qwen"


def test_an_import_that_is_refused_fails_as_its_job_did(box: Box, cli: Cli) -> None:
    failed = answers.job(job_pb2.Job.STATE_FAILED, error_reason="MODEL_DAMAGED", error_message="It is cut short.")
    importing(box, failed)
    result = cli("models", "import", "/stick/qwen.gguf")
    assert result.exit_code == errors.ModelDamaged.exit_code
    assert "error: It is cut short." in result.stderr


def test_an_import_of_a_folder_says_what_became_of_each_file(box: Box, cli: Cli) -> None:
    done = answers.job(job_pb2.Job.STATE_SUCCEEDED, subject="/stick")
    files = [
        model_pb2.ImportedFile(path="/stick/a.gguf", model="models/a"),
        model_pb2.ImportedFile(path="/stick/b.gguf", reason="MODEL_DAMAGED", detail="It is cut short."),
    ]
    importing(box, done, *files)
    shown = cli("models", "import", "/stick", "--base", "qwen").stdout
    assert "/stick/b.gguf  refused  It is cut short." in shown
    assert next(call.request for call in box.calls if call.method.endswith("ImportModel")).base == "models/qwen"
    found = json.loads(cli("models", "import", "/stick", "--kind", "reranker", "--json").stdout)
    assert [item["model"] for item in found["files"]] == ["a", ""]


def test_a_model_is_quantized_by_a_job(box: Box, cli: Cli) -> None:
    ended = answers.job(job_pb2.Job.STATE_SUCCEEDED, subject="models/qwen", note="models/qwen-q8_0")
    importing(box, ended)
    box.answers["QuantizeModel"] = replying(model_pb2.QuantizeModelResponse(job="jobs/7f"))
    assert "models/qwen-q8_0" in cli("models", "quantize", "qwen", "--type", "Q8_0").stdout
    assert (box.calls[0].request.name, box.calls[0].request.type) == ("models/qwen", "Q8_0")
    assert json.loads(cli("models", "quantize", "qwen", "--json").stdout)["job"]["state"] == "succeeded"


@pytest.mark.parametrize(("verb", "pinned"), [("pin", True), ("unpin", False)])
def test_a_model_is_pinned_and_let_go(box: Box, cli: Cli, verb: str, pinned: bool) -> None:
    model = answers.models("qwen")(None, None).models[0]
    model.pinned = pinned
    box.answers["PinModel"] = replying(model_pb2.PinModelResponse(model=model))
    assert ("pinned" in cli("models", verb, "qwen").stdout) is pinned
    assert box.calls[0].request.pinned is pinned


def test_a_plan_that_fails_says_why() -> None:
    assert plan_text(MemoryPlan("big", 8192, 9, 5, 24, problem="big needs more.")) == "big needs more."


# --- aliases ----------------------------------------------------------------------------------------------------------


def test_aliases_are_listed_with_how_their_targets_fare(box: Box, cli: Cli) -> None:
    box.answers["ListAliases"] = replying(model_pb2.ListAliasesResponse(aliases=[ALIAS]))
    lines = [line.split() for line in cli("models", "alias", "list").stdout.splitlines()]
    assert lines[1:] == [
        ["assistant", "stable", "9", "90", "1", "15.0", "set"],
        ["canary", "1", "0", "0"],
        ["other", "shadow", "0", "0"],
    ]
    (found,) = json.loads(cli("models", "alias", "list", "--json").stdout)["aliases"]
    assert (found["name"], found["targets"][2]["shadow"], found["tallies"][0]["errors"]) == ("assistant", True, 1)


def test_an_alias_is_set_promoted_rolled_back_and_deleted(box: Box, cli: Cli) -> None:
    box.answers["SetAlias"] = replying(model_pb2.SetAliasResponse(alias=ALIAS))
    box.answers["PromoteAlias"] = replying(model_pb2.PromoteAliasResponse(alias=ALIAS))
    box.answers["RollbackAlias"] = replying(model_pb2.RollbackAliasResponse(alias=ALIAS))
    box.answers["DeleteAlias"] = replying(model_pb2.DeleteAliasResponse())
    assert cli("models", "alias", "set", "assistant", "stable:9", "canary", "--shadow", "other").exit_code == 0
    sent = box.calls[-1].request.alias
    assert (sent.name, [(t.model, t.weight, t.shadow) for t in sent.targets]) == (
        "aliases/assistant",
        [("models/stable", 9, False), ("models/canary", 1, False), ("models/other", 0, True)],
    )
    assert json.loads(cli("models", "alias", "promote", "assistant", "canary", "--json").stdout)["previous"] == 2
    assert box.calls[-1].request.model == "models/canary"
    assert "stable" in cli("models", "alias", "rollback", "assistant").stdout
    assert cli("models", "alias", "delete", "assistant", "-y").stdout == "Deleted assistant.\n"


def test_a_weight_that_is_no_number_is_refused_here(box: Box, cli: Cli) -> None:
    result = cli("models", "alias", "set", "assistant", "stable:much")
    assert result.exit_code == errors.InvalidArgument.exit_code
    assert "the weight of stable must be a whole number" in result.stderr
    assert box.calls == []


# --- top --------------------------------------------------------------------------------------------------------------


def test_top_shows_the_engines_as_they_change(box: Box, cli: Cli) -> None:
    states = [
        telemetry_pb2.EngineState(
            model="models/qwen",
            running=3,
            pages_used=40,
            pages_total=128,
            prompt_tokens_total=100,
            cached_tokens_total=50,
            generated_tokens_total=tokens,
            attention="paged",
        )
        for tokens in (10, 60)
    ]
    box.answers["WatchEngine"] = lambda request, context: iter(
        [telemetry_pb2.WatchEngineResponse(engines=[state]) for state in states]
    )
    lines = [json.loads(line) for line in cli("models", "top", "--json").stdout.splitlines()]
    assert [line["engines"]["qwen"]["generated_tokens_total"] for line in lines] == [10, 60]
    shown = cli("models", "top").stdout
    for cell in ("qwen", "40/128", "50%", "paged"):
        assert cell in shown
