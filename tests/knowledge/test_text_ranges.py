"""What of a document's text is read: any span, a section, what stands around a passage."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.errors import NotFound
from appliance.knowledge.search import view
from appliance.knowledge.storage.segment import SegmentFile
from appliance.types import Expand, SearchOptions, Span
from tests.knowledge.conftest import ALL, Shelf
from tests.knowledge.test_documents import STATES
from tests.searching import search


@given(
    pages=st.lists(
        st.lists(st.sampled_from(["Badges é expire. ", "ключ 鍵🗝 ", "# Doors\n\n", "\n\n"]), max_size=300).map("".join),
        min_size=1,
        max_size=3,
    ),
    cuts=st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 3000), st.integers(0, 80)), min_size=5, max_size=9),
)
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_span_is_read_as_its_page_holds_it_and_no_other(
    shelf: Shelf, pages: list[str], cuts: list[tuple[int, int, int]]
) -> None:
    shelf.add("Doors close 🗝.", title="before")
    document = shelf.add("Badges.", *pages, title=f"{len(shelf.contents())} {hash(tuple(pages))}")
    every = ("Badges.", *pages)
    for state in STATES:
        state(shelf)
        for page, start, length in cuts:
            text = every[page - 1] if 1 <= page <= len(every) else ""
            spans = [Span(page, start, start + length), Span(page, max(0, len(text) - length), len(text))]
            for span in (*spans, Span(page, start, len(text) + 1)):
                if 1 <= page <= len(every) and 0 <= span.start <= span.end <= len(text):
                    assert shelf.library.text("handbook", document.id, span, ALL) == text[span.start : span.end]
                else:
                    with pytest.raises(NotFound):
                        shelf.library.text("handbook", document.id, span, ALL)


@pytest.mark.parametrize("state", STATES)
def test_what_stands_around_a_passage_is_read_without_the_rest_of_a_huge_page(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, state: Callable[[Shelf], object]
) -> None:
    line = "Die Tür schließt nachts um {} 🗝. "
    page = "".join(line.format(number) for number in range(6000)).replace("um 3000 ", "um Badges expire ")
    document = shelf.add("Doors.", page)
    state(shelf)
    read: list[int] = []
    whole = SegmentFile.read

    def counted(file: SegmentFile, section: str, start: int = 0, length: int | None = None) -> bytes:
        found = whole(file, section, start, length)
        read.append(len(found) if section == "text" else 0)
        return found

    monkeypatch.setattr(SegmentFile, "read", counted)
    for expand in (Expand.SECTION, Expand.PAGE):
        options = SearchOptions(expand=expand)
        (hit,) = search(shelf.library, "handbook", "badges expire", ALL, 1, options).passages
        at = page.index("Badges expire")
        assert hit.context == view.bounded(page, hit.span.start, hit.span.end)
        assert "Badges expire" in hit.context
    assert shelf.library.text("handbook", document.id, Span(2, at, at + 13), ALL) == "Badges expire"
    assert sum(read) < 200_000


def test_the_section_of_a_passage_and_its_headings_are_kept(shelf: Shelf) -> None:
    page = "# Türen\n\nSie schließen nachts.\n\n# Badges\n\nBadges expire after 90 days.\n\nLost ones are blocked."
    shelf.add(page)
    seen = []
    for state in STATES:
        state(shelf)
        units = shelf.collection._published.snapshot.units
        rows = [(unit, row) for unit in units for row in range(unit.rows)]
        seen.append([(unit.piece(row), unit.passage(row), unit.around(row, None, 1000)) for unit, row in rows])
    assert seen[0] == seen[1] == seen[2]
    for piece, (span, text), (around, at) in seen[0]:
        start, end = piece.section
        assert (piece.span, page[span.start : span.end]) == (span, text)
        assert (around, start + at) == (page[start:end], span.start)
    options = SearchOptions(expand=Expand.SECTION)
    (hit, *_) = search(shelf.library, "handbook", "badges expire", ALL, 1, options).passages
    assert "90 days" in hit.context
    assert "schließen" not in hit.context
