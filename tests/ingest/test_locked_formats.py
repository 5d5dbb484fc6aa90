"""Each format in the locked child gives what it gives outside: nothing is imported there for the first time."""

import asyncio
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from appliance.config import Config
from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import Reader
from appliance.sandbox.extractor import LockedExtractor
from tests import container_files, office_files, office_samples, pdf_files
from tests.sandbox.locked import extract

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = Config(data_dir=Path("/nowhere"), document_max_mib=4)
SAMPLES = Path(__file__).parents[2] / "appliance" / "cli" / "samples" / "documents"
FOREIGN = Path(__file__).parents[3] / "shared" / "data" / "pdf"

READER = Reader(Caps())
DOCUMENTS = {
    **{f"warm {number}{suffix}": data for number, (suffix, data) in enumerate(READER.warm_documents)},
    **{f"sample {path.name}": path.read_bytes() for path in sorted(SAMPLES.iterdir())},
    **{
        f"{encoding}.html": f"<meta charset={encoding}><p>".encode() + content.encode(encoding)
        for encoding, content in {
            "windows-1250": "żółw",
            "windows-1251": "Пропуск",
            "windows-1252": "Grüße",
            "iso-8859-15": "10 €",
            "koi8-r": "Пропуск",
            "shift_jis": "規則",
            "euc-jp": "規則",
            "gb18030": "规则",
            "big5": "規則",
            "euc-kr": "규칙",
        }.items()
    },
    "control.txt": bytes(range(128)),
    "entities.html": b"<p>&notit; &#x1F642; &CounterClockwiseContourIntegral; &nbsp;x",
    "links.md": b"<http://x.y/?q=\xc3\xa4> [a](http://\xc3\xa4.example 'title') \\* &copy; ![i](j)\n***\n- [ ] task\n",
    "headings.md": b"# One\n\n## Two\n\ntext\n\n- a\n- b\n\n" * 300,
    "blocks.html": b"<h1>One</h1><table><tr><td>a<td>b</table><ul><li>c</ul><pre>d</pre>" * 500,
    "text.pdf": pdf_files.text_pdf(),
    "utf16.txt": "\ufeffÄ 世界".encode("utf-16-le"),
    "aes.pdf": pdf_files.encrypted_pdf("AES-256"),
    "aes-open.pdf": pdf_files.encrypted_pdf("AES-256", password=""),
    "rc4-open.pdf": pdf_files.encrypted_pdf("RC4-128", password=""),
    "image.pdf": pdf_files.image_pdf(),
    "circular.pdf": pdf_files.circular_pdf(),
    "lost-table.pdf": pdf_files.unreferenced_pdf(),
    "nested.pdf": pdf_files.nested_pdf(100_000),
    "cut.pdf": pdf_files.text_pdf()[:700],
    "noise.pdf": b"%PDF-1.4\n" + bytes(range(256)) * 40,
    "nameless": b"text",
    "library.docx": office_samples.docx_sample(),
    "library.pptx": office_samples.pptx_sample(),
    "library.xlsx": office_samples.xlsx_sample(),
    "library.xls": office_samples.xls_sample(),
    "cut.xls": office_samples.xls_sample()[:3000],
    "noise.xls": office_samples.xls_sample()[:600] + bytes(range(256)) * 40,
    "entities.docx": office_files.package(office_files.DOCX, "word/document.xml", office_files.BILLION_LAUGHS + "<x/>"),
    "utf-16.xlsx": office_files.package(office_files.XLSX, "xl/workbook.xml", "<x/>".encode("utf-16")),
    "encoding.xlsx": office_files.package(office_files.XLSX, "xl/w.xml", b"<?xml version='1.0' encoding='cp037'?><x/>"),
    "encrypted.xlsx": office_files.encrypted_package(),
    "repeated.ods": office_files.ods("<table:table table:name='A'/>"),
    "charset.csv": "Schlüssel;Inhaberin\nHaustür;Frau Müller\n".encode("cp1252"),
    "unclosed.csv": b'a,b\n"open,1\n2,3\n',
    **{
        f"{charset}.eml": container_files.mail(
            f"Subject: x\nContent-Type: text/plain; charset={charset}", b"Gr\xfc\xdfe " * 9
        )
        for charset in ("iso-8859-1", "cp037", "no-such", "rot13", "utf-7", "idna", "punycode")
    },
    "attached.eml": container_files.mail(
        container_files.attachment("=?cp037?Q?=81?=.bin", b"x").replace("filename=", "filename*0=")
    ),
    "damaged.tar": container_files.tar_of([("a", b"x")])[:300] + b"x" * 800,
    "cut.gz": container_files.tar_of([("a", b"x")], "w:gz")[:-9],
    "cut.xz": container_files.tar_of([("a", b"x")], "w:xz")[:-9],
    "cut.bz2": container_files.tar_of([("a", b"x")], "w:bz2")[:-9],
    "names.zip": container_files.raw_zip([(b"\x81\xff", b"x"), (b"../a", b"y"), (b"b", b"z")]),
    "bzip2.zip": container_files.zip_of({"a": b"x"}, zipfile.ZIP_BZIP2),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def locked() -> AsyncIterator[LockedExtractor]:
    extractor = LockedExtractor(LIMITS, "appliance.ingest.extract", Caps().settings())
    await extractor.start()
    yield extractor
    await extractor.close()


def outside(data: bytes, name: str) -> tuple[object, ...]:
    try:
        return READER.parse(data, Path(name).suffix)
    except DocumentRefused as refusal:
        return (refusal.file_reason, str(refusal))


async def inside(locked: LockedExtractor, data: bytes, name: str) -> tuple[object, ...]:
    try:
        read = await extract(locked, data, name)
    except DocumentRefused as refusal:
        return (refusal.file_reason, str(refusal))
    rows = tuple((one.kind.value, one.level, one.page, one.start, one.end) for one in read.blocks)
    members = tuple((one.path, one.content, one.problem) for one in read.members)
    return (read.media_type, read.parser, read.pages, rows, members)


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_the_lock_changes_nothing(locked: LockedExtractor, name: str) -> None:
    assert await inside(locked, DOCUMENTS[name], name) == outside(DOCUMENTS[name], name)


@pytest.mark.skipif(not FOREIGN.is_dir(), reason=f"{FOREIGN} is not there")
async def test_the_lock_changes_nothing_for_pdfs_of_many_makers(locked: LockedExtractor) -> None:
    files = {path.name: await asyncio.to_thread(path.read_bytes) for path in sorted(FOREIGN.glob("*.pdf"))}
    assert files
    for name, data in files.items():
        assert await inside(locked, data, name) == outside(data, name)


async def test_a_cut_or_flipped_pdf_is_read_or_refused_and_nothing_worse(locked: LockedExtractor) -> None:
    whole, ends = pdf_files.text_pdf(), set()
    for at in range(20, len(whole), 97):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            ends.add((await inside(locked, data, "flipped.pdf"))[0])
    assert "PDF_BROKEN" in ends
    assert ends <= {"application/pdf", "PDF_BROKEN", "PDF_ENCRYPTED", "EMPTY"}
