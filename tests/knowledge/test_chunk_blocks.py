"""The structure that plain text shows: what is surely a heading, a list, a table or code, and nothing more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.knowledge.chunk.blocks import structure
from appliance.types import Block, BlockKind

H, P, L, T, C = BlockKind.HEADING, BlockKind.PARAGRAPH, BlockKind.LIST, BlockKind.TABLE, BlockKind.CODE

LINES = st.lists(
    st.sampled_from(
        (
            *(
                "# A",
                "## B",
                "1. One",
                "1.1 Two",
                "2. Three",
                "- x",
                "  y",
                "* z",
                "a\tb",
                "|a|b|",
                "|-|-|",
                "|---|---|",
            ),
            *(
                "a|b",
                "---|---",
                "```",
                "~~~",
                "    x = 1;",
                "\ty()",
                "Title",
                "=====",
                "-----",
                "Words. More words.",
                "",
            ),
        )
    )
    | st.text(max_size=12),
    max_size=30,
).map("\n".join)


def seen(text: str, *given: Block) -> list[tuple[BlockKind, str]]:
    titled = any(block.kind is H for block in given)
    return [(block.kind, text[block.start : block.end].strip("\n")) for block in structure(text, 1, given, titled)]


def levels(text: str) -> list[int]:
    return [block.level for block in structure(text, 1, (), False) if block.kind is H]


@given(LINES, st.booleans())
def test_blocks_are_in_order_and_leave_out_nothing_but_white_space(text: str, titled: bool) -> None:
    at = 0
    for block in structure(text, 1, (), titled):
        assert at <= block.start < block.end <= len(text)
        assert not text[at : block.start].strip()
        assert (block.kind is H) == (block.level > 0)
        assert not (titled and block.kind is H)
        at = block.end
    assert not text[at:].strip()


def test_headings_are_marked_underlined_numbered_or_named() -> None:
    text = "# A\n\ntext\n\n### B\nC\n=\n\nD\n===\n\n2.1 Scope of it\n\nx y\n\nChapter 4 Gates\n\nx"
    assert [title for kind, title in seen(text) if kind is H] == [
        "# A",
        "### B",
        "D\n===",
        "2.1 Scope of it",
        "Chapter 4 Gates",
    ]
    assert levels(text) == [1, 3, 1, 2, 1]


@pytest.mark.parametrize(
    "text",
    [
        "#hashtag and more",
        "text\n\n# one\n# two\n# three\nls -l",
        "1. First step\n\n2. Second step\n\n3. Third step\n\nDone now",
        "3. Mai war es kalt.\n\nDann kam der Sommer",
        "text before\n2.1 Not alone\n\ntext",
        "Name   Age\n-----------------------\nBob    12",
        "2 eggs\nand a spoon",
        "# " + "long " * 30,
    ],
)
def test_what_only_looks_like_a_heading_is_none(text: str) -> None:
    assert [kind for kind, _ in seen(text) if kind is H] == []


def test_a_list_has_two_items_or_more_and_their_continuations() -> None:
    assert seen("You need:\n- milk\n  and cream\n\n- eggs\n\nThat is all.") == [
        (P, "You need:"),
        (L, "- milk\n  and cream\n\n- eggs"),
        (P, "That is all."),
    ]
    assert seen("- alone\n\nThat is all.") == [(P, "- alone\n\nThat is all.")]


def test_tables_are_read_by_pipes_and_by_tabs() -> None:
    assert seen("x\n|a|b|\n|1|2|\ny") == [(P, "x"), (T, "|a|b|\n|1|2|"), (P, "y")]
    assert seen("a|b\n---|---\n1|2") == [(T, "a|b\n---|---\n1|2")]
    assert seen("a\tb\n1\t2") == [(T, "a\tb\n1\t2")]
    assert seen("either|or\nthis|that") == [(P, "either|or\nthis|that")]


def test_code_is_fenced_or_indented_and_like_code() -> None:
    assert seen("x\n\n```py\na = 1\n\n# b\n```\ny") == [(P, "x"), (C, "```py\na = 1\n\n# b\n```"), (P, "y")]
    assert seen("x\n\n    a = 1\n    f(a)\n\ny") == [(P, "x"), (C, "    a = 1\n    f(a)"), (P, "y")]
    assert seen("    An old letter\n    is often indented") == [(P, "    An old letter\n    is often indented")]
    assert seen("```\nnever closed") == [(P, "```\nnever closed")]


def test_what_the_parser_saw_stands_and_only_the_rest_is_read() -> None:
    text = "Guests\n# no title\n\n- a\n- b\n"
    heading = Block(H, 1, 0, 6, 2)
    assert seen(text, heading) == [(H, "Guests"), (P, "# no title"), (L, "- a\n- b")]
    assert seen(text, Block(C, 1, 0, len(text))) == [(C, text.strip())]


@pytest.mark.parametrize(
    "line", ["# a", "- a", "1. a", "```x", "~~~", "a\tb", "|a|", "    x=1", "    x", "a|b", "", "===", "a\n"]
)
def test_a_hundred_thousand_lines_of_any_kind_are_read_in_linear_time(line: str) -> None:
    # Anything but linear work would take minutes here, and linear work takes parts of a second.
    text = f"{line}\n" * 100_000
    assert sum(block.end - block.start for block in structure(text, 1, (), False)) <= len(text)


@pytest.mark.parametrize("letter", ["x", " ", "\t", "-", "|", "=", "#", "`", "1.", "(", "| ", "a(", ":-"])
def test_a_million_characters_on_one_line_are_read_in_linear_time(letter: str) -> None:
    line = letter * (1_000_000 // len(letter))
    for text in (line, f"a|b\n|{line}|", f"- {line}\n- {line}", f"    {line}\n    {line}", f"T\n{line}"):
        assert list(structure(text, 1, (), False)) or not text.strip()
