"""Office files that are broken, locked, something else, or attacks: the same guards before each of their readers."""

import zipfile
from io import BytesIO

import pytest

from appliance.ingest.caps import Caps
from tests import container_files
from tests.office_files import (
    BILLION_LAUGHS,
    DOCX,
    OPEN_XML,
    W,
    encrypted_package,
    ods,
    package,
    paragraph,
    relations,
    slides,
    text_cell,
    word,
    word_xml,
    workbook,
    zipped,
)
from tests.reads import ending, members, pages, reason

SHAPE = "<p:sp><p:txBody><a:p><a:r><a:t>Keys</a:t></a:r></a:p></p:txBody></p:sp>"
TABLE = "<table:table table:name='A'><table:table-row><table:table-cell><text:p>Keys</text:p></table:table-cell>"
WHOLE = {
    ".docx": word(paragraph("Keys")),
    ".pptx": slides(SHAPE),
    ".xlsx": workbook(f"<row>{text_cell('A1', 'Keys')}</row>"),
    ".ods": ods(f"{TABLE}</table:table-row></table:table>"),
}
MAIN = {
    ".docx": "word/document.xml",
    ".pptx": "ppt/slide0.xml",
    ".xlsx": "xl/worksheet0.xml",
    ".ods": "content.xml",
}


def parts_of(suffix: str) -> dict[str, str | bytes]:
    with zipfile.ZipFile(BytesIO(WHOLE[suffix])) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_part(suffix: str, content: bytes) -> bytes:
    return zipped({**parts_of(suffix), MAIN[suffix]: content})


def main_part(suffix: str) -> bytes:
    content = parts_of(suffix)[MAIN[suffix]]
    assert isinstance(content, bytes)
    return content


@pytest.mark.parametrize("suffix", WHOLE)
def test_each_of_the_samples_is_read(suffix: str) -> None:
    assert "Keys" in pages(WHOLE[suffix], suffix)[0]


@pytest.mark.parametrize("suffix", WHOLE)
@pytest.mark.parametrize("other", [*WHOLE, "plain ZIP", "text", "PDF"])
def test_a_file_of_another_kind_is_refused(suffix: str, other: str) -> None:
    others = {"plain ZIP": container_files.zip_of({"a.txt": b"x"}), "text": b"words", "PDF": b"%PDF-1.4\n"}
    if other != suffix:
        assert reason((WHOLE | others)[other], suffix) == "TYPE_MISMATCH"


@pytest.mark.parametrize("suffix", WHOLE)
def test_a_document_is_a_zip_archive_too_and_its_parts_are_then_members(suffix: str) -> None:
    assert MAIN[suffix] in [path for path, _, _ in members(WHOLE[suffix], ".zip")]


@pytest.mark.parametrize("suffix", [".docx", ".pptx", ".xlsx"])
def test_a_document_with_a_password_is_named(suffix: str) -> None:
    assert reason(encrypted_package(), suffix) == "DOCUMENT_ENCRYPTED"
    assert reason(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000), suffix) == "TYPE_MISMATCH"


@pytest.mark.parametrize("suffix", WHOLE)
def test_a_package_whose_parts_are_encrypted_is_named(suffix: str) -> None:
    data = WHOLE[suffix]
    data = container_files.patched(container_files.patched(data, b"PK\3\4", 6, b"\1"), b"PK\1\2", 8, b"\1")
    assert reason(data, suffix) == "DOCUMENT_ENCRYPTED"


@pytest.mark.parametrize("suffix", WHOLE)
def test_entity_bombs_and_all_document_types_are_refused(suffix: str) -> None:
    content = main_part(suffix)
    at = content.index(b"<", 1) if content.startswith(b"<?") else 0
    for dtd in (
        BILLION_LAUGHS.encode(),
        b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>",
        b"<!DOCTYPE x SYSTEM 'http://host.example/x.dtd'>",
        b"<!DOCTYPE x>",
    ):
        body = content[:at] + dtd + content[at:].replace(b"Keys", b"&a;" if b"ENTITY a " in dtd else b"Keys")
        assert reason(with_part(suffix, body), suffix) == "XML_DTD"
    wide = (b"<!DOCTYPE x>" + content[at:]).decode().encode("utf-16")
    assert reason(with_part(suffix, wide), suffix) == "XML_DTD"


@pytest.mark.parametrize("suffix", WHOLE)
def test_xml_that_is_none_is_refused(suffix: str) -> None:
    content = main_part(suffix)
    for bad in (
        b"",
        b"<",
        content[:-1],
        content + b"<",
        content.replace(b"Keys", b"&undefined;"),
        content[5:],
        b"\0" * 50,
    ):
        assert reason(with_part(suffix, bad), suffix) == "DOCUMENT_BROKEN"


@pytest.mark.parametrize("suffix", WHOLE)
def test_other_encodings_of_xml_are_read(suffix: str) -> None:
    wide = main_part(suffix).decode().encode("utf-16")
    assert "Keys" in pages(with_part(suffix, wide), suffix)[0]
    declared = b'<?xml version="1.0" encoding="iso-8859-1"?>' + main_part(suffix).replace(b"Keys", b"Keys \xfc")
    assert "Keys ü" in pages(with_part(suffix, declared), suffix)[0]


@pytest.mark.parametrize("suffix", WHOLE)
def test_elements_without_end_are_read_or_refused_by_name(suffix: str) -> None:
    deep = main_part(suffix).replace(b"Keys", b"<x>" * 100_000 + b"Keys" + b"</x>" * 100_000)
    assert ending(with_part(suffix, deep), suffix) in ("", "EMPTY", "TOO_DEEP")


@pytest.mark.parametrize("suffix", WHOLE)
def test_zip_bombs_are_refused_before_a_part_is_unpacked(suffix: str) -> None:
    bomb = zipped({**parts_of(suffix), "word/media/zeros.bin": bytes(32 << 20)})
    assert reason(bomb, suffix) == "ZIP_BOMB"
    assert reason(WHOLE[suffix], suffix, Caps(members=1)) == "TOO_MANY_MEMBERS"
    assert reason(container_files.overlapping_bomb(), suffix) == "ZIP_BOMB"
    assert reason(WHOLE[suffix], suffix, Caps(member_bytes=100)) == "ARCHIVE_TOO_LARGE"


@pytest.mark.parametrize("suffix", WHOLE)
def test_a_document_that_is_cut_is_refused(suffix: str) -> None:
    data = WHOLE[suffix]
    for at in (40, len(data) // 2, len(data) - 30, len(data) - 1):
        assert reason(data[:at], suffix) == "DOCUMENT_BROKEN"


@pytest.mark.parametrize("suffix", WHOLE)
def test_a_part_that_is_damaged_is_refused(suffix: str) -> None:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts_of(suffix).items():
            archive.writestr(name, content)
    assert "Keys" in pages(out.getvalue(), suffix)[0]
    assert reason(out.getvalue().replace(b"Keys", b"Kegs"), suffix) == "DOCUMENT_BROKEN"


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", WHOLE)
def test_two_parts_of_one_name_are_refused(suffix: str) -> None:
    out = BytesIO(WHOLE[suffix])
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr(MAIN[suffix].upper(), b"other")
    assert reason(out.getvalue(), suffix) == "DOCUMENT_BROKEN"


def test_a_package_that_is_missing_what_it_names_is_refused() -> None:
    types = parts_of(".docx")["[Content_Types].xml"]
    whole = parts_of(".docx")
    del whole["word/document.xml"]
    assert reason(zipped(whole), ".docx") == "TYPE_MISMATCH"
    assert reason(zipped({"[Content_Types].xml": types, "a": "x"}), ".docx") == "TYPE_MISMATCH"


def test_macros_are_ignored_and_a_document_that_has_them_is_read() -> None:
    macro_type = "application/vnd.ms-word.document.macroEnabled.main+xml"
    whole = parts_of(".docx")
    types = whole["[Content_Types].xml"]
    assert isinstance(types, bytes)
    whole["[Content_Types].xml"] = types.replace(f"{OPEN_XML}.{DOCX}".encode(), macro_type.encode())
    whole["word/vbaProject.bin"] = b"Sub AutoOpen()"
    assert pages(zipped(whole), ".docm") == ("Keys",)


def test_what_lies_outside_is_never_followed() -> None:
    outside = relations({"styles": "http://host.example/styles.xml", "header1": "../../../../etc/passwd"})
    outside = outside.replace('Target="http', 'TargetMode="External" Target="http')
    whole = parts_of(".docx") | {"word/_rels/document.xml.rels": outside}
    assert pages(zipped(whole), ".docx") == ("Keys",)


def test_a_relationship_that_says_it_leads_outside_does_not_lead_inside() -> None:
    outside = relations({"header1": "hidden.xml"}).replace("Target=", 'TargetMode="External" Target=')
    hidden = word_xml("hdr", paragraph("unseen"))
    whole = parts_of(".docx") | {"word/_rels/document.xml.rels": outside, "word/hidden.xml": hidden}
    assert pages(zipped(whole), ".docx") == ("Keys",)


def test_strict_documents_are_read() -> None:
    strict = word_xml("document", f"<w:body>{paragraph('Keys')}</w:body>")
    strict = strict.replace(W, "http://purl.oclc.org/ooxml/wordprocessingml/main")
    assert pages(package(DOCX, "word/document.xml", strict), ".docx") == ("Keys",)
