"""Pieces are exact ranges of the stored page: they lose nothing, fit the embedder, and end where their text allows."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.infer.onnx import OnnxEmbedder
from appliance.ingest import extract
from appliance.ingest.caps import Caps
from appliance.knowledge.chunk import Piece, pieces, sentences
from appliance.models import minilm
from appliance.types import Block, BlockKind, Ints
from tests.fakes import WordEmbedder
from tests.knowledge.test_chunk_blocks import LINES

SAMPLES = Path(__file__).parents[2] / "appliance" / "cli" / "samples" / "documents"
ROOM = 27  # of 30 tokens, a tenth is left free


class Small(WordEmbedder):
    """Reads thirty words."""

    max_tokens = 30


class Letters(WordEmbedder):
    """Reads thirty letters, as an embedder does in a language that it only spells."""

    max_tokens = 30

    def token_ends(self, texts: Sequence[str]) -> list[Ints]:
        return [np.array([at for at, one in enumerate(text, 1) if not one.isspace()], np.int64) for text in texts]


def cut(*pages: str, blocks: Sequence[Block] = (), overlap: int = 0) -> list[Piece]:
    return pieces(pages, blocks, Small(), overlap)


def texts(page: str, overlap: int = 0) -> list[str]:
    return [page[one.span.start : one.span.end] for one in cut(page, overlap=overlap)]


def assert_nothing_is_lost(page: str, found: Sequence[Piece]) -> None:
    outside = list(page)
    for one in found:
        outside[one.span.start : one.span.end] = " " * (one.span.end - one.span.start)
    assert not "".join(outside).strip()


def words(first: int, last: int, each: int = 9) -> str:
    """Sentences of so many words, numbered."""
    return " ".join(f"S{number} " + "word " * (each - 2) + "end." for number in range(first, last + 1))


# --- whatever the text -----------------------------------------------------------------------------------------------


@given(st.lists(LINES | st.text(max_size=300), max_size=4), st.integers(0, 12), st.booleans())
def test_every_character_that_is_not_white_space_is_in_a_piece(pages: list[str], overlap: int, spelled: bool) -> None:
    found = pieces(pages, (), Letters() if spelled else Small(), overlap)
    assert [(one.span.page, one.span.start) for one in found] == sorted(
        (one.span.page, one.span.start) for one in found
    )
    for number, page in enumerate(pages, 1):
        of_page = [one for one in found if one.span.page == number]
        assert_nothing_is_lost(page, of_page)
        for one in of_page:
            assert 0 <= one.section[0] <= one.span.start < one.span.end <= one.section[1] <= len(page)
            assert one.repeated in page
        if not overlap:
            assert all(before.span.end <= after.span.start for before, after in pairwise(of_page))
        assert all(before.span.end < after.span.end for before, after in pairwise(of_page))


@given(st.lists(LINES, max_size=3), st.integers(0, 12))
def test_no_piece_is_longer_with_its_titles_and_what_is_repeated_than_the_embedder_reads(
    pages: list[str], overlap: int
) -> None:
    embedder = Small()
    for one in pieces(pages, (), embedder, overlap):
        assert len(embedder.token_ends([one.read(pages[one.span.page - 1])])[0]) <= embedder.max_tokens


@given(st.lists(LINES, max_size=3), st.integers(0, 12))
def test_the_same_document_always_gives_the_same_pieces(pages: list[str], overlap: int) -> None:
    assert pieces(pages, (), Small(), overlap) == pieces(pages, (), Small(), overlap)


@st.composite
def parsed(draw: st.DrawFn) -> tuple[list[str], list[Block]]:
    pages = draw(st.lists(LINES | st.text(max_size=80), min_size=1, max_size=3))
    blocks: list[Block] = []
    for number, page in enumerate(pages, 1):
        borders = sorted(draw(st.sets(st.integers(0, len(page)), max_size=6)))
        for start, end in pairwise(borders):
            kind = draw(st.sampled_from(BlockKind))
            level = draw(st.integers(1, 9)) if kind is BlockKind.HEADING else 0
            blocks.append(Block(kind, number, start, end, level))
    return pages, blocks


@given(parsed())
def test_whatever_blocks_a_parser_saw_nothing_is_lost(document: tuple[list[str], list[Block]]) -> None:
    pages, blocks = document
    found = pieces(pages, blocks, Small(), 5)
    for number, page in enumerate(pages, 1):
        assert_nothing_is_lost(page, [one for one in found if one.span.page == number])


def test_no_text_has_no_pieces() -> None:
    assert cut() == cut("", " \n\t", "\n" * 1000) == []


# --- running text ----------------------------------------------------------------------------------------------------


def test_running_text_is_cut_between_sentences_into_pieces_about_equally_long() -> None:
    page = words(1, 13, each=5)
    found = cut("One short page.", page)
    assert found[0] == Piece(found[0].span, (0, 15), "", "")
    ends, starts = {end for _, end in sentences(page)}, {start for start, _ in sentences(page)}
    assert all(one.span.start in starts and one.span.end in ends for one in found[1:])
    lengths = [len(page[one.span.start : one.span.end].split()) for one in found[1:]]
    assert sum(lengths) == 13 * 5
    assert max(lengths) <= ROOM
    assert min(lengths) >= 0.6 * max(lengths)


def test_a_piece_that_is_half_full_ends_with_a_paragraph() -> None:
    for first in (3, 4):
        page = f"{words(1, first, each=6)}\n\n{words(first + 1, 8, each=6)}"
        assert texts(page)[0] == page.split("\n\n")[0]
    page = f"{words(1, 2, each=6)}\n\n{words(3, 8, each=6)}"
    assert texts(page)[0].endswith(words(4, 4, each=6))
    short = f"{words(1, 2, each=6)}\n\n{words(3, 4, each=6)}"
    assert texts(short) == [short]


def test_neighbours_share_whole_sentences_where_that_is_asked_for() -> None:
    page = words(1, 8, each=5)
    without, shared = texts(page), texts(page, overlap=6)
    assert not any(before.split(".")[-2].strip() in after for before, after in pairwise(without))
    for before, after in pairwise(shared):
        assert after.startswith(before.split(". ")[-1])
    assert texts(page, overlap=4) == without


def test_a_sentence_longer_than_a_piece_is_cut_at_white_space() -> None:
    page = "word " * 70 + "end."
    found = texts(page)
    assert all(len(one.split()) <= ROOM and not one.startswith("ord") for one in found)
    assert " ".join(found) == page


def test_a_piece_in_a_language_that_the_embedder_spells_is_as_long_as_in_one_that_it_knows() -> None:
    page = words(1, 30, each=3)
    known, spelled = pieces([page], (), Small()), pieces([page], (), Letters())
    assert len(known) <= len(spelled) <= 3 * len(known)


# --- headings --------------------------------------------------------------------------------------------------------


def test_a_piece_knows_the_path_of_its_headings_and_its_section() -> None:
    page = "# Manual\n\nWelcome.\n\n## Badges\n\nThey expire.\n\n### Guests\n\nAsk.\n\n## Gates\n\nOpen."
    found = cut(page)
    assert [one.heading for one in found] == [
        "Manual",
        "Manual › Badges",
        "Manual › Badges › Guests",
        "Manual › Gates",
    ]
    assert [page[one.span.start : one.span.end] for one in found] == [page[slice(*one.section)] for one in found]
    assert page[found[1].span.start :].startswith("## Badges")


def test_a_section_goes_on_over_pages() -> None:
    first, second = cut("# Manual\n\n## Badges\n\nThey expire.", "They cost nothing.")
    assert (first.heading, second.heading) == ("Manual › Badges", "Manual › Badges")
    assert second.section == (0, 18)


def test_every_piece_of_a_long_section_has_its_heading_and_only_the_first_begins_with_it() -> None:
    found = cut(f"# Badges\n\n{words(1, 9)}")
    assert len(found) >= 4
    assert {one.heading for one in found} == {"Badges"}
    assert found[0].span.start == 0
    assert len({one.section for one in found}) == 1


def test_a_heading_never_ends_a_piece_that_something_follows() -> None:
    for each in range(3, 27):
        page = f"# A\n\n## B\n\n{words(1, 1, each)}\n\n## C\n\n{words(2, 3, each)}"
        assert not any(one.endswith(("A", "B", "C")) for one in texts(page))


def test_of_a_long_path_the_innermost_titles_are_kept() -> None:
    page = "".join(f"{'#' * level} Title number {level}\n\n" for level in range(1, 7)) + "Text."
    assert cut(page)[-1].heading == "Title number 6 › ".join(["", ""])[:-3] or cut(page)[-1].heading.endswith(
        "number 6"
    )
    assert len(cut(page)[-1].heading.split()) <= 30 // 4


# --- tables, lists, code ---------------------------------------------------------------------------------------------


def table(rows: int) -> str:
    return "| gate | opens |\n|---|---|\n" + "\n".join(f"| g{row} | {row} |" for row in range(rows))


def test_a_table_that_fits_is_whole() -> None:
    page = f"{words(1, 2)}\n\n{table(3)}\n\n{words(3, 4)}"
    assert sum(table(3) in one for one in texts(page)) == 1


def test_a_table_that_does_not_fit_is_cut_between_rows_and_its_header_is_repeated() -> None:
    page = "gate\topens\n" + "\n".join(f"g{row} north\t{row} am" for row in range(20))
    found = cut(page)
    assert found[0].repeated == ""
    assert {one.repeated for one in found[1:]} == {"gate\topens"}
    cuts = [page[one.span.start : one.span.end] for one in found]
    assert "\n".join(cuts) == page
    assert all(one.startswith(("g", "gate")) and one.endswith("am") for one in cuts)


def test_a_header_too_long_to_be_read_again_is_not() -> None:
    page = "\t".join(f"column number {column}" for column in range(5)) + "\n" + "\n".join(["a\tb\tc\td\te"] * 20)
    assert {one.repeated for one in cut(page)} == {""}


def test_a_list_is_cut_between_items_and_the_line_before_it_is_repeated() -> None:
    page = "Bring these:\n\n" + "\n".join(f"- thing number {item}\n  of the list" for item in range(12))
    found = cut(page)
    assert page[found[0].span.start :].startswith("Bring these:\n\n- thing number 0")
    assert {one.repeated for one in found[1:]} == {"Bring these:"}
    cuts = [page[one.span.start : one.span.end] for one in found]
    assert all(one.endswith("of the list") for one in cuts)
    assert all(one.startswith("- thing") for one in cuts[1:])


def test_code_is_cut_between_lines() -> None:
    page = "```\n" + "\n".join(f"    call_{line}(a, b, c)" for line in range(30)) + "\n```"
    lines = page.split("\n")
    cuts = texts(page)
    assert len(cuts) > 2
    assert [line for one in cuts for line in one.split("\n")] == lines


def test_rows_and_items_are_not_shared_between_neighbours() -> None:
    page = "a\tb\n" + "\n".join(f"x{row}\ty" for row in range(40))
    assert "\n".join(texts(page, overlap=10)) == page


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_a_document_of_one_byte_is_one_piece() -> None:
    (only,) = cut("x")
    assert (only.span.start, only.span.end, only.section) == (0, 1, (0, 1))


@pytest.mark.parametrize(
    "page",
    [
        "word " * 60_000,
        "x" * 300_000,
        "\n" * 300_000,
        "x" + " " * 300_000 + "y",
        "x" + "\n" * 300_000 + "# y" + "\n" * 300_000 + "z",
        "# t\n" * 30_000,
        "# t\n\n" * 30_000,
        "# t\n\ntext\n\n" * 5_000,
        "".join(f"{'#' * (row % 6 + 1)} t{row}\n\nx\n\n" for row in range(5_000)),
        "a\tb\n" * 30_000,
        "|" + "a|" * 100_000 + "\n|b|",
        "- a\n" * 30_000,
        "so:\n" * 30_000,
        "so:\n\n- a\n- b\n\n" * 3_000,
        "```\n" + "x\n" * 50_000 + "```",
        "中" * 100_000,
    ],
    ids=lambda page: repr(page[:12]),
)
@pytest.mark.parametrize("overlap", [0, 10])
def test_a_huge_page_of_any_pattern_is_cut_in_linear_time(page: str, overlap: int) -> None:
    # Anything but linear work would take minutes here, and linear work takes parts of a second.
    found = cut(page, overlap=overlap)
    assert_nothing_is_lost(page, found)
    assert max((one.span.end - one.span.start for one in found), default=0) <= 30 * 12


def test_pages_are_tokenized_together_and_once() -> None:
    class Counting(Small):
        def token_ends(self, texts: Sequence[str]) -> list[Ints]:
            asked.append(len(texts))
            return super().token_ends(texts)

    asked: list[int] = []
    pieces(["# A\n\nx", words(1, 30), table(50)], (), Counting(), 5)
    assert asked == [3]


# --- from files, by the real tokenizer -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> OnnxEmbedder:
    files = minilm.prepare(tmp_path_factory.mktemp("minilm"))
    return OnnxEmbedder(files.onnx, files.tokenizer)


@pytest.mark.parametrize("path", sorted(SAMPLES.iterdir()), ids=lambda path: path.name)
def test_every_piece_of_a_sample_is_read_whole_under_its_heading(path: Path, embedder: OnnxEmbedder) -> None:
    _, _, pages, rows, _ = extract.Reader(Caps()).parse(path.read_bytes(), path.suffix)
    blocks = [Block(BlockKind(kind), page, start, end, level) for kind, level, page, start, end in rows]
    found = pieces(pages, blocks, embedder)
    for number, page in enumerate(pages, 1):
        assert_nothing_is_lost(page, [one for one in found if one.span.page == number])
    for one in found:
        assert embedder.count_tokens([one.read(pages[one.span.page - 1])]) <= embedder.max_tokens + 2
    assert path.suffix == ".txt" or all(one.heading for one in found)
