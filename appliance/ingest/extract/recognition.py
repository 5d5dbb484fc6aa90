"""The pages of one document that are pictures: recognised within a budget, and named where they are not."""

import time
from collections.abc import Callable, Sequence

from appliance.errors import DocumentRefused
from appliance.ingest.caps import Caps
from appliance.ingest.extract import clock, ocr
from appliance.ingest.extract.layout.shapes import Picture, Word

_MIN_SIDE_PIXELS = 20  # in less no letter is read
_FIRST_CPU_SECONDS = 35  # for the first page, and the most for any other; a full page of A4 takes 1 to 5
_PAGE_CPU_SECONDS = 15
_WALL_A_CPU_SECOND = 4.0
_KILLED_AT = 2.0  # times what a page may take: where the engine does not look at its clock
_REMEDY = "install libtesseract5 and its languages (tesseract-ocr-eng, …), or set ocr_languages"
_WHY = {
    "OCR_UNAVAILABLE": "Its pages are pictures, and there is no tesseract to read them: {}",
    "OCR_TOO_SLOW": "Its pages are pictures, and recognising one takes more than the {} processor seconds that it has.",
    "IMAGE_TOO_LARGE": "Its pages are pictures of more pixels than image_max_megapixels allows.",
}


class Recognition:
    """Of one document. Each page in which words are found adds to the budget, up to the cap `ocr_cpu_seconds`, so that
    noise ends soon; a page whose turn comes after it is spent is left out, and told of.
    """

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._budget_seconds = min(_FIRST_CPU_SECONDS, caps.ocr_cpu_seconds)
        self._spent_seconds = self._last_seconds = 0.0
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
        left_seconds = self._budget_seconds - self._spent_seconds
        if left_seconds < max(self._last_seconds, 0.01):
            return self.miss(page, "OCR_TOO_SLOW")
        started, page_seconds = time.process_time(), min(left_seconds, _FIRST_CPU_SECONDS)
        with clock.instead(_KILLED_AT * page_seconds):
            seen = picture()
            small = min(seen.width, seen.height) < _MIN_SIDE_PIXELS
            words = [] if small else engine.read(seen, _WALL_A_CPU_SECOND * page_seconds)
        self._last_seconds = time.process_time() - started
        self._spent_seconds += self._last_seconds
        if words is None:
            return self.miss(page, "OCR_TOO_SLOW")
        if words:
            self._parser = engine.parser
            self._budget_seconds = min(self._budget_seconds + _PAGE_CPU_SECONDS, self._caps.ocr_cpu_seconds)
        return words

    def miss(self, page: int, reason: str) -> list[Word]:
        """Say that a page is left out: OCR_UNAVAILABLE, OCR_TOO_SLOW, IMAGE_TOO_LARGE. No words."""
        self._missed[page] = reason
        return []

    def refuse_where_missed(self) -> None:
        """Raises DocumentRefused with the reason why the first page was left out, if any was."""
        if self._missed:
            reason = next(iter(self._missed.values()))
            detail = self._unavailable if reason == "OCR_UNAVAILABLE" else self._budget_seconds
            raise DocumentRefused(reason, _WHY[reason].format(detail))

    def told(self, parser: str) -> str:
        """The parser's name, tesseract's where it had a part, and the pages that are pictures and were not read."""
        named = f"{parser} + {self._parser}" if self._parser else parser
        return f"{named}; not recognised: pages {_ranges(sorted(self._missed))}" if self._missed else named


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
