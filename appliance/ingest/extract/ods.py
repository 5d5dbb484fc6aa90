"""ODS (OpenDocument 1.3 part 3): a page a sheet, with what its cells showed when it was stored; nothing evaluates."""

import zipfile
from io import BytesIO

from appliance.ingest.caps import Caps
from appliance.ingest.extract.grid import Cells
from appliance.ingest.extract.package import XML_PARSER, Package, encrypted, mismatch
from appliance.ingest.extract.pages import Pages
from appliance.ingest.extract.reading import Read

_NAMESPACE = "urn:oasis:names:tc:opendocument:xmlns"
_OFFICE, _TABLE, _TEXT, _MANIFEST = (f"{{{_NAMESPACE}:{name}:1.0}}" for name in ("office", "table", "text", "manifest"))
_MEDIA_TYPE = b"application/vnd.oasis.opendocument.spreadsheet"

PARSER = f"ods 1/{XML_PARSER}"

_ROW = f"{_TABLE}table-row"
_CELLS = (f"{_TABLE}table-cell", f"{_TABLE}covered-table-cell")
_UNSHOWN = (f"{_OFFICE}annotation", f"{_TABLE}shapes", f"{_TABLE}tracked-changes")
_VALUES = tuple(f"{_OFFICE}{name}" for name in ("value", "date-value", "time-value", "boolean-value", "string-value"))
_MAX_SPACES = 100


def read(data: bytes, caps: Caps) -> Read:
    """A page a sheet: its name as a heading, its cells as tables and text.

    Raises DocumentRefused: TOO_MANY_CELLS, TOO_MANY_PAGES, and as `package.Package`.
    """
    package = Package(data, caps)
    if not package.has("mimetype") or not package.part("mimetype").startswith(_MEDIA_TYPE):
        raise mismatch()
    if package.has("META-INF/manifest.xml"):
        manifest = package.tree("META-INF/manifest.xml")
        if next(manifest.iter(f"{_MANIFEST}encryption-data"), None) is not None:
            raise encrypted()
    sheets = _Sheets(Pages(caps), Cells(caps))
    package.stream("content.xml", sheets)
    return sheets.pages.read(PARSER)


class _Sheets:
    """Hears the sheets and writes them."""

    def __init__(self, pages: Pages, cells: Cells) -> None:
        self.pages = pages
        self._cells = cells
        self._sheets = 0
        self._row = self._column = 0
        self._row_times = self._cell_times = 1
        self._figure = False
        self._value = ""
        self._found: list[tuple[int, str, bool]] = []
        self._parts: list[str] = []
        self._in_paragraph = self._unshown = 0

    def start(self, tag: str, attributes: dict[str, str], /) -> None:
        if tag in _CELLS:
            self._cell_times = _times(attributes.get(f"{_TABLE}number-columns-repeated", "1"))
            self._figure = attributes.get(f"{_OFFICE}value-type", "string") != "string"
            self._value = next((attributes[name] for name in _VALUES if name in attributes), "")
            self._parts = []
        elif tag == f"{_TEXT}p":
            self._in_paragraph += 1
            if self._parts:
                self.data("\n")
        elif tag == _ROW:
            self._row_times = _times(attributes.get(f"{_TABLE}number-rows-repeated", "1"))
            self._column, self._found = 0, []
        elif tag == f"{_TABLE}table":
            self._sheets += 1
            if self._sheets > 1:
                self.pages.turn()
            self._row = 0
            self.pages.heading(1, attributes.get(f"{_TABLE}name", ""))
        elif tag in (f"{_TEXT}s", f"{_TEXT}tab"):
            self.data(" " * min(_times(attributes.get(f"{_TEXT}c", "1")), _MAX_SPACES))
        elif tag in _UNSHOWN:
            self._unshown += 1

    def end(self, tag: str, /) -> None:
        if tag in _CELLS:
            text = "".join(self._parts) or self._value
            if text.strip():
                self._cells.check_room(self._cell_times)
                cells = range(self._column, self._column + self._cell_times)
                self._found += ((column, text, self._figure) for column in cells)
            self._column += self._cell_times
            self._parts, self._value = [], ""
        elif tag == f"{_TEXT}p":
            self._in_paragraph -= 1
        elif tag == _ROW:
            self._cells.add_row(self._row, self._found, self._row_times)
            self._row += self._row_times
        elif tag == f"{_TABLE}table":
            self._cells.end_sheet(self.pages)
        elif tag in _UNSHOWN:
            self._unshown -= 1

    def data(self, text: str, /) -> None:
        if self._in_paragraph and not self._unshown:
            self._parts.append(text)


def _warm_document() -> bytes:
    spaces = f'xmlns:o="{_OFFICE[1:-1]}" xmlns:a="{_TABLE[1:-1]}" xmlns:t="{_TEXT[1:-1]}"'
    cell = '<a:table-cell o:value-type="string"><t:p>Warm</t:p></a:table-cell>'
    content = f'<o:s {spaces}><a:table a:name="A"><a:table-row>{cell}</a:table-row></a:table></o:s>'
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mimetype", _MEDIA_TYPE, zipfile.ZIP_STORED)
        archive.writestr("content.xml", content)
    return out.getvalue()


WARM_DOCUMENTS = (_warm_document(),)


def _times(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 1
