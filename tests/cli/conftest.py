from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from appliance.cli.main import app
from tests.box import Authority, Box
from tests.cli.answers import Cli


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def box(tmp_path: Path, authority: Authority) -> Iterator[Box]:
    box = Box(tmp_path)
    box.start(authority)
    yield box
    box.stop()


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command line against the box of this test; stdout and stderr apart, no terminal."""
    monkeypatch.setenv("APPLIANCE_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("APPLIANCE_COLLECTION", raising=False)

    def run(*arguments: str, input: str = "") -> Result:
        return CliRunner().invoke(app, arguments, input=input, prog_name="appliance")

    return run
