"""XLSX (ECMA-376 part 1, SpreadsheetML): a page a sheet, hidden ones too, with what cells showed when it was stored.

Formulas are not read and nothing is evaluated: a cell shows its cached value. Where a sheet says that it ends is not
believed; only cells that are there count.
"""

from functools import cache
from xml.etree.ElementTree import Element

from appliance.ingest.caps import Caps
from appliance.ingest.extract.grid import Cells
from appliance.ingest.extract.number_format import BUILT_IN, GENERAL, NumberFormat
from appliance.ingest.extract.package import RELATION, XML_PARSER, Package, warm_package
from appliance.ingest.extract.pages import Pages
from appliance.ingest.extract.reading import Read

S = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"

PARSER = f"xlsx 1/{XML_PARSER}"

_CELL, _VALUE, _TEXT, _ROW, _PHONETIC, _ITEM = (f"{S}{name}" for name in ("c", "v", "t", "row", "rPh", "si"))
_BOOLEANS = {"0": "FALSE", "1": "TRUE"}
_MAX_COLUMN_LETTERS = 3


def read(data: bytes, caps: Caps) -> Read:
    """A page a sheet: its name as a heading, its cells as tables and text.

    Raises DocumentRefused: TOO_MANY_CELLS, TOO_MANY_PAGES, and as `package.Package`.
    """
    package = Package(data, caps)
    main = package.main_part("spreadsheetml", "ms-excel")
    relations = package.relations(main)
    workbook = package.tree(main)
    properties = workbook.find(f"{S}workbookPr")
    from_1904 = properties is not None and properties.get("date1904") in ("1", "true")
    formats = _Formats(_related(package, main, "styles"), from_1904=from_1904)
    texts = _shared_texts(package, main)
    pages, cells = Pages(caps), Cells(caps)
    for number, sheet in enumerate(workbook.iter(f"{S}sheet")):
        if number:
            pages.turn()
        relation = relations.get(sheet.get(f"{RELATION}id", ""))
        if relation is None or relation.kind != "worksheet" or not package.has(relation.part):
            continue  # a chart, or a macro
        pages.heading(1, sheet.get("name", ""))
        package.stream(relation.part, _Sheet(cells, texts, formats))
        cells.end_sheet(pages)
    return pages.read(PARSER)


def _related(package: Package, main: str, kind: str) -> Element | None:
    part = next(package.related(main, kind), None)
    return package.tree(part) if part else None


def _shared_texts(package: Package, main: str) -> list[str]:
    texts = _SharedTexts()
    for part in package.related(main, "sharedStrings"):
        package.stream(part, texts)
    return texts.found


class _Formats:
    """Number formats by the styles that cells name."""

    def __init__(self, styles: Element | None, *, from_1904: bool) -> None:
        made = cache(lambda code: NumberFormat(code, from_1904=from_1904))
        codes: dict[str, str] = {str(number): code for number, code in BUILT_IN.items()}
        self._general: NumberFormat = made(GENERAL)
        self._formats: dict[str, NumberFormat] = {}
        if styles is not None:
            codes |= {one.get("numFmtId", ""): one.get("formatCode", "") for one in styles.iter(f"{S}numFmt")}
            found = (one.get("numFmtId", "") for one in styles.iterfind(f"{S}cellXfs/{S}xf"))
            self._formats = {str(at): made(codes.get(number, GENERAL)) for at, number in enumerate(found)}

    def of(self, style: str) -> NumberFormat:
        return self._formats.get(style, self._general)


class _SharedTexts:
    """Hears the texts that cells name by number; how they are pronounced stands among them and is left out."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._parts: list[str] = []
        self._heard = self._pronounced = False

    def start(self, tag: str, attributes: dict[str, str], /) -> None:
        if tag == _TEXT:
            self._heard = not self._pronounced
        elif tag == _PHONETIC:
            self._pronounced = True

    def end(self, tag: str, /) -> None:
        self._heard = False
        if tag == _PHONETIC:
            self._pronounced = False
        elif tag == _ITEM:
            self.found.append("".join(self._parts))
            self._parts = []

    def data(self, text: str, /) -> None:
        if self._heard:
            self._parts.append(text)


class _Sheet:
    """Hears a sheet's rows and gives them to `cells`."""

    def __init__(self, cells: Cells, texts: list[str], formats: _Formats) -> None:
        self._cells, self._texts, self._formats = cells, texts, formats
        self._row, self._column = -1, -1
        self._found: list[tuple[int, str, bool]] = []
        self._kind = self._style = ""
        self._parts: list[str] = []
        self._heard = self._pronounced = False

    def start(self, tag: str, attributes: dict[str, str], /) -> None:
        if tag == _CELL:
            self._column = _column(attributes.get("r", ""), self._column + 1)
            self._kind, self._style = attributes.get("t", "n"), attributes.get("s", "0")
            self._parts = []
        elif tag in (_VALUE, _TEXT):
            self._heard = not self._pronounced
        elif tag == _ROW:
            number = attributes.get("r", "")
            self._row = int(number) - 1 if number.isascii() and number.isdigit() and len(number) < 9 else self._row + 1
            self._column = -1
        elif tag == _PHONETIC:
            self._pronounced = True

    def end(self, tag: str, /) -> None:
        self._heard = False
        if tag == _CELL:
            if self._parts:
                text = "".join(self._parts)
                self._found.append((self._column, self._show(text), self._kind not in ("s", "str", "inlineStr")))
        elif tag == _ROW:
            self._cells.add_row(self._row, self._found)
            self._found = []
        elif tag == _PHONETIC:
            self._pronounced = False

    def data(self, text: str, /) -> None:
        if self._heard:
            self._parts.append(text)

    def _show(self, raw: str) -> str:
        if self._kind == "s":
            known = raw.isascii() and raw.isdigit() and len(raw) < 10 and int(raw) < len(self._texts)
            return self._texts[int(raw)] if known else ""
        if self._kind == "n":
            try:
                return self._formats.of(self._style).show(float(raw))
            except ValueError:
                return raw
        return _BOOLEANS.get(raw, raw) if self._kind == "b" else raw


def _column(reference: str, otherwise: int) -> int:
    """From 0, of a cell such as BC12."""
    letters = reference.rstrip("0123456789")
    found = _column_of(letters) if len(letters) <= _MAX_COLUMN_LETTERS else -1
    return found if found >= 0 else otherwise


@cache
def _column_of(letters: str) -> int:
    """-1 for what is no column."""
    if not (letters.isascii() and letters.isalpha()):
        return -1
    number = 0
    for letter in letters.upper():
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


_WARM_CELLS = (
    '<c r="A1" t="inlineStr"><is><t>Warm</t></is></c><c r="B1" s="0"><v>45000.5</v></c><c t="b"><v>1</v></c>'
    '<c t="s"><v>0</v></c>'
)
_WARM_RELATIONS = "".join(
    f'<Relationship Id="{kind}" Type="{RELATION[1:-1]}/{kind}" Target="{kind}.xml"/>'
    for kind in ("worksheet", "styles", "sharedStrings")
)
WARM_DOCUMENTS = (
    warm_package(
        "spreadsheetml.sheet.main+xml",
        "xl/workbook.xml",
        f'<workbook xmlns="{S[1:-1]}" xmlns:r="{RELATION[1:-1]}"><sheets><sheet name="A" r:id="worksheet"/></sheets>'
        "</workbook>",
        {
            "xl/_rels/workbook.xml.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/'
            f'relationships">{_WARM_RELATIONS}</Relationships>',
            "xl/worksheet.xml": f'<worksheet xmlns="{S[1:-1]}"><row>{_WARM_CELLS}</row></worksheet>',
            "xl/styles.xml": f'<styleSheet xmlns="{S[1:-1]}"><cellXfs><xf numFmtId="22"/></cellXfs></styleSheet>',
            "xl/sharedStrings.xml": f'<sst xmlns="{S[1:-1]}"><si><t>b</t></si></sst>',
        },
    ),
)
