"""Reports: nothing in them that a hostile name could turn into a formula, a tag or a request."""

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from appliance.errors import NotFound
from appliance.ingest import lineage
from appliance.ingest.report import COLUMNS, ROWS, ReportFormat, report
from appliance.types import FileOutcome, FileState, Ingestion, IngestionState, Lineage
from tests.ingest.bench import EVERYBODY, STICK, Bench

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DONE = Ingestion(
    "7f3a",
    "clinic",
    "handbook",
    EVERYBODY,
    STICK,
    "olga",
    IngestionState.SUCCEEDED,
    NOW,
    approver="otto",
    counts={FileState.COMMITTED: 1},
    by_format={"pdf": 1},
)
NASTY = '=HYPERLINK("http://evil")<script>alert(1)</script>&\'",'


def files(*paths: str) -> list[FileOutcome]:
    return [FileOutcome(path, FileState.COMMITTED, time=NOW, id=f"7f3a-{n}") for n, path in enumerate(paths)]


def text(form: ReportFormat, *paths: str) -> str:
    return b"".join(report(DONE, files(*paths), form)).decode()


@pytest.mark.parametrize("count", [0, 1, ROWS, ROWS + 1])
def test_json_says_all_of_it_in_pieces(count: int) -> None:
    read = json.loads(text(ReportFormat.JSON, *map(str, range(count))))
    assert [file["path"] for file in read["files"]] == [str(n) for n in range(count)]
    assert read["ingestion"]["name"] == "ingestions/7f3a"
    assert read["ingestion"]["source"]["serial"] == "4C530001"
    assert (read["ingestion"]["operator"], read["ingestion"]["approver"]) == ("olga", "otto")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＠"])
def test_no_cell_of_a_csv_begins_a_formula(start: str) -> None:
    rows = list(csv.reader(io.StringIO(text(ReportFormat.CSV, f"{start}1+1", 'plain, "quoted"\n'), newline="")))
    assert rows[0] == list(COLUMNS)
    assert rows[1][0] == f"'{start}1+1"
    assert rows[2][0] == 'plain, "quoted"\n'
    assert all(len(row) == len(COLUMNS) for row in rows)


@pytest.mark.parametrize("name", ["a;=1+1.txt", "  =1+1", "a|@x", "a\t-1", "a; +1"])
def test_no_part_of_a_cell_is_a_formula_where_cells_are_cut_otherwise(name: str) -> None:
    told = text(ReportFormat.CSV, name)
    for cut in (";", "\t", "|"):
        cells = [cell.strip().strip('"') for cell in told.replace("\r\n", cut).split(cut)]
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in cells), cut
    assert told.startswith('"path","state"')


@pytest.mark.parametrize("form", list(ReportFormat))
def test_half_a_surrogate_pair_in_a_name_breaks_no_report(form: ReportFormat) -> None:
    assert "udcff" in text(form, "a\udcff.txt")


ALLOWED = {"html", "head", "meta", "title", "style", "body", "h1", "dl", "dt", "dd"} | {
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_page_shows_hostile_names_as_words_and_asks_for_nothing_elsewhere() -> None:
    page = Page()
    page.feed(text(ReportFormat.HTML, NASTY))
    assert NASTY in page.words
    assert page.tags <= ALLOWED
    assert not {name for name, _ in page.attributes} & {"src", "href", "onload", "onclick", "style"}
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


async def test_a_report_is_its_own_tenants_and_of_an_ingestion_that_there_is(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.write(a__txt="One.", b__exe="MZ")
    done, _ = await bench.run()
    told = json.loads(b"".join(bench.ingest.report("clinic", done.name)))
    assert [(file["path"], file["reason"]) for file in told["files"]] == [("a.txt", ""), ("b.exe", "UNKNOWN_TYPE")]
    assert told["files"][1]["remedy"]
    with pytest.raises(NotFound):
        bench.ingest.report("rival", done.name)


# --- lineage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["", "mails/a.eml"])
def test_a_documents_metadata_tells_where_it_came_from_and_is_read_back(container: str) -> None:
    made = lineage.of(DONE, container, "ministry")
    assert made == Lineage(
        "ingestions/7f3a", "olga", "otto", "stick", "", "4C530001", "ABCD-1234", "DOCS", container, "ministry"
    )
    metadata = lineage.to_metadata(made)
    assert all(metadata.values()), "what is empty is left out"
    assert lineage.from_metadata({**metadata, "attachments": 2.0, "year": 2026}) == made


def test_a_document_that_no_ingestion_made_has_no_lineage() -> None:
    assert lineage.from_metadata({"year": 2026}) is None


def test_a_path_of_any_length_fits_into_metadata() -> None:
    made = lineage.to_metadata(lineage.of(DONE, "x" * 5000 + "/end.zip"))
    assert len(str(made["container"])) <= lineage.MAX_CHARACTERS
    assert str(made["container"]).endswith("/end.zip")


def test_a_file_that_no_manifest_lists_is_not_said_to_be_signed_by_who_signed_its_neighbours() -> None:
    signed = replace(DONE, provenance=replace(STICK, signer="ministry"))
    assert lineage.of(signed, signer="ministry").signer == "ministry"
    assert lineage.of(signed).signer == ""
    assert "signer" not in lineage.to_metadata(lineage.of(signed))
