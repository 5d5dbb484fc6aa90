"""PDF page by page: pdfium's words by their places, pypdf as the second opinion, tesseract where there is no text.

Which of them reads a page is a matter of one measure: the share of its characters that no reader could make sense of
(controls, U+FFFD, private use, unassigned). Where it is more than MAX_UNREADABLE in pdfium's text, or where pdfium
finds no text though the page writes some, pypdf is asked; it is believed where its share is smaller and its words are
no less than half as many. What neither can read, and a page that is a picture, is recognised as it is seen.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import clock
from appliance.ingest.extract.layout.arrange import arrange
from appliance.ingest.extract.layout.shapes import Piece, Word
from appliance.ingest.extract.layout.structure import Entry, Page, assemble
from appliance.ingest.extract.members import BROKEN, Members, check_count, check_sizes
from appliance.ingest.extract.pdf import pdfium, pypdf_text
from appliance.ingest.extract.pdf.pdfium import Broken, Pdf, PdfPage
from appliance.ingest.extract.pdf.pypdf_text import SecondOpinion
from appliance.ingest.extract.pdf.warm import WARM_DOCUMENTS
from appliance.ingest.extract.reading import PAGE_CPU_SECONDS, Member, Read, Row
from appliance.ingest.extract.recognition import Recognition
from appliance.ingest.extract.text import clean_marked

__all__ = ["WARM_DOCUMENTS", "read"]

MAX_UNREADABLE = 0.02
_DOTS_PER_INCH = 300
_MAX_RENDERED_PIXELS = 36_000_000  # A2 at 300 dots an inch
_STAMP_CHARACTERS = 50  # a picture with no more text than this is a scan
_PICTURED_SHARE = 0.5
_MAX_KEPT = 0.3  # unreadable; more of it is no text


def read(data: bytes, caps: Caps) -> Read:
    """Which parsers read it, its pages, headings, tables and lists, and the files embedded in it.

    Raises DocumentRefused: TYPE_MISMATCH, PDF_ENCRYPTED, PDF_BROKEN, TOO_MANY_PAGES, TOO_MANY_MEMBERS,
    ZIP_BOMB, ARCHIVE_TOO_LARGE, IMAGE_TOO_LARGE, OCR_UNAVAILABLE, OCR_TOO_SLOW.
    """
    if b"%PDF-" not in data[:1024]:
        raise DocumentRefused("TYPE_MISMATCH", "The name says PDF, the content does not begin as one.")
    try:
        pdf = Pdf(data)
    except Broken:
        return _by_pypdf(data, caps)
    try:
        return _Reading(data, pdf, caps).read()
    finally:
        pdf.close()


class _Reading:
    """One document while it is read. Each parser that had a part in it is named."""

    def __init__(self, data: bytes, pdf: Pdf, caps: Caps) -> None:
        self._data, self._pdf, self._caps = data, pdf, caps
        self._parsers = {pdfium.PARSER: None}
        self._recognition = Recognition(caps)

    def read(self) -> Read:
        _check_pages(self._pdf.page_count, self._caps)
        pages = [self._page(number) for number in range(self._pdf.page_count)]
        texts, blocks = _cleaned(pages, self._pdf.outline())
        members = self._members()
        if not members and not any(texts):
            self._recognition.refuse_where_missed()
        return Read(self._recognition.told(" + ".join(self._parsers)), texts, blocks, members)

    def _members(self) -> tuple[Member, ...]:
        """Embedded files. What is named to be launched or run is one of them at most, and never is."""
        check_count(self._pdf.attachment_count(), self._caps)
        members, unpacked_bytes = Members(), 0
        for index in range(self._pdf.attachment_count()):
            name, size = self._pdf.attachment(index)
            if problem := members.problem(name) or (BROKEN if size < 0 else ""):
                members.leave_out(name, problem)
                continue
            unpacked_bytes += size
            check_sizes(len(self._data), unpacked_bytes, self._caps)
            members.add(name, self._pdf.attached(index, size))
        return members.found

    def _page(self, number: int) -> Page:
        clock.extend(PAGE_CPU_SECONDS)
        try:
            page = self._pdf.page(number)
        except Broken:
            found = pypdf_text.pieces(self._second(number))
            if found:
                self._parsers[pypdf_text.PARSER] = None
            else:
                self._recognition.miss(number + 1, "PDF_BROKEN")
            return Page(found)
        try:
            return Page(self._pieces(page, number), page.notes())
        finally:
            page.close()

    def _pieces(self, page: PdfPage, number: int) -> list[Piece]:
        groups = page.words()
        text = " ".join(word.text for words in groups for word in words)
        share = unreadable_share(text)
        if share > MAX_UNREADABLE or (not text and page.has_text_operators()):
            other = self._second(number)
            enough = bool(other) and 2 * len(other.split()) >= len(text.split())
            if enough and unreadable_share(other) < (share if text else 1):
                self._parsers[pypdf_text.PARSER] = None
                return pypdf_text.pieces(other)
        if (share > _MAX_KEPT or _looks_scanned(page, text)) and (found := self._recognised(page, number)):
            return arrange(found)
        if share > _MAX_KEPT:
            return []
        rules = page.rules() if groups else []
        return [piece for words in groups for piece in arrange(words, rules if words is groups[0] else ())]

    def _second(self, number: int) -> str:
        """What pypdf reads on a page, '' where it cannot."""
        try:
            return self._opinion.text(number).strip() if self._opinion else ""
        except (DocumentRefused, IndexError):
            return ""

    @cached_property
    def _opinion(self) -> SecondOpinion | None:
        try:
            return SecondOpinion(self._data)
        except DocumentRefused:
            return None

    def _recognised(self, page: PdfPage, number: int) -> list[Word]:
        max_pixels = min(self._caps.pixels, _MAX_RENDERED_PIXELS)
        if page.largest_picture_pixels() > self._caps.pixels:
            return self._recognition.miss(number + 1, "IMAGE_TOO_LARGE")
        try:
            return self._recognition.read(number + 1, lambda: page.render(_DOTS_PER_INCH, max_pixels))
        except Broken:
            return self._recognition.miss(number + 1, "PDF_BROKEN")


def unreadable_share(text: str) -> float:
    """Of the characters of a text, those that say nothing to any reader."""
    counts = Counter("".join(text.split()))
    unreadable = sum(
        counts[one] for one in counts if one == "\ufffd" or unicodedata.category(one) in ("Cc", "Cn", "Co")
    )
    return unreadable / counts.total() if counts else 0.0


def _looks_scanned(page: PdfPage, text: str) -> bool:
    if not text:
        return page.pictured_share() > 0 or page.is_drawn()
    return len(text) < _STAMP_CHARACTERS and page.pictured_share() > _PICTURED_SHARE


def _by_pypdf(data: bytes, caps: Caps) -> Read:
    opinion = SecondOpinion(data)
    _check_pages(opinion.page_count, caps)
    pages = []
    for number in range(opinion.page_count):
        clock.extend(PAGE_CPU_SECONDS)
        pages.append(Page(pypdf_text.pieces(opinion.text(number))))
    texts, blocks = _cleaned(pages, ())
    return Read(pypdf_text.PARSER, texts, blocks)


def _cleaned(pages: Sequence[Page], outline: Sequence[Entry]) -> tuple[tuple[str, ...], tuple[Row, ...]]:
    cleaned = [clean_marked(raw, marks, number) for number, (raw, marks) in enumerate(assemble(pages, outline), 1)]
    return tuple(text for text, _ in cleaned), tuple(row for _, rows in cleaned for row in rows)


def _check_pages(count: int, caps: Caps) -> None:
    if count > caps.pages:
        raise DocumentRefused("TOO_MANY_PAGES", f"It has {count} pages; {caps.pages} are allowed.")
