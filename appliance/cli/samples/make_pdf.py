"""A PDF from plain text: Helvetica, A4, wrapped lines, no more. Run as a program, it makes the demo's.

In the text a line `# …` is a heading, an empty line ends a paragraph and a form feed ends a page. ISO 32000-1.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

_LINE_CHARACTERS = 88
_LEADING_POINTS = 15


def write_pdf(pages: Sequence[str], title: str = "") -> bytes:
    """The file's bytes, the same for the same text. Characters outside Windows-1252 are replaced by '?'."""
    first_page = 4
    kids = " ".join(f"{first_page + 2 * index} 0 R" for index in range(len(pages)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(pages)}>>".encode(),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
    ]
    for index, page in enumerate(pages):
        stream = zlib.compress(_content(page), 9)
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Resources<</Font<</F1 3 0 R>>>>/Contents %d 0 R>>"
            % (first_page + 2 * index + 1)
        )
        objects.append(b"<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (len(stream), stream))
    objects.append(b"<</Title(%s)>>" % _escape(title))
    return assemble(objects, b"/Root 1 0 R/Info %d 0 R" % len(objects))


def assemble(objects: Sequence[bytes], trailer: bytes) -> bytes:
    """Numbered objects from 1, the cross-reference table and the trailer."""
    out = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    offsets = []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return bytes(out + b"trailer\n<</Size %d%s>>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, start))


def _content(page: str) -> bytes:
    out = [b"BT 60 780 Td %d TL" % _LEADING_POINTS]
    for paragraph in page.strip("\n").split("\n"):
        size, text = (15, paragraph[2:]) if paragraph.startswith("# ") else (11, paragraph)
        out.append(b"/F1 %d Tf" % size)
        out += [b"(%s) Tj T*" % _escape(line) for line in _wrapped(text)]
    return b"\n".join([*out, b"ET"])


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _LINE_CHARACTERS:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


def _escape(text: str) -> bytes:
    return text.encode("cp1252", "replace").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")


def main() -> None:
    """Write documents/maintenance-manual.pdf from maintenance-manual.source."""
    here = Path(__file__).parent
    pages = (here / "maintenance-manual.source").read_text().split("\f")
    (here / "documents" / "maintenance-manual.pdf").write_bytes(write_pdf(pages, "Plant maintenance manual"))


if __name__ == "__main__":
    main()
