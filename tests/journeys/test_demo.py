"""`appliance demo --once`, as `make demo` runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long


def test_the_demo_answers_every_sample_question_from_the_right_place(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "appliance.cli.main",
        "demo",
        "--once",
        "--json",
        "--data-dir",
        str(tmp_path / "box"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    answers = json.loads(ended.stdout)["answers"]
    assert len(answers) >= 6
    assert all(answer["right"] for answer in answers)
    assert any(citation["page"] == 3 for answer in answers for citation in answer["citations"])
