"""What pdfium knows of a PDF: words and drawn lines by place, outline, fields, notes, links, embedded files, pictures.

Nothing in a document is ever run: this pdfium has no JavaScript, and no action is asked for or followed.
Sources: pdfium's public headers (fpdf_text.h, fpdf_edit.h, fpdf_annot.h, fpdf_attachment.h).
"""

import ctypes
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import pypdfium2
from pypdfium2 import raw

from appliance.errors import DocumentRefused
from appliance.ingest.extract.layout.shapes import Picture, Rule, Word
from appliance.ingest.extract.layout.structure import Entry
from appliance.ingest.extract.layout.tables import MAX_RULES

PARSER = f"pdfium {pypdfium2.PDFIUM_INFO.build}"

# What pdfium writes where a hyphen cut a word at a line's end: in text, and among the characters that it measures.
_HYPHENS = "\x02\ufffe"
_WORD = re.compile(r"[^\s\x02\ufffe]+[\x02\ufffe]?|\n")
_FORMS = re.compile("[\ufb00-\ufdfb\ufe70-\ufefc]")  # ligatures, and letters in the shape of their place in a word
_BULLETS = dict.fromkeys((0xF0A7, 0xF0B7, 0xF0D8, 0xF0FC), "•")  # of the fonts Symbol and Wingdings
_MAX_OBJECTS = 5000  # of a page, that are looked at for ruling lines
_MAX_ANNOTATIONS = 2000
_MAX_OUTLINE = 5000
_MAX_STRING_BYTES = 1 << 16
_THIN_POINTS, _SHORT_POINTS = 3.0, 6.0
_MANY_PATHS = 20

_TEXT_NOTES = (
    raw.FPDF_ANNOT_TEXT,
    raw.FPDF_ANNOT_FREETEXT,
    raw.FPDF_ANNOT_HIGHLIGHT,
    raw.FPDF_ANNOT_UNDERLINE,
    raw.FPDF_ANNOT_STRIKEOUT,
    raw.FPDF_ANNOT_SQUIGGLY,
    raw.FPDF_ANNOT_STAMP,
    raw.FPDF_ANNOT_SQUARE,
    raw.FPDF_ANNOT_CIRCLE,
    raw.FPDF_ANNOT_LINE,
    raw.FPDF_ANNOT_INK,
)
_VALUED_FIELDS = (raw.FPDF_FORMFIELD_TEXTFIELD, raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX)
_TICKED_FIELDS = (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON)
_PASSWORD_FLAG = 1 << 13
_LINK_SCHEMES = ("http://", "https://", "mailto:", "ftp://")


class Broken(Exception):
    """pdfium cannot read it."""


class Pdf:
    """An open document. Its pages are numbered from 0."""

    def __init__(self, data: bytes) -> None:
        """Raises DocumentRefused: PDF_ENCRYPTED; Broken."""
        try:
            self._document = pypdfium2.PdfDocument(data)
            self._document.init_forms()
        except pypdfium2.PdfiumError as error:
            if getattr(error, "err_code", None) in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
                raise DocumentRefused(
                    "PDF_ENCRYPTED", "It is protected by a password; store a copy without one."
                ) from None
            raise Broken from None
        self.page_count = len(self._document)

    def close(self) -> None:
        self._document.close()

    def page(self, number: int) -> "PdfPage":
        """Raises Broken."""
        try:
            return PdfPage(self._document, self._document[number])
        except pypdfium2.PdfiumError:
            raise Broken from None

    def outline(self) -> list[Entry]:
        """The document's outline in order, bounded; a loop in it ends."""
        entries: list[Entry] = []
        for item in self._document.get_toc(max_depth=8):
            entries.append(Entry(item.level + 1, item.get_title()))
            if len(entries) == _MAX_OUTLINE:
                break
        return entries

    def attachment_count(self) -> int:
        return int(raw.FPDFDoc_GetAttachmentCount(self._document))

    def attachment(self, index: int) -> tuple[str, int]:
        """Name and size in bytes of an embedded file, -1 where it cannot be read."""
        attachment, size = raw.FPDFDoc_GetAttachment(self._document, index), ctypes.c_ulong()
        if not attachment:
            return "", -1
        name = _string(lambda out, length: raw.FPDFAttachment_GetName(attachment, out, length))
        readable = raw.FPDFAttachment_GetFile(attachment, None, 0, size)
        return name, size.value if readable else -1

    def attached(self, index: int, size_bytes: int) -> memoryview:
        """The content of an embedded file of that size."""
        content, size = bytearray(size_bytes), ctypes.c_ulong()
        buffer = (ctypes.c_char * size_bytes).from_buffer(content)
        raw.FPDFAttachment_GetFile(raw.FPDFDoc_GetAttachment(self._document, index), buffer, size_bytes, size)
        return memoryview(content)


class PdfPage:
    """One page. Close it before the next is read."""

    def __init__(self, document: pypdfium2.PdfDocument, page: pypdfium2.PdfPage) -> None:
        self._document, self._page = document, page
        self._text = page.get_textpage()
        self._box = page.get_bbox()
        self._rectangles = raw.FS_RECTF(), raw.FS_RECTF()
        self._turns = 0  # quarter turns to the left, by which most of its text is written

    def close(self) -> None:
        self._text.close()
        self._page.close()

    def words(self) -> list[list[Word]]:
        """Words in the order of the content, lines as pdfium sees them, on the page as they stand upright.

        First those of the direction in which most text is written, then each other direction for itself.
        """
        by_turns: dict[int, list[Word]] = {}
        text, line, turns = self._characters(), 0, -1
        for match in _WORD.finditer(text):
            start, end = match.span()
            if match[0] == "\n":
                line, turns = line + 1, -1
                continue
            if turns < 0:
                turns = -round(raw.FPDFText_GetCharAngle(self._text, start) / (math.pi / 2)) % 4
            cut = text[end - 1] in _HYPHENS
            box = self._bounds(start, end - 1 - cut)
            if self._on_page(box):
                by_turns.setdefault(turns, []).append(_word(text[start : end - cut], box, turns, line, cut))
            if cut:
                line, turns = line + 1, -1
        ordered = sorted(by_turns.items(), key=lambda item: -sum(len(word.text) for word in item[1]))
        self._turns = ordered[0][0] if ordered else 0
        return [words for _, words in ordered]

    def _bounds(self, first: int, last: int) -> "_Box":
        """Left, bottom, right and top of a line's characters."""
        one, other = self._rectangles
        raw.FPDFText_GetLooseCharBox(self._text, first, one)
        raw.FPDFText_GetLooseCharBox(self._text, last, other)
        left, right = (one.left, other.right) if one.left <= other.left else (other.left, one.right)
        bottom, top = one.bottom, one.top
        return left, min(bottom, other.bottom), right, max(top, other.top)

    def _characters(self) -> str:
        """Code point by code point as pdfium counts them."""
        count = self._text.count_chars()
        text = str(self._text.get_text_range(errors="replace")) if count else ""
        if len(text) == count:
            return text
        return "".join(chr(raw.FPDFText_GetUnicode(self._text, index)) for index in range(count))

    def _on_page(self, box: "_Box") -> bool:
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        left, bottom, right, top = self._box
        return bool(left <= x <= right and bottom <= y <= top)

    def rules(self) -> list[Rule]:
        """Straight lines that are drawn on it, on the page as most of its words stand upright; call `words` first.

        More than MAX_RULES of them are a drawing, of which no more are looked for.
        """
        found: list[Rule] = []
        for item in self._objects(raw.FPDF_PAGEOBJ_PATH):
            if len(found) > MAX_RULES:
                break
            box = _object_bounds(item)
            if box is None:
                continue
            width, height = box[2] - box[0], box[3] - box[1]
            if min(width, height) <= _THIN_POINTS:
                if max(width, height) >= _SHORT_POINTS:
                    found.append(Rule(*_upright(box, self._turns)))
            elif min(width, height) >= _SHORT_POINTS and _is_stroked(item):
                left, bottom, right, top = box
                edges = (left, bottom, right, bottom), (left, top, right, top), (left, bottom, left, top)
                found += [Rule(*_upright(edge, self._turns)) for edge in (*edges, (right, bottom, right, top))]
        return found

    def has_text_operators(self) -> bool:
        return bool(self._objects(raw.FPDF_PAGEOBJ_TEXT))

    def is_drawn(self) -> bool:
        """Whether there is more drawn on it than ruling lines and a frame: letters, perhaps."""
        return len(self._objects(raw.FPDF_PAGEOBJ_PATH)) >= _MANY_PATHS

    def pictured_share(self) -> float:
        """How much of the page its largest picture covers, 0 to 1."""
        left, bottom, right, top = self._box
        area = max((right - left) * (top - bottom), 1.0)
        boxes = [_object_bounds(item) for item in self._objects(raw.FPDF_PAGEOBJ_IMAGE)]
        covered = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes if box]
        return float(min(1.0, max(covered, default=0.0) / area))

    def largest_picture_pixels(self) -> int:
        """Of the pictures on it, as their headers say: nothing is decoded."""
        most, width, height = 0, ctypes.c_uint(), ctypes.c_uint()
        for item in self._objects(raw.FPDF_PAGEOBJ_IMAGE):
            if raw.FPDFImageObj_GetImagePixelSize(item, width, height):
                most = max(most, width.value * height.value)
        return most

    def render(self, dots_per_inch: float, max_pixels: int) -> Picture:
        """The page as it is seen, with fewer dots where it would have too many. Raises Broken."""
        width, height = self._page.get_size()
        scale = min(dots_per_inch / 72, math.sqrt(max_pixels / max(width * height, 1.0)))
        try:
            bitmap = self._page.render(scale=scale, grayscale=True, may_draw_forms=False)
        except (pypdfium2.PdfiumError, ValueError):
            raise Broken from None
        picture = Picture(bytes(bitmap.buffer), bitmap.width, bitmap.height, bitmap.stride, round(72 * scale))
        bitmap.close()
        return picture

    def notes(self) -> list[str]:
        """What stands in form fields, then the text of annotations, then links that the page does not show."""
        fields, notes, links = list[str](), list[str](), list[str]()
        for annotation in self._annotations():
            kind = raw.FPDFAnnot_GetSubtype(annotation)
            if kind == raw.FPDF_ANNOT_WIDGET:
                fields += self._field(annotation)
            elif kind == raw.FPDF_ANNOT_LINK:
                links += self._link(annotation)
            elif kind in _TEXT_NOTES:
                notes.append(_string(partial(_contents, annotation)).strip())
        shown = self._characters() if links else ""
        links = [link for link in dict.fromkeys(links) if link not in shown]
        groups = ("\n".join(fields), *dict.fromkeys(notes), "\n".join(links))
        return [group for group in groups if group.strip()]

    def _objects(self, kind: int) -> Sequence[Any]:
        return self._objects_by_kind.get(kind, ())

    @cached_property
    def _objects_by_kind(self) -> Mapping[int, Sequence[Any]]:
        found: dict[int, list[Any]] = {}
        for index in range(min(raw.FPDFPage_CountObjects(self._page), _MAX_OBJECTS)):
            item = raw.FPDFPage_GetObject(self._page, index)
            found.setdefault(raw.FPDFPageObj_GetType(item), []).append(item)
        return found

    def _annotations(self) -> Iterator[Any]:
        for index in range(min(raw.FPDFPage_GetAnnotCount(self._page), _MAX_ANNOTATIONS)):
            annotation = raw.FPDFPage_GetAnnot(self._page, index)
            if annotation:
                yield annotation
                raw.FPDFPage_CloseAnnot(annotation)

    def _field(self, annotation: Any) -> list[str]:
        """A line that names a field and its value, if it has one that may be read."""
        forms = self._document.formenv
        if forms is None:
            return []
        kind = raw.FPDFAnnot_GetFormFieldType(forms, annotation)
        name = _string(lambda out, size: raw.FPDFAnnot_GetFormFieldName(forms, annotation, out, size))
        if kind in _TICKED_FIELDS:
            if not raw.FPDFAnnot_IsChecked(forms, annotation):
                return []
            value = _string(lambda out, size: raw.FPDFAnnot_GetFormFieldExportValue(forms, annotation, out, size))
        elif kind in _VALUED_FIELDS and not raw.FPDFAnnot_GetFormFieldFlags(forms, annotation) & _PASSWORD_FLAG:
            value = _string(lambda out, size: raw.FPDFAnnot_GetFormFieldValue(forms, annotation, out, size))
        else:
            return []
        return [f"{name}: {value}"] if value.strip() else []

    def _link(self, annotation: Any) -> list[str]:
        action = raw.FPDFLink_GetAction(raw.FPDFAnnot_GetLink(annotation))
        if not action or raw.FPDFAction_GetType(action) != raw.PDFACTION_URI:
            return []
        size = raw.FPDFAction_GetURIPath(self._document, action, None, 0)
        if not 0 < size <= _MAX_STRING_BYTES:
            return []
        buffer = ctypes.create_string_buffer(size)
        raw.FPDFAction_GetURIPath(self._document, action, buffer, size)
        link = buffer.value.decode("utf-8", "replace")
        return [link] if link.lower().startswith(_LINK_SCHEMES) else []


_Box = tuple[float, float, float, float]


def _word(text: str, box: _Box, turns: int, line: int, cut: bool) -> Word:
    left, top, right, bottom = _upright(box, turns)
    if not text.isascii():
        text = _FORMS.sub(lambda form: unicodedata.normalize("NFKC", form[0]), text).translate(_BULLETS)
    return Word(text, left, top, right, bottom, bottom - top, line, cut)


def _upright(box: _Box, turns: int) -> _Box:
    """Left, top, right and bottom as it stands after the page was turned; from left, bottom, right and top."""
    left, bottom, right, top = box
    if turns == 0:
        return left, -top, right, -bottom
    if turns == 1:
        return bottom, left, top, right
    if turns == 2:
        return -right, bottom, -left, top
    return -top, -right, -bottom, -left


def _object_bounds(item: Any) -> _Box | None:
    left, bottom, right, top = (ctypes.c_float() for _ in range(4))
    if not raw.FPDFPageObj_GetBounds(item, left, bottom, right, top):
        return None
    return left.value, bottom.value, right.value, top.value


def _is_stroked(path: Any) -> bool:
    fill, stroke = ctypes.c_int(), ctypes.c_int()
    return bool(raw.FPDFPath_GetDrawMode(path, fill, stroke) and stroke.value)


def _contents(annotation: Any, out: Any, size: int) -> int:
    return int(raw.FPDFAnnot_GetStringValue(annotation, b"Contents", out, size))


def _string(ask: Callable[[Any, int], int]) -> str:
    """A string that pdfium gives in UTF-16, by asking for its length first; '' where it is too long."""
    size = ask(None, 0)
    if not 2 < size <= _MAX_STRING_BYTES:
        return ""
    buffer = (ctypes.c_ushort * (size // 2))()
    ask(buffer, size)
    return bytes(buffer).decode("utf-16-le", "replace").rstrip("\0").replace("\r\n", "\n").replace("\r", "\n")
