"""XLS (Excel 97 to 2003) by calamine: a page a sheet. Numbers are plain; dates, times and booleans as they read."""

from datetime import date, datetime, time, timedelta
from importlib.metadata import version
from io import BytesIO

from python_calamine import CalamineError, CalamineWorkbook, PasswordError

from appliance.ingest.caps import Caps
from appliance.ingest.extract.grid import Cells
from appliance.ingest.extract.number_format import general
from appliance.ingest.extract.package import broken, encrypted, mismatch
from appliance.ingest.extract.pages import Pages
from appliance.ingest.extract.reading import Read

PARSER = f"calamine {version('python-calamine')}"

WARM_DOCUMENTS = ()  # calamine is native and imports nothing; tests hold it to that

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_WORKBOOKS = tuple(name.encode("utf-16-le") for name in ("Workbook", "Book"))

Value = int | float | str | bool | time | date | datetime | timedelta


def read(data: bytes, caps: Caps) -> Read:
    """A page a sheet: its name as a heading, its cells as tables and text.

    Raises DocumentRefused: TYPE_MISMATCH, DOCUMENT_ENCRYPTED, DOCUMENT_BROKEN, TOO_MANY_CELLS, TOO_MANY_PAGES.
    """
    if not data.startswith(_OLE) or not any(name in data for name in _WORKBOOKS):
        raise mismatch()
    pages, cells = Pages(caps), Cells(caps)
    try:
        workbook = CalamineWorkbook.from_filelike(BytesIO(data))
        for number, name in enumerate(workbook.sheet_names):
            if number:
                pages.turn()
            sheet = workbook.get_sheet_by_name(name)
            pages.heading(1, name)
            first = sheet.start[0] if sheet.start else 0
            for row, values in enumerate(sheet.iter_rows(), first):
                cells.add_row(row, [(at, _show(value), not isinstance(value, str)) for at, value in enumerate(values)])
            cells.end_sheet(pages)
    except PasswordError:
        raise encrypted() from None
    except CalamineError:
        raise broken("It is no workbook that can be read.") from None
    return pages.read(PARSER)


def _show(value: Value) -> str:
    match value:
        case str():
            return value
        case bool():
            return str(value).upper()
        case int() | float():
            return general(value)
        case datetime():
            return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "seconds")
        case date() | time():
            return value.isoformat()
        case timedelta():
            minutes, seconds = divmod(round(value.total_seconds()), 60)
            return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
