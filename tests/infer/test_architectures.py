"""Every family serves, by paged attention or by ggml's own, with logits as good as ggml's own."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.infer.paged import PAGED
from appliance.models import architectures, gguf
from tests import gguf_models
from tests.infer.conftest import Bench, greedy, words
from tests.infer.logits import CASES, KV_TYPES, Error, Outcome

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "reference" / "architectures.md"
BACKEND = ROOT / "native" / "paged_attention" / "backend.cpp"
WORSE = 1.5  # paged attention's error, in units of ggml's own
FLOOR = 1e-4  # of the logits: nothing that a reader of them could see
BOTH = [(case, kv) for case in CASES for kv in KV_TYPES]


Outcomes = dict[tuple[str, str], Outcome]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Outcomes]:
    """What a process of its own found: which attention it has, and the outcomes by case and cache type."""
    command = [sys.executable, "-m", "tests.infer.logits", str(tmp_path_factory.mktemp("logits"))]
    child = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stdout[-500:] + child.stderr[-2000:]
    first, *lines = [json.loads(line) for line in child.stdout.splitlines()]
    made = ((line["case"], Outcome(*line["outcome"][:2], *map(Error._make, line["outcome"][2:]))) for line in lines)
    return first["attention"], {(case, outcome.kv): outcome for case, outcome in made}


@pytest.fixture
def outcomes(found: tuple[str, Outcomes]) -> Outcomes:
    return found[1]


@pytest.mark.parametrize(("case", "kv"), BOTH)
def test_paged_logits_are_as_near_to_exact_ones_as_stock_logits(outcomes: Outcomes, case: str, kv: str) -> None:
    outcome = outcomes[case, kv]
    assert outcome.paged.all <= max(WORSE * outcome.stock.all, FLOOR)


@pytest.mark.parametrize(("case", "kv"), BOTH)
def test_no_row_is_as_wrong_as_lost_cells_would_make_it(outcomes: Outcomes, case: str, kv: str) -> None:
    outcome = outcomes[case, kv]
    assert outcome.served == "refused" or 2 * outcome.paged.worst < outcome.hole.worst


def test_the_table_in_the_docs_says_what_serves(found: tuple[str, Outcomes]) -> None:
    attention, outcomes = found
    if not attention.startswith(PAGED):
        pytest.skip(f"this machine has no paged attention: {attention}")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.read_text().splitlines()]
    said = {(row[0], kv): row[at] for row in rows if len(row) == 3 for at, kv in enumerate(KV_TYPES, start=1)}
    assert {key: said[key] for key in BOTH} == {key: outcomes[key].served for key in BOTH}


def test_the_docs_name_every_reason_for_falling_through() -> None:
    body = BACKEND.read_text().partition("const char * refusal(")[2].partition("\n}")[0]
    reasons = re.findall(r'return "([^"]+)";', body)
    assert len(reasons) > 5
    said = TABLE.read_text()
    assert [reason for reason in reasons if f"| {reason} |" not in said] == []


@pytest.mark.parametrize("architecture", gguf_models.ARCHITECTURES)
def test_every_family_is_admitted_and_serves_in_a_batch(
    bench: Callable[..., Bench], models: dict[str, Path], architecture: str
) -> None:
    shape = architectures.describe(gguf.read(models[architecture]))
    assert shape.kv_bytes_per_token == gguf_models.TINY.layers * gguf_models.TINY.kv_heads * 2 * 16 * 2
    engine = bench(architecture)
    asked = [engine.submit(greedy(words(at, 150), max_tokens=4)) for at in (0, 30, 60)]
    engine.engine.run_until_idle()
    for request in asked:
        _, finish = engine.result(request)
        assert finish.usage.input_tokens >= 150
        assert finish.usage.output_tokens in range(1, 5)


def test_keys_and_values_of_different_sizes_are_both_counted(tmp_path: Path) -> None:
    path = gguf_models.write_mimo2(tmp_path / "x.gguf", gguf_models.Shape(head_size=24, value_size=16))
    shape = architectures.describe(gguf.read(path))
    assert shape.kv_bytes_per_token == 2 * 2 * (24 + 16) * 2
