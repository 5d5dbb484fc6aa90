"""What to do about a file that was refused is said of every reason that there is."""

import ast
from collections.abc import Iterator
from pathlib import Path

from appliance.ingest import extract
from appliance.ingest.extract import members
from appliance.ingest.remedies import MEMBER_PROBLEMS, remedy_for

SOURCES = [
    *Path(str(extract.__file__)).parent.rglob("*.py"),
    *(Path(str(extract.__file__)).parents[2] / "sandbox").rglob("*.py"),
]
UNKNOWN = remedy_for("A_REASON_THAT_NOBODY_GIVES")
REPAIRED = {"DOCUMENT_BROKEN", "PDF_BROKEN", "IMAGE_BROKEN", "CRASHED", "PARSER_FAILED"}


def refusals(source: Path) -> Iterator[str]:
    """The reasons that a module gives by name."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "DocumentRefused":
            reason = node.args[0]
            if isinstance(reason, ast.Constant):
                yield str(reason.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "miss":
            yield str(ast.literal_eval(node.args[1]))


def test_every_reason_for_which_a_file_is_refused_has_a_remedy_of_its_own() -> None:
    reasons = {reason for source in SOURCES for reason in refusals(source)}
    assert {"SPUN", "POLYGLOT", "OCR_TOO_SLOW", "IMAGE_TOO_LARGE"} <= reasons
    assert {reason for reason in reasons if remedy_for(reason) == UNKNOWN} <= REPAIRED


def test_every_problem_of_a_member_is_told_in_words_and_has_a_remedy() -> None:
    problems = {value for value in vars(members).values() if isinstance(value, str) and value.startswith("MEMBER_")}
    assert problems == set(MEMBER_PROBLEMS)
    assert all(remedy_for(problem) != UNKNOWN for problem in problems)
