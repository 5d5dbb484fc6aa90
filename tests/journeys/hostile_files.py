"""One of each kind of hostile file, small enough that a box takes them all in within seconds, and how each must end."""

import hashlib
import stat
import tarfile
from collections.abc import Callable, Mapping
from zipfile import ZIP_BZIP2, ZIP_STORED

from PIL import Image

from tests import office_files, office_samples
from tests.container_files import (
    attachment,
    flat_bomb,
    mail,
    million_entries,
    multipart,
    nested_mail,
    overlapping_bomb,
    patched,
    quoting_bomb,
    raw_zip,
    tar_of,
    zip_of,
)
from tests.pdf_files import (
    acting_pdf,
    attached_bomb_pdf,
    attached_large_pdf,
    attaching_pdf,
    bomb_pdf,
    circular_pdf,
    crowded_pdf,
    cyclic_fonts_pdf,
    drawn_pdf,
    encrypted_pdf,
    form_pdf,
    glyphs_pdf,
    image_pdf,
    joined,
    lines_pdf,
    looping_outline_pdf,
    looping_xref_pdf,
    many_pages_pdf,
    nested_pdf,
    noise_pdf,
    object_stream_pdf,
    picture_pdf,
    text_pdf,
    unreferenced_pdf,
    updated_pdf,
)
from tests.picture_files import drawn, empty_png, encoded, long_comment_png, looping_tiff, resized
from tests.zip_quine import quine

CAPS = ("--parse-cpu-seconds=4", "--ocr-cpu-seconds=3", "--sheet-max-cells=400000")
"""Lower than a box's, so that what spins ends soon."""

COMMITTED, UNPACKED, DUPLICATE = "committed", "unpacked", "duplicate"

Made = Callable[[], bytes]


def marker(name: str) -> str:
    """A word that stands in the text of that file alone."""
    return f"zq{hashlib.sha256(name.encode()).hexdigest()[:22]}"


def marked(name: str) -> bytes:
    return f"The word of this file is {marker(name)} and it is secret.".encode()


def line_pdf(name: str) -> bytes:
    return text_pdf([marked(name).decode()])


def nested_archives(times: int, depth: int) -> bytes:
    """Archives in archives, as in 42.zip: so many in each of them, down to one of text."""
    data = zip_of({"0.txt": marked("forty-two.zip") * 10_000})
    for level in range(depth):
        data = zip_of({f"{level}{number}.zip": data for number in range(times)})
    return data


def messages(depth: int) -> bytes:
    """A message that carries a message, and so on."""
    data = mail("Subject: 0", marked("messages.eml"))
    for number in range(depth):
        inner = data.decode().replace("\r", "")
        head, _, body = multipart(f"Content-Type: message/rfc822\n\n{inner}").partition("\n\n")
        data = mail(f"Subject: {number}\n{head}", body)
    return data


def parts(*made: str) -> bytes:
    head, _, body = multipart(*made).partition("\n\n")
    return mail(f"Subject: x\n{head}", body)


def nested_parts(depth: int) -> bytes:
    head, _, body = nested_mail(depth).partition("\n\n")
    return mail(f"Subject: x\n{head}", body)


def sheet(rows: int) -> bytes:
    return office_files.stored(office_files.workbook(f"<row>{'<c><v>1</v></c>' * 100}</row>" * rows))


def shared_text() -> bytes:
    """Many cells that show one long text."""
    cells = '<row><c t="s"><v>0</v></c></row>' * 200_000
    return office_files.stored(office_files.workbook(cells, shared=[f"<t>{'x' * 100_000}</t>"]))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


LINKS = {b"link": stat.S_IFLNK | 0o777, b"fifo": stat.S_IFIFO, b"device": stat.S_IFBLK}
NAMES = (b"../up.txt", b"/etc/passwd", b"C:\\up.txt", b"a\0.txt", b"", b"a\nb.txt", b"\xff.txt")
ENTITIES = office_files.BILLION_LAUGHS + "<x>&a9;</x>"

PDFS: Mapping[str, tuple[Made, str]] = {
    "acting.pdf": (acting_pdf, COMMITTED),
    "attaching.pdf": (lambda: attaching_pdf({"run.exe": b"MZ\x90\0", "note.txt": marked("note")}), COMMITTED),
    "attached-bomb.pdf": (lambda: attached_bomb_pdf(64), f"ZIP_BOMB TOO_MUCH_MEMORY {COMMITTED}"),
    "attached-large.pdf": (lambda: attached_large_pdf(48), COMMITTED),
    "bomb.pdf": (lambda: bomb_pdf(64), "SPUN TOO_MUCH_MEMORY TOO_MUCH_TEXT"),
    "circular.pdf": (circular_pdf, "PDF_BROKEN"),
    "crowded.pdf": (lambda: crowded_pdf(200_000), "SPUN"),
    "cut.pdf": (lambda: line_pdf("cut.pdf")[:-200], f"PDF_BROKEN {COMMITTED}"),
    "cyclic-fonts.pdf": (cyclic_fonts_pdf, COMMITTED),
    "drawn.pdf": (lambda: drawn_pdf(20, 5000, marked("drawn.pdf").decode()), COMMITTED),
    "form.pdf": (form_pdf, COMMITTED),
    "glyphs.pdf": (lambda: glyphs_pdf(""), "EMPTY NO_TEXT"),
    "image.pdf": (image_pdf, "EMPTY NO_TEXT"),
    "joined.pdf": (lambda: joined(line_pdf("joined.pdf"), cyclic_fonts_pdf()), COMMITTED),
    "line.pdf": (lambda: line_pdf("line.pdf"), COMMITTED),
    "locked.pdf": (lambda: encrypted_pdf("AES-256"), "PDF_ENCRYPTED"),
    "looping-outline.pdf": (looping_outline_pdf, COMMITTED),
    "looping-xref.pdf": (looping_xref_pdf, COMMITTED),
    "nested.pdf": (lambda: nested_pdf(200_000), f"EMPTY PDF_BROKEN {COMMITTED}"),
    "noise.pdf": (lambda: noise_pdf(2), f"SPUN {COMMITTED}"),
    "object-stream.pdf": (lambda: object_stream_pdf(8), "PDF_BROKEN EMPTY"),
    "pages.pdf": (lambda: many_pages_pdf(100_000), "TOO_MANY_PAGES"),
    "pixels.pdf": (lambda: picture_pdf(bytes(9), 100_000, 100_000, 1), "IMAGE_TOO_LARGE"),
    "table-lost.pdf": (unreferenced_pdf, COMMITTED),
    "unlocked.pdf": (lambda: encrypted_pdf("AES-256", password=""), COMMITTED),
    "updated.pdf": (updated_pdf, COMMITTED),
    "words.pdf": (lambda: lines_pdf([(60, 780, 11, marked("words.pdf").decode())]), COMMITTED),
    "zip.pdf": (lambda: b"%PDF-1.4\n" + zip_of({"a.txt": marked("zip.pdf")}), "POLYGLOT"),
}

PICTURES: Mapping[str, tuple[Made, str]] = {
    "blank.png": (lambda: empty_png(9_999, 9_999, 1), "IMAGE_BROKEN TOO_MUCH_MEMORY EMPTY NO_TEXT"),
    "comment.png": (lambda: long_comment_png(64), "IMAGE_BROKEN EMPTY NO_TEXT"),
    "looping.tiff": (looping_tiff, "IMAGE_BROKEN EMPTY NO_TEXT"),
    "lying.bmp": (
        lambda: resized(encoded(Image.new("L", (64, 64), 255), "BMP"), "BMP", 90_000, 90_000),
        "IMAGE_TOO_LARGE IMAGE_BROKEN",
    ),
    "pixels.png": (lambda: empty_png(100_000, 100_000, 1), "IMAGE_TOO_LARGE"),
    "read.png": (lambda: encoded(drawn(["The porter rings", "the ward first"]), "PNG"), COMMITTED),
    "zeros.gif": (lambda: b"GIF89a" + bytes(100), "IMAGE_BROKEN EMPTY"),
}

CONTAINERS: Mapping[str, tuple[Made, str]] = {
    "bzip2.zip": (lambda: zip_of({"a.txt": marked("bzip2.zip")}, ZIP_BZIP2), UNPACKED),
    "flat.zip": (flat_bomb, "ZIP_BOMB"),
    "forty-two.zip": (lambda: nested_archives(2, 5), f"ZIP_BOMB {UNPACKED}"),
    "good.zip": (lambda: zip_of({"a.txt": marked("good.zip")}, ZIP_STORED), UNPACKED),
    "links.tar": (lambda: tar_of([("x", b"")], kind=tarfile.SYMTYPE, link="/etc/passwd"), UNPACKED),
    "devices.tar": (lambda: tar_of([("x", b"")], kind=tarfile.CHRTYPE), UNPACKED),
    "links.zip": (lambda: raw_zip([(name, b"/etc/passwd") for name in LINKS], modes=LINKS), UNPACKED),
    "locked.zip": (lambda: raw_zip([(b"a.txt", marked("locked.zip"))], flags=1), "ARCHIVE_ENCRYPTED"),
    "lying.zip": (
        lambda: patched(zip_of({"a.txt": marked("lying.zip") * 9}), b"PK\1\2", 24, b"\xf0\xff\xff\xff"),
        "ARCHIVE_BROKEN ZIP_BOMB",
    ),
    "million.zip": (million_entries, "TOO_MANY_MEMBERS"),
    "names.zip": (lambda: raw_zip([(name, marked("names.zip") + name) for name in NAMES], flags=0x800), UNPACKED),
    "overlapping.zip": (overlapping_bomb, "ZIP_BOMB"),
    "quine.zip": (quine, f"ZIP_BOMB {UNPACKED}"),
    "quoting.zip": (quoting_bomb, "ZIP_BOMB"),
    "zeros.tgz": (lambda: tar_of([("zeros", bytes(64 << 20))], "w:gz"), "ZIP_BOMB"),
    "headers.eml": (lambda: mail("Subject: x\n" + "X: y\n" * 300_000), "MAIL_HEADERS"),
    "messages.eml": (lambda: messages(5), f"{UNPACKED} {COMMITTED}"),
    "mail.eml": (
        lambda: parts(f"Content-Type: text/plain\n\n{marker('mail.eml')}", attachment("run.exe", b"MZ\x90\0")),
        COMMITTED,
    ),
    "nested.eml": (lambda: nested_parts(200), f"{COMMITTED} TOO_DEEP EMPTY"),
    "parts.eml": (lambda: parts(*["Content-Type: text/plain\n\nx"] * 100_000), "TOO_MANY_MEMBERS"),
}

OFFICE: Mapping[str, tuple[Made, str]] = {
    "cells.xlsx": (lambda: sheet(4001), "TOO_MANY_CELLS SPUN"),
    "deep.docx": (
        lambda: office_files.word("<w:ins>" * 50_000 + office_files.paragraph("x") + "</w:ins>" * 50_000),
        "TOO_DEEP",
    ),
    "flipped.xls": (lambda: flipped(office_samples.xls_sample(), 700), f"DOCUMENT_BROKEN CRASHED {COMMITTED}"),
    "formulas.xlsx": (
        lambda: office_files.workbook(
            f"<row>{office_files.text_cell('A1', '=HYPERLINK(0)')}{office_files.text_cell('B1', marker('x'))}</row>"
        ),
        COMMITTED,
    ),
    "laughs.docx": (lambda: office_files.package(office_files.DOCX, "word/document.xml", ENTITIES), "XML_DTD"),
    "locked.docx": (office_files.encrypted_package, "DOCUMENT_ENCRYPTED"),
    "picture.docx": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(500), "TYPE_MISMATCH"),
    "shared.xlsx": (shared_text, "TOO_MUCH_MEMORY SPUN"),
    "word.docx": (lambda: office_files.word(office_files.paragraph(marked("word.docx").decode())), COMMITTED),
    "zeros.docx": (flat_bomb, "ZIP_BOMB"),
}

TEXTS: Mapping[str, tuple[Made, str]] = {
    "deep.html": (lambda: b"<div>" * 100_000 + marked("deep.html"), f"HTML_TOO_DEEP {COMMITTED}"),
    "formulas.csv": (lambda: b"=cmd|' /C calc'!A0," + marked("formulas.csv"), COMMITTED),
    "laughs.xml": (lambda: ENTITIES.encode() + marked("laughs.xml"), COMMITTED),
    "program.exe": (lambda: b"MZ" + marked("program.exe"), "UNKNOWN_TYPE"),
    "script.html": (lambda: b"<script>alert(1)</script><p>" + marked("script.html"), COMMITTED),
    "zeros.txt": (lambda: bytes(100_000), "NOT_TEXT EMPTY"),
}

FILES = {**PDFS, **PICTURES, **CONTAINERS, **OFFICE, **TEXTS}

MEMBERS: Mapping[str, str] = {
    "attached-large.pdf/zeros.bin": "UNKNOWN_TYPE",
    "attaching.pdf/note.txt": COMMITTED,
    "attaching.pdf/run.exe": "UNKNOWN_TYPE",
    "bzip2.zip/a.txt": "MEMBER_METHOD",
    "devices.tar/x": "MEMBER_DEVICE",
    "good.zip/a.txt": COMMITTED,
    "links.tar/x": "MEMBER_LINK",
    "links.zip/device": "MEMBER_DEVICE",
    "links.zip/fifo": "MEMBER_DEVICE",
    "links.zip/link": "MEMBER_LINK",
    "mail.eml/run.exe": "UNKNOWN_TYPE",
    "names.zip/(no name)": "MEMBER_NAME",
    "names.zip/../up.txt": "MEMBER_OUTSIDE",
    "names.zip//etc/passwd": "MEMBER_OUTSIDE",
    "names.zip/C:\\\\up.txt": "MEMBER_OUTSIDE",
    "names.zip/\\xff.txt": COMMITTED,
    "names.zip/a\\nb.txt": "MEMBER_NAME",
    "names.zip/a\\x00.txt": "MEMBER_NAME",
}

WITHIN: Mapping[str, str] = {
    "forty-two.zip": f"{UNPACKED} {COMMITTED} {DUPLICATE} TOO_DEEP ZIP_BOMB",
    "messages.eml": f"{COMMITTED} {DUPLICATE} TOO_DEEP",
    "quine.zip": f"{UNPACKED} TOO_DEEP ZIP_BOMB",
}
"""How whatever lies in these must end, level by level."""
