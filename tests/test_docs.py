"""The documents name only what is there: files, headings, options, make targets, commands and their options."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from appliance.cli.main import app
from appliance.config import Config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/**/*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
OPTION_ROW = re.compile(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\|", re.MULTILINE)
OPTIONS = {item.name for item in fields(Config)}
EVERYWHERE = {"--data-dir", "--address", "--json", "--timeout", "--help"}


def slugs(document: Path) -> set[str]:
    """What links to headings end in, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def calls(document: Path, program: str) -> Iterator[list[str]]:
    """Each call of a program in code, as the words after its name."""
    text = document.read_text()
    lines = [line for block in FENCE.findall(text) for line in block.splitlines()] + SPAN.findall(FENCE.sub("", text))
    for line in lines:
        if found := re.match(rf"(?:\$ )?(?:[A-Z]+=\w+ )?{program} ([a-z].*)", line.strip()):
            yield shlex.split(found[1], comments=True)


def unknown(words: Sequence[str]) -> set[str]:
    """What of a call of `appliance` is neither a verb nor an option of the verb."""
    command: Any = get_command(app)
    rest = list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    known = EVERYWHERE | {name for parameter in command.params for name in parameter.opts}
    if command.name == "serve":
        known |= {f"--{name.replace('_', '-')}" for name in OPTIONS}
    verbs = set(rest[:1]) if hasattr(command, "commands") else set()
    return verbs | {word for word in rest if re.match(r"--?[a-z]", word)} - known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        name, _, heading = link.partition("#")
        target = document.parent / name if name else document
        if "://" not in link:
            assert target.exists(), link
            assert not heading or heading in slugs(target), link


def test_every_option_is_in_the_reference_with_its_default() -> None:
    rows = dict(OPTION_ROW.findall((ROOT / "docs/reference/options.md").read_text()))
    assert rows.pop("data_dir")  # its default depends on who asks
    assert rows == {item.name: str(item.default) for item in fields(Config) if item.name != "data_dir"}


def test_the_tuning_page_names_only_options_that_exist() -> None:
    text = (ROOT / "docs/how-to/tuning.md").read_text()
    named = set(re.findall(r"`((?:model|kv_host|kv_disk|memory|inference)_\w+)", text))
    assert len(named) > 10
    assert named <= OPTIONS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    rules = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    benches = {f"bench-{path.stem}" for path in ROOT.glob("tests/bench/*.py")} | {"bench-NAME"}
    assert {words[0] for words in calls(document, "make")} <= rules | benches


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_named_exists_with_its_options(document: Path) -> None:
    assert [(words, bad) for words in calls(document, "appliance") if (bad := unknown(words))] == []
