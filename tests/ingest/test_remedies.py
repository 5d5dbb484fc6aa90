"""What to do about a file that was refused is said of every reason that there is, and names what there is."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from appliance import ingest
from appliance.config import Config
from appliance.ingest.extract import members
from appliance.ingest.remedies import MEMBER_PROBLEMS, REMEDIES, remedy_for

INGEST = Path(str(ingest.__file__)).parent
SOURCES = [*INGEST.rglob("*.py"), *(INGEST.parent / "sandbox").rglob("*.py")]
GIVE_A_REASON = {"DocumentRefused", "Refused", "encode_refusal", "miss"}
REASON = re.compile(r"[A-Z]{4,}|[A-Z0-9]+(_[A-Z0-9]+)+")
OPTIONS = {item.name for item in fields(Config)}
QUOTED = re.compile(r"`([a-z_]+)`")


def refusals(source: Path) -> Iterator[tuple[str, str]]:
    """The reasons that a module gives by name, each with its words as they are in the source."""
    for node in ast.walk(ast.parse(source.read_text())):
        given: list[ast.expr] = []
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in GIVE_A_REASON:
            given = node.args[:2]
        elif isinstance(node, ast.Tuple) and len(node.elts) == 2 and " " in text(node.elts[1]):
            given = node.elts
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "reason":
            given = [node.value]
        elif isinstance(node, ast.Dict) and any(text(key) == "reason" for key in node.keys):
            given = node.values
        if reasons := [text(one) for one in given if REASON.fullmatch(text(one))]:
            yield reasons[0], ast.unparse(node)


def text(node: ast.expr | None) -> str:
    """A string's, up to its first brace and colon."""
    part = node.values[0] if isinstance(node, ast.JoinedStr) else node
    return part.value.removesuffix(":") if isinstance(part, ast.Constant) and isinstance(part.value, str) else ""


def test_every_reason_for_which_a_file_is_refused_has_a_remedy() -> None:
    reasons = {reason for source in SOURCES for reason, _ in refusals(source)}
    of_each_part = {
        "SPUN",
        "OCR_TOO_SLOW",
        "NOT_SIGNED",
        "LINK",
        "CROSS_LINKED",
        "MALWARE",
        "WRITTEN_TO",
        "NOT_SCANNED",
    }
    assert of_each_part <= reasons
    assert {"CRASHED", "TOO_MANY_MEMBERS", "TOO_MUCH_MEMORY", "TOO_MANY_FILES"} <= reasons
    assert reasons <= REMEDIES.keys()


def test_every_problem_of_a_member_is_told_in_words_and_has_a_remedy() -> None:
    problems = {value for value in vars(members).values() if isinstance(value, str) and value.startswith("MEMBER_")}
    assert problems == set(MEMBER_PROBLEMS)
    assert problems <= REMEDIES.keys()


def test_what_a_remedy_says_to_raise_is_an_option_that_there_is() -> None:
    named = {name for remedy in REMEDIES.values() for name in QUOTED.findall(remedy)}
    assert {"document_max_mib", "document_max_pages", "sheet_max_cells", "image_max_megapixels"} <= named <= OPTIONS
    for remedy in REMEDIES.values():
        assert QUOTED.search(remedy) or not re.search(r"\boptions?\b|\braised?\b", remedy)


def test_what_the_words_of_a_refusal_name_in_quotes_is_an_option_that_there_is() -> None:
    words = [words for source in SOURCES for _, words in refusals(source)]
    assert {name for one in words for name in QUOTED.findall(one)} <= OPTIONS


@pytest.mark.parametrize("reason", ["CRASHED", "PARSER_FAILED", "FORBIDDEN_CALL", "ZIP_BOMB", "MALWARE:Eicar"])
def test_a_file_that_may_be_an_attack_is_to_be_opened_nowhere(reason: str) -> None:
    assert "do not open it elsewhere" in remedy_for(reason).lower()


def test_no_remedy_where_there_is_no_reason_and_a_harmless_one_where_it_is_not_known() -> None:
    assert remedy_for("") == ""
    assert "pen it" not in remedy_for("A_REASON_THAT_NOBODY_GIVES")
