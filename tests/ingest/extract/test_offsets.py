"""Every block lies in its page, in order, on whole lines, and is what it says it is: over all formats."""

import random
import re
from pathlib import Path

import pytest

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import Reader
from appliance.ingest.formats import FORMATS, format_of
from tests import container_files, office_files, office_samples, pdf_files
from tests.office_files import paragraph

SAMPLES = Path(__file__).parents[3] / "appliance" / "cli" / "samples" / "documents"
FOREIGN = Path(__file__).parents[4] / "shared" / "data" / "pdf"
KINDS = {"heading", "list", "table", "code", "paragraph"}
READER = Reader(Caps())

TEXTS = (
    "Gate\u0301 key",
    "z\u200bw",
    "a &amp; b\r\n",
    "שלום עולם",
    "🙂\u00ad",
    "\n\n\n",
    "\t",
    "x  ",
    "1. one",
    "\u2028",
    "",
)
HTML_TAGS = (
    "p",
    "h1",
    "h3",
    "ul",
    "ol",
    "li",
    "table",
    "tr",
    "td",
    "th",
    "pre",
    "div",
    "br",
    "title",
    "caption",
    "dl",
    "b",
)
MARKDOWN = (
    "# ",
    "- ",
    "  - ",
    "1. ",
    "> ",
    "```\n",
    "|a|b|\n|-|-|\n|",
    "    ",
    "\n\n",
    "***\n",
    "<table><tr><td>a<td>b\n\n",
    "===\n",
)
WORD = (
    '<w:p><w:pPr><w:pStyle w:val="H"/></w:pPr><w:r><w:t>{}</w:t></w:r></w:p>',
    '<w:p><w:pPr><w:numPr><w:numId w:val="1"/></w:numPr></w:pPr><w:r><w:t>{}</w:t></w:r></w:p>',
    '<w:p><w:r><w:t>{}</w:t><w:br w:type="page"/><w:t>after</w:t></w:r></w:p>',
    "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>k</w:t></w:r></w:p></w:tc></w:tr></w:tbl>",
)
HEADING_STYLE = '<w:style w:type="paragraph" w:styleId="H"><w:name w:val="heading 2"/></w:style>'


def random_html(chance: random.Random) -> bytes:
    parts = (
        chance.choice(TEXTS) if chance.random() < 0.5 else f"<{chance.choice(('', '/'))}{chance.choice(HTML_TAGS)}>"
        for _ in range(60)
    )
    return ("<p>" + "".join(parts)).encode()


def random_markdown(chance: random.Random) -> bytes:
    return "".join(f"{chance.choice(MARKDOWN)}{chance.choice(TEXTS)}\n" for _ in range(40)).encode()


def random_mail(chance: random.Random) -> bytes:
    return container_files.mail("Subject: Keys\nContent-Type: text/html; charset=utf-8", random_html(chance))


def random_docx(chance: random.Random) -> bytes:
    body = "".join(chance.choice(WORD).format(chance.choice(TEXTS)) for _ in range(20))
    return office_files.word(paragraph("First.") + body, styles=HEADING_STYLE)


MAKERS = {".html": random_html, ".md": random_markdown, ".eml": random_mail, ".docx": random_docx}


def documents() -> list[tuple[str, bytes]]:
    """One or more of every kind that has text, by its suffix."""
    return [
        *READER.warm_documents,
        *((path.suffix, path.read_bytes()) for path in sorted(SAMPLES.iterdir())),
        (".docx", office_samples.docx_sample()),
        (".pptx", office_samples.pptx_sample()),
        (".xlsx", office_samples.xlsx_sample()),
        (".xls", office_samples.xls_sample()),
        (".pdf", pdf_files.outlined_pdf()),
        (".pdf", pdf_files.columns_pdf(["left side text"] * 9, ["right side text"] * 9)),
        (".pdf", pdf_files.table_pdf([["Key", "Holder"], ["Gate", "Li"], ["Door", "Bo"]], ruled=True)),
        (".pdf", pdf_files.running_pdf("House rules", ["One.", "Two.", "Three.", "Four."])),
        *((".pdf", path.read_bytes()) for path in sorted(FOREIGN.glob("*.pdf"))),
    ]


def check(data: bytes, suffix: str) -> None:
    try:
        media_type, parser, pages, rows, members = READER.parse(data, suffix)
    except DocumentRefused:
        return
    assert media_type == format_of(suffix).media_type
    assert re.match(r"[a-z][\w-]* [0-9]|[a-z]+ 1/", parser), parser
    assert all(page == page.strip("\n") for page in pages)
    assert pages or members
    last = (1, 0)
    for kind, level, number, start, end in rows:
        page = pages[number - 1]
        assert last <= (number, start)
        assert start < end <= len(page)
        last = (number, end)
        block = page[start:end]
        assert kind in KINDS
        assert (kind == "heading") == (1 <= level <= 9)
        assert block.strip()
        assert block == block.strip("\n")
        assert page[:start].endswith("\n") or not start, "a block begins a line"
        assert page[end:].startswith("\n") or end == len(page), "a block ends a line"
        assert kind != "table" or all(line.strip() for line in block.split("\n"))


def test_blocks_are_what_they_say_in_every_format() -> None:
    found = documents()
    assert {suffix for suffix, _ in found} >= {suffix for suffix, form in FORMATS.items() if form.module == "pdf"}
    for suffix, data in found:
        check(data, suffix)


@pytest.mark.parametrize("suffix", MAKERS)
def test_blocks_are_what_they_say_whatever_stands_in_a_document(suffix: str) -> None:
    for seed in range(150):
        check(MAKERS[suffix](random.Random(seed)), suffix)
