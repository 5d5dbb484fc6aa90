import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import errors
from appliance.client import restore_error
from appliance.gen.v1 import telemetry_pb2
from tests.box import Box, refusal
from tests.cli import answers
from tests.cli.answers import Cli

OK = telemetry_pb2.GetStatusResponse(version="0.1.0", severity=telemetry_pb2.SEVERITY_OK, memory_used_bytes=3 << 30)
VERBS = ["serve", "demo", "status", "chat", "ask", "ingest", "search", "documents", "models", "jobs", "health"]


def run_python(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_help_lists_every_verb_and_the_exit_codes(cli: Cli) -> None:
    help_text = cli("--help").stdout
    assert [verb for verb in VERBS if f"\n  {verb} " not in help_text] == []
    assert "130 cancelled" in help_text


def test_help_waits_for_neither_grpc_nor_rich_nor_numpy() -> None:
    code = "import sys, appliance.cli.main; print([name for name in ('grpc', 'rich', 'numpy') if name in sys.modules])"
    assert run_python("-c", code).stdout == "[]\n"


@pytest.mark.parametrize("cls", errors.by_reason().values(), ids=errors.by_reason().keys())
def test_every_error_has_its_exit_code_a_sentence_and_a_remedy(
    cls: type[errors.ApplianceError], box: Box, cli: Cli
) -> None:
    box.answers["GetStatus"] = refusal(restore_error(cls.reason, "It went wrong."))
    result = cli("status")
    assert result.exit_code == cls.exit_code
    assert result.stdout == ""
    assert result.stderr == f"error: It went wrong.\nremedy: {cls.remedy}\n"


def test_an_error_as_json_has_reason_message_and_remedy(box: Box, cli: Cli) -> None:
    box.answers["GetStatus"] = refusal(errors.QueueFull("64 wait.", retry_after_seconds=2.5))
    result = cli("status", "--json")
    assert result.exit_code == 6
    assert json.loads(result.stderr)["error"] == {
        "reason": "QUEUE_FULL",
        "message": "64 wait.",
        "remedy": errors.QueueFull.remedy,
        "retry_after_seconds": 2.5,
    }


def test_no_daemon_is_unreachable_with_the_data_directory_named(cli: Cli, tmp_path: Path) -> None:
    result = cli("status")
    assert result.exit_code == 6
    assert f"error: No daemon serves the data directory {tmp_path}." in result.stderr
    assert "appliance serve" in result.stderr


def test_the_shared_options_stand_before_or_after_the_verb(box: Box, cli: Cli) -> None:
    box.answers["GetStatus"] = lambda request, context: OK
    before, after = cli("--json", "--timeout", "5", "status"), cli("status", "--json", "--timeout", "5")
    assert json.loads(before.stdout) == json.loads(after.stdout)
    assert [call.seconds is not None and call.seconds < 6 for call in box.calls] == [True, True]


def test_the_verb_s_own_option_wins(box: Box, cli: Cli, tmp_path: Path) -> None:
    box.answers["GetStatus"] = lambda request, context: OK
    assert cli("--data-dir", str(tmp_path / "other"), "status", "--data-dir", str(tmp_path)).exit_code == 0


def test_an_option_before_the_verb_wins_over_the_environment(
    box: Box, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box.answers["GetStatus"] = lambda request, context: OK
    monkeypatch.setenv("APPLIANCE_DATA_DIR", str(tmp_path / "other"))
    assert cli("--data-dir", str(tmp_path), "status").exit_code == 0


def test_an_address_may_be_named(box: Box, cli: Cli) -> None:
    box.answers["GetStatus"] = lambda request, context: OK
    (box.data_dir / "endpoint").unlink()
    assert cli("status", "--address", box.address).exit_code == 0


def test_wrong_usage_ends_with_2(cli: Cli) -> None:
    assert cli("status", "--nonsense").exit_code == 2
    assert cli("nonsense").exit_code == 2
    assert cli("ask").exit_code == 2
    assert cli("ingest").exit_code == 2
    assert cli("ask", "Why?", "--mode", "guess").exit_code == 2


def test_status_shows_the_box_at_a_glance(box: Box, cli: Cli) -> None:
    box.answers["GetStatus"] = lambda request, context: OK
    assert "3.0 GiB" in cli("status").stdout
    assert json.loads(cli("status", "--json").stdout)["severity"] == "ok"


def health_of(severity: telemetry_pb2.Severity.ValueType) -> telemetry_pb2.WatchHealthResponse:
    finding = telemetry_pb2.Finding(
        code="DISK_FULL_SOON",
        severity=severity,
        title="The disk is nearly full",
        remedy="Free space.",
        since=answers.STAMP,
    )
    return telemetry_pb2.WatchHealthResponse(severity=severity, findings=[finding])


def test_health_shows_what_to_do_and_ends_with_1_only_where_it_is_critical(box: Box, cli: Cli) -> None:
    box.answers["GetStatus"] = lambda request, context: OK
    box.answers["WatchHealth"] = lambda request, context: iter([health_of(telemetry_pb2.SEVERITY_WARNING)])
    result = cli("health")
    assert result.exit_code == 0
    assert "Free space." in result.stdout
    box.answers["WatchHealth"] = lambda request, context: iter([health_of(telemetry_pb2.SEVERITY_CRITICAL)])
    result = cli("health", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["findings"][0]["code"] == "DISK_FULL_SOON"


WALLS = telemetry_pb2.Walls(
    layers=[
        telemetry_pb2.Wall(name="seccomp", stands=True, needed=True, detail="41 system calls"),
        telemetry_pb2.Wall(name="namespaces", detail="without user, pid"),
    ],
    proof_time=answers.STAMP,
)


def test_health_shows_every_wall_around_parsers_and_which_is_missing(box: Box, cli: Cli) -> None:
    fine = telemetry_pb2.WatchHealthResponse(severity=telemetry_pb2.SEVERITY_OK)
    box.answers["WatchHealth"] = lambda request, context: iter([fine])
    walled = telemetry_pb2.GetStatusResponse(severity=telemetry_pb2.SEVERITY_OK, walls=WALLS)
    box.answers["GetStatus"] = lambda request, context: walled
    shown = cli("health").stdout
    assert "41 system calls" in shown
    assert "MISSING: without user, pid" in shown
    told = json.loads(cli("status", "--json").stdout)["walls"]
    assert [(wall["name"], wall["stands"], wall["needed"]) for wall in told["layers"]] == [
        ("seccomp", True, True),
        ("namespaces", False, False),
    ]
    box.answers["GetStatus"] = lambda request, context: OK
    assert "nothing is parsed" in cli("health").stdout


def test_watched_health_is_a_line_of_json_at_each_change(box: Box, cli: Cli) -> None:
    reports = [health_of(telemetry_pb2.SEVERITY_CRITICAL), telemetry_pb2.WatchHealthResponse(severity="SEVERITY_OK")]  # type: ignore[arg-type]
    box.answers["WatchHealth"] = lambda request, context: iter(reports)
    result = cli("health", "--watch", "--json")
    assert [json.loads(line)["severity"] for line in result.stdout.splitlines()] == ["critical", "ok"]


def test_serve_becomes_the_daemon_with_its_options_unchanged(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPLIANCE_DATA_DIR")
    seen: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, argv: seen.append(argv))
    cli("--data-dir", "/d", "serve", "--listen", "127.0.0.1:0", "--drain-seconds=3")
    cli("serve", "-h")
    cli("serve", "--data-dir", "/e", "--help")
    daemon = [sys.executable, "-m", "appliance.daemon"]
    assert seen == [
        [*daemon, "--data-dir", "/d", "--listen", "127.0.0.1:0", "--drain-seconds=3"],
        [*daemon, "-h"],
        [*daemon, "--data-dir", "/e", "--help"],
    ]


def complete(line: str, data_dir: Path) -> list[str]:
    """What bash would offer after this line."""
    words = line.split(" ")
    result = run_python(
        "-m",
        "appliance.cli.main",
        _APPLIANCE_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
        APPLIANCE_DATA_DIR=str(data_dir),
    )
    assert result.stderr == ""
    return result.stdout.split()


def test_completion_offers_the_box_s_models_and_is_silent_without_a_box(box: Box, tmp_path: Path) -> None:
    box.answers["ListModels"] = answers.models("qwen", "llama")
    assert complete("appliance models load q", tmp_path) == ["qwen"]
    assert complete("appliance models load q", tmp_path / "none") == []
    assert complete("appliance heal", tmp_path) == ["health"]


def test_no_confirmation_deletes_nothing(box: Box, cli: Cli) -> None:
    for verb in (("models", "delete", "qwen"), ("knowledge", "shred", "default")):
        assert cli(*verb, input="n\n").exit_code == 130
        assert cli(*verb).exit_code == 130
    assert box.calls == []
