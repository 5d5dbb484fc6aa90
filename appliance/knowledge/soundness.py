"""Whether the sections of a segment say what they must, and agree with one another: for verification, not for use.

Every byte has been authenticated before. So what is found here is not a flipped bit, but what was written wrongly.
"""

import struct
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from appliance.errors import StoreDamaged
from appliance.knowledge.catalog import Catalog, Row
from appliance.knowledge.index.inverted_file import InvertedFile
from appliance.knowledge.index.vectors import Codes
from appliance.knowledge.sealed import PASSAGE
from appliance.knowledge.storage.manifest import SegmentEntry
from appliance.knowledge.storage.segment import SegmentFile

_VEC_I8_HEADER = struct.Struct("<8sII")
_BLOCK_ROWS = 4096
_BLOCK_BYTES = 1 << 20
_ROUNDING = 0.51  # of a step of int8; and what float32 makes of it


def problems(file: SegmentFile, entry: SegmentEntry, dimension: int) -> Iterator[str]:
    """A sentence for each section that is wrong; in a segment of version 1 of those alone that are still used.

    dimension: of the collection's vectors.
    """
    rows = cache(lambda: Catalog("", {entry.number: file.read("rows")}).of_segment(entry.number))
    checks: dict[str, Callable[[], Iterator[str]]] = {
        "rows": lambda: _rows(file, entry, rows()),
        "vectors": lambda: _vectors(file, entry.passages, dimension),
    }
    if file.version > 1:
        checks |= {
            "owners": lambda: _owners(file, entry, rows()),
            "passages": lambda: _passages(file, entry.passages),
            "postings": lambda: _postings(file, entry.passages),
        }
    for section, check in checks.items():
        try:
            yield from (f"Section {section}: {problem}" for problem in check())
        except StoreDamaged as error:
            yield f"Section {section}: {error}"
        except (ValueError, IndexError, KeyError, struct.error) as error:
            yield f"Section {section} cannot be read: {type(error).__name__}."


def _rows(file: SegmentFile, entry: SegmentEntry, rows: Sequence[Row]) -> Iterator[str]:
    """The catalogue's rows against `ids` and `text`."""
    raw = file.read("ids")
    ids = [raw[at : at + 16].hex() for at in range(0, len(raw), 16)]
    if len(raw) != 16 * entry.documents or len(set(ids)) != len(ids):
        yield f"there are {len(raw) / 16:g} ids for {entry.documents} documents, or one is there twice."
    if [row.document.id for row in rows] != ids or [row.ordinal for row in rows] != list(range(entry.documents)):
        yield "its documents are not those of the ids, in their order."
    end = 0
    for row in rows:
        end = yield from _row(row, end)
    if end != file.size("text"):
        yield f"its pages take {end} of {file.size('text')} bytes of text."
    if (total := sum(row.document.passage_count for row in rows)) != entry.passages:
        yield f"its documents have {total} passages, and the segment {entry.passages}."


def _row(row: Row, end: int) -> Generator[str, None, int]:
    """Returns where the document's text ends."""
    if row.text_start != end or len(row.page_bytes) != row.document.page_count or min(row.page_bytes, default=0) < 0:
        yield f"the text of document {row.document.id} is not where it must be."
    return row.text_start + sum(row.page_bytes)


def _owners(file: SegmentFile, entry: SegmentEntry, rows: Sequence[Row]) -> Iterator[str]:
    owners = np.frombuffer(file.read("owners"), "<u4").astype(np.int64)
    if len(owners) != entry.passages or (np.diff(owners) < 0).any() or (owners >= entry.documents).any():
        yield "they are not one for each passage, ascending, each of a document."
        return
    counts = np.bincount(owners, minlength=entry.documents).tolist()
    if counts != [row.document.passage_count for row in rows]:
        yield "a document has another number of passages than its row says."


def _passages(file: SegmentFile, count: int) -> Iterator[str]:
    """Ranges of code points against ranges of bytes, and both against the text."""
    passages = np.frombuffer(file.read("passages"), PASSAGE)
    text_bytes, strings = file.size("text"), file.size("strings")
    if len(passages) != count:
        yield f"there are {len(passages)} of {count}."
    for start, end, points_start, points_end in (
        ("text_start", "text_end", "start", "end"),
        ("section_text_start", "section_text_end", "section_start", "section_end"),
    ):
        first, last = passages[start].astype(np.int64), passages[end].astype(np.int64)
        if (first > last).any() or (last > text_bytes).any():
            yield f"{start} and {end} do not lie in the text, one after the other."
            continue
        points = passages[points_end].astype(np.int64) - passages[points_start]
        (before_first, first_whole), (before_last, last_whole) = _code_points(file, first), _code_points(file, last)
        if (before_last - before_first != points).any() or not (first_whole & last_whole).all():
            yield f"{start} and {end} are not the bytes of {points_start} and {points_end}."
    inside = (passages["section_text_start"] <= passages["text_start"]) & (
        passages["text_end"] <= passages["section_text_end"]
    )
    if not inside.all() or (passages["page"] < 1).any():
        yield "a passage lies outside of its section, or on no page."
    for name in ("heading", "repeated"):
        if (passages[f"{name}_start"] > passages[f"{name}_end"]).any() or (passages[f"{name}_end"] > strings).any():
            yield f"{name} does not lie in the strings."
    file.read("strings").decode()


def _code_points(file: SegmentFile, places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How many code points begin before each of these bytes of the text, and whether it is in the middle of none."""
    order = np.argsort(places)
    ascending, size = places[order], file.size("text")
    counts, whole = np.zeros(len(places), np.int64), np.ones(len(places), np.bool_)
    before = 0
    for start in range(0, size, _BLOCK_BYTES):
        block = np.frombuffer(file.read("text", start, min(_BLOCK_BYTES, size - start)), np.uint8)
        begins = (block & 0xC0) != 0x80
        here = order[slice(*np.searchsorted(ascending, [start, start + len(block)]))]
        sums = np.concatenate([[0], np.cumsum(begins, dtype=np.int32)])
        counts[here] = before + sums[places[here] - start]
        whole[here] = begins[places[here] - start]
        before += int(sums[-1])
    counts[places == size] = before
    return counts, whole


def _postings(file: SegmentFile, count: int) -> Iterator[str]:
    """Every list decoded, with its positions."""
    positions = file.read("positions")
    opened = InvertedFile(file.read("postings"), lambda start, length: positions[start : start + length])
    if opened.rows != count:
        yield f"they are of {opened.rows} rows, and there are {count} passages."
    for at in range(opened.terms):
        counts = opened.dense(at)
        if counts is None:
            rows, counts = opened.sparse(at)
            if (np.diff(rows) <= 0).any() or not counts.all():
                yield f"the list of term {at} does not ascend."
        if (found := len(opened.positions(at, int(counts.sum())))) != int(counts.sum()):
            yield f"term {at} has {found} positions."


def _vectors(file: SegmentFile, count: int, dimension: int) -> Iterator[str]:
    """float16 against int8, row by row; that the graph leads nowhere else is seen to by whoever opens it."""
    raw = file.read("vec_i8")
    codes = Codes.from_sections(raw, file.read("graph") if file.version > 1 else b"")
    if (codes.rows, codes.dim) != (count, dimension) or file.size("vec_f16") != 2 * count * dimension:
        yield f"there are {codes.rows} of {codes.dim} dimensions for {count} passages of {dimension}."
        return
    scales = np.frombuffer(raw, "<f4", count, _VEC_I8_HEADER.size)
    int8 = np.frombuffer(raw, np.int8, count * dimension, _VEC_I8_HEADER.size + 4 * count).reshape(count, dimension)
    for first in range(0, count, _BLOCK_ROWS):
        rows = slice(first, min(first + _BLOCK_ROWS, count))
        halves = file.read("vec_f16", 2 * dimension * first, 2 * dimension * (rows.stop - first))
        exact = np.frombuffer(halves, "<f2").astype(np.float32).reshape(-1, dimension)
        if not np.isfinite(exact).all():
            yield f"a value of rows {first} to {rows.stop} is no number."
        elif (abs(exact - int8[rows] * scales[rows, None]) > _ROUNDING * scales[rows, None] + 1e-6).any():
            yield f"int8 and float16 of rows {first} to {rows.stop} differ by more than rounding."
