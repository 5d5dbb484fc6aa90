"""The pages of one document that are pictures: recognised within a budget, and named where they are not."""

import time
from collections.abc import Callable, Sequence

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import clock, ocr
from appliance.ingest.extract.layout.shapes import Picture, Word

_MIN_SIDE_PIXELS = 20  # in less no letter is read
_PAGE_CPU_SECONDS = 30  # the most for one; a full page of A4 takes 1 to 5, a plate in halftone 20
_WITHOUT_TEXT = 0.5  # of `ocr_cpu_seconds`, before any text was found: a book may begin with a dozen plates
_CHARACTER_CPU_SECONDS = 0.01  # what each that was read adds: about ten times what it took
_WALL_A_CPU_SECOND = 2.0
_KILLED_AFTER_CPU_SECONDS = 75  # where the engine does not look at its clock: it does between words, and not before
_REMEDY = "install libtesseract5 and its languages (tesseract-ocr-eng, …), or set ocr_languages"
_WHY = {
    "OCR_UNAVAILABLE": "Its pages are pictures, and there is no tesseract to read them: {}",
    "OCR_TOO_SLOW": "Its pages are pictures in which no text was found within {} processor seconds.",
    "PDF_BROKEN": "Neither pdfium nor pypdf can read its pages.",
    "IMAGE_TOO_LARGE": "Its pages are pictures of more pixels than image_max_megapixels allows.",
}


class Recognition:
    """Of one document. Text that is read earns time for the pages after it, up to the cap `ocr_cpu_seconds`; a page
    whose turn comes after that is spent is left out, and told of.

    The worst case: without text half of the cap, and for the page that passes it 60 processor seconds more, or the end
    of the process after 75. To spend a cap of 600 takes no less than 30,000 recognised characters. After twice the cap
    in wall time no page is begun.
    """

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._characters = 0
        self._spent_seconds = 0.0
        self._until_seconds = time.monotonic() + _WALL_A_CPU_SECOND * caps.ocr_cpu_seconds
        self._missed: dict[int, str] = {}
        self._parser = ""
        self._unavailable = ""

    def read(self, page: int, picture: Callable[[], Picture]) -> list[Word]:
        """Words by their places in the picture of a page, from 1; none where it is left out."""
        try:
            engine = ocr.engine(self._caps.languages)
        except ocr.Unavailable as why:
            self._unavailable = f"{why} To read them, {_REMEDY}."
            return self.miss(page, "OCR_UNAVAILABLE")
        cpu_seconds = min(_PAGE_CPU_SECONDS, self._caps.ocr_cpu_seconds - self._spent_seconds)
        wall_seconds = min(_WALL_A_CPU_SECOND * cpu_seconds, self._until_seconds - time.monotonic())
        if self._spent_seconds >= self._budget_seconds or wall_seconds <= 0:
            return self.miss(page, "OCR_TOO_SLOW")
        started = time.process_time()
        try:
            with clock.instead(_KILLED_AFTER_CPU_SECONDS):
                seen = picture()
                small = min(seen.width, seen.height) < _MIN_SIDE_PIXELS
                words = [] if small else engine.read(seen, wall_seconds)
        finally:
            self._spent_seconds += time.process_time() - started
        if words is None:
            return self.miss(page, "OCR_TOO_SLOW")
        if words:
            self._parser = engine.parser
            self._characters += sum(len(word.text) for word in words)
        return words

    @property
    def _budget_seconds(self) -> float:
        earned_seconds = _CHARACTER_CPU_SECONDS * self._characters
        return min(_WITHOUT_TEXT * self._caps.ocr_cpu_seconds + earned_seconds, self._caps.ocr_cpu_seconds)

    def miss(self, page: int, reason: str) -> list[Word]:
        """Say that a page is left out: OCR_UNAVAILABLE, OCR_TOO_SLOW, IMAGE_TOO_LARGE, PDF_BROKEN. No words."""
        self._missed[page] = reason
        return []

    def refuse_where_missed(self) -> None:
        """Raises DocumentRefused with the reason why the first page was left out, if any was."""
        if self._missed:
            reason = next(iter(self._missed.values()))
            detail = self._unavailable if reason == "OCR_UNAVAILABLE" else round(self._budget_seconds)
            raise DocumentRefused(reason, _WHY[reason].format(detail))

    def told(self, parser: str) -> str:
        """The parser's name, tesseract's where it had a part, and the pages that were left out."""
        named = f"{parser} + {self._parser}" if self._parser else parser
        return f"{named}; not read: pages {_ranges(sorted(self._missed))}" if self._missed else named


def _ranges(numbers: Sequence[int]) -> str:
    """As "3, 7-12"; the first few."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    shown = ", ".join("-".join(map(str, run)) for run in runs[:20])
    return shown + ", …" if len(runs) > 20 else shown
