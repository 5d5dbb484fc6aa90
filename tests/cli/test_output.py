import io
import re
import sys
from dataclasses import dataclass

import pytest

from appliance.cli import output
from appliance.types import Collection, JobState, Passage, Span
from tests.cli import answers

HOSTILE = "a\x1b[31m\u202egpj\nb[red]c\x9b\u2066"


def test_text_with_power_over_a_terminal_is_escaped() -> None:
    assert output.printable(HOSTILE) == r"a\x1b[31m\u202egpj\nb[red]c\x9b\u2066"
    assert output.printable("a\nb\tc\r", newlines=True) == "a\nb\tc\\r"


def test_text_of_any_language_stays() -> None:
    for text in ("Büro — „ja“", "Документ", "日本語", "a\N{NO-BREAK SPACE}b", "می\N{ZERO WIDTH NON-JOINER}خواهم"):
        assert output.printable(text) == text


def test_markup_in_a_cell_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("name", "#size"), [(HOSTILE, "1")])
    output.show(HOSTILE)
    output.show_fields([("title", HOSTILE)])
    written = capsys.readouterr().out
    assert written.count("[red]c") == 3
    assert "\x1b" not in written
    assert "\u202e" not in written


def test_json_is_ascii_whatever_a_title_holds(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_json({"title": HOSTILE})
    assert capsys.readouterr().out.isascii()


def test_values_become_json_by_their_meaning() -> None:
    passage = Passage("collections/a/documents/1", "t", Span(1, 2, 3), "text", 0.5)
    shown = output.plain({"passage": passage, "state": JobState.RUNNING, "readers": frozenset({"b", "a"})})
    assert shown == {
        "passage": {
            "document": "collections/a/documents/1",
            "title": "t",
            "page": 1,
            "start": 2,
            "end": 3,
            "text": "text",
            "score": 0.5,
            "snippet": {"text": "", "highlights": []},
            "context": "",
            "explanation": None,
            "heading": "",
        },
        "state": "running",
        "readers": ["a", "b"],
    }
    collection = output.plain(Collection("a", 1, 2, 3, answers.STAMP.ToDatetime()))
    assert collection["name"] == "collections/a"
    assert collection["create_time"] == "2026-11-20T12:00:00"


def test_a_long_line_is_not_folded_where_no_one_sees_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    output.show("word " * 100)
    output.show_table(("a",), [("word " * 100,)])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_sizes_and_durations_are_for_people() -> None:
    assert [output.bytes_text(size) for size in (0, 1536, 3 << 20, 5 << 40)] == ["0 B", "1.5 KiB", "3.0 MiB", "5.0 TiB"]
    assert [output.duration_text(seconds) for seconds in (0.25, 61, 93784)] == ["0.2 s", "1 min 1 s", "1 d 2 h"]
    assert output.time_text(None) == ""


@dataclass(frozen=True)
class Unknown:
    name: str


def test_a_value_with_a_name_of_its_own_keeps_it() -> None:
    assert output.plain(Unknown("x")) == {"name": "x"}


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_line_of_a_table_ends_in_spaces_where_no_one_sees_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("id", "why"), [("1", "word " * 50), ("2", "")])
    output.show_fields([("name", "x"), ("a longer name", "y" * 300)])
    assert [line for line in capsys.readouterr().out.splitlines() if line != line.rstrip()] == []


def test_a_table_is_as_wide_as_the_terminal_and_loses_nothing_of_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    sha256 = "ab" * 32
    output.show_table(("ingestion", "sha256", "why"), [("7f3a7f3a-12", sha256, "word " * 30)])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 60
    assert lines[1].startswith("7f3a7f3a-12  ")
    assert sum(line.count("ab") for line in lines) == 32
    assert sum(line.count("word") for line in lines) == 30
